"""The runs of a grid as data: what each asks for, the folder that its hash names, its options as JSON, and about what it costs."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fspmu.detection import DETECTORS
from fspmu.detection.cuts import CUTS
from fspmu.errors import InputError, choose
from fspmu.experiments.experiment import Compute, OnRun, Pretrain, Unlearn
from fspmu.experiments.survey_options import Survey
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.report.result_table import Cell, Layout
from fspmu.results.store import config_hash
from fspmu.stages.gathering import MOST_FITTED, PROBED, VIEWED
from fspmu.stages.surveying import plan_survey
from fspmu.unlearning import METHODS as UNLEARNING

Json = dict[str, Any]
Options = Pretrain | Unlearn | Survey

LATER = Path()
"""Stands in the options of a repair or a survey for the folder of its pretraining, which a grid knows by its hash."""

NAMED_WITHOUT = {"detector": "gmm"}
"""Values that a folder's name leaves out whatever the default is now: they were it when the first of these folders were named."""

SIZES = {"digits": (1438, 359, 10), "cifar10": (50_000, 10_000, 10), "cifar100": (50_000, 10_000, 100)}
"""Training images, test images and classes: for estimates alone."""


@dataclass(frozen=True)
class GridRun:
    """A run of a grid but for its seed and place: its options, the cell of the table it fills, and the pretraining it stands on."""

    options: Options
    cell: Cell
    stands_on: "GridRun | None" = None
    words: str = ""
    """More words for its title, where the usual ones do not tell it from the others."""
    seeds: int | None = None
    """How many seeds it has at most, whatever the grid is asked for. None: as many."""

    @property
    def start(self) -> Pretrain:
        """What the pretraining asks for that it is, or stands on."""
        options = self.stands_on.options if self.stands_on else self.options
        assert isinstance(options, Pretrain)
        return options

    @property
    def title(self) -> str:
        """What tells it from the others of its grid, in words: data, noise, methods, detector, preset."""
        if self.stands_on is not None and isinstance(self.options, Unlearn):
            words = [self.stands_on.title, self.options.method, self.options.detector, self.options.preset or "", self.words]
        elif self.stands_on is not None:
            words = [self.stands_on.title, "survey", self.words]
        else:
            start, limit, noise = self.start, self.start.data.limit, self.start.noise
            words = [start.dataset, f"n{limit}" if limit else "", noise.noise_mode, f"{100 * noise.noise_rate:g}", start.method, self.words]
        return " ".join(word for word in words if word)

    @cached_property
    def stem(self) -> str:
        """The name of its folder but for the seed: the title, and a hash of what it asks for and stands on, places and machine left out."""
        identity = {name: value for name, value in asked(self.options, **NAMED_WITHOUT).items() if name not in ("compute", "run")}
        if isinstance(self.options, Unlearn):
            identity = {name: value for name, value in identity.items() if name not in ("preset", "settings")} | self._unlike_published(self.options)
        command = type(self.options).__name__.lower()
        content = {"command": command, "asked": identity, "stands_on": self.stands_on and self.stands_on.stem.rpartition("-")[2]}
        return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', self.title)}-{config_hash(content)}"

    def _unlike_published(self, repair: Unlearn) -> Json:
        """Return what a repair sets otherwise than published, whatever name that has: what a preset means, or is chosen when none is named, may change."""
        published = asdict(UNLEARNING[repair.method].suited(PRETRAINING[self.start.method].published_preset))
        unlike = {name: value for name, value in asdict(settings_of(repair, self.start)).items() if value != published[name]}
        return {"settings": unlike} if unlike else {}


def method_settings(start: Pretrain, classes: int) -> Any:
    """Return the settings of the method of a pretraining, what depends on the noise chosen."""
    method = PRETRAINING[start.method]
    return method.suited_to(start.settings or method.settings, start.situation(classes))


def settings_of(options: Unlearn, start: Pretrain) -> Any:
    """Return the settings of a repair of what `start` trains, by whatever they are asked for."""
    if options.settings is not None:
        return options.settings
    return UNLEARNING[options.method].suited(options.preset or PRETRAINING[start.method].preset)


@dataclass(frozen=True)
class Grid:
    """The runs of a table without their seeds, how it is shown, and how many seeds it has unless told otherwise, from the first on."""

    runs: Sequence[GridRun]
    layout: Layout
    seeds: int = 3
    first_seed: int = 0

    def seeds_up_to(self, count: int | None) -> range:
        """Return so many seeds; None: as many as the grid has."""
        return range(self.first_seed, self.first_seed + (count or self.seeds))


@dataclass(frozen=True)
class Job:
    """A run with its seed, its folder and its whole options."""

    run: GridRun
    seed: int
    folder: Path
    options: Options

    @property
    def title(self) -> str:
        """The run in words, its seed included."""
        return f"{self.run.title} seed {self.seed}"

    @property
    def needs(self) -> Path | None:
        """The folder of the pretraining that it stands on."""
        return self.options.run if isinstance(self.options, OnRun) else None

    @property
    def state(self) -> str:
        """done, unfinished or new."""
        return "done" if (self.folder / "done").exists() else "unfinished" if (self.folder / "config.json").exists() else "new"

    @property
    def log(self) -> Path:
        """The file of what its processes say."""
        return self.folder.parent / "logs" / f"{self.folder.name}.log"

    @property
    def payload(self) -> Json:
        """The options as JSON, for `rebuild`."""
        return {"command": type(self.options).__name__.lower(), "asked": asked(self.options)}


def jobs_of(runs: Iterable[GridRun], seeds: Sequence[int], compute: Compute, out: Path, data_dir: Path | None) -> list[Job]:
    """Return every run with every seed that it has below `out`, a pretraining before what stands on it, one seed after the other."""
    jobs: dict[Path, Job] = {}
    for seed in seeds:
        for run in runs:
            if run.seeds is not None and seed >= run.seeds:
                continue
            folder = out / f"{run.stem}-s{seed}"
            place = replace(compute, seed=seed, out=folder, resume=True)
            if isinstance(run.options, Pretrain):
                options: Options = replace(run.options, compute=place, data=replace(run.options.data, data_dir=data_dir))
            else:
                assert run.stands_on is not None
                options = replace(run.options, compute=place, data_dir=data_dir, run=out / f"{run.stands_on.stem}-s{seed}")
                if isinstance(options, Unlearn):
                    options = replace(options, page=False)  # who looks at a table of runs opens none of their pages
            job = Job(run, seed, folder, options)
            assert job.needs is None or job.needs in jobs, f"{job.title} stands on a pretraining that its grid lacks"
            jobs.setdefault(folder, job)
    return list(jobs.values())


def chosen(jobs: Sequence[Job], text: str | None) -> list[Job]:
    """Return the jobs whose title has all words of `text`, and the pretrainings that they stand on.

    Raises InputError when there is none.
    """
    words = (text or "").lower().split()
    wanted = [job for job in jobs if set(words) <= set(job.title.lower().split())]
    if not wanted:
        known = dict.fromkeys(word for job in jobs for word in job.title.split())
        raise InputError(f"no run has all the words of --only {text!r}; the words are {', '.join(known)}")
    folders = {job.folder for job in wanted} | {job.needs for job in wanted}
    return [job for job in jobs if job.folder in folders]


def asked(options: Any, **usual: Any) -> Json:
    """Return the fields of a dataclass that differ from its own defaults, nested, as JSON knows them: a new field does not rename old runs.

    usual: values that count as a field's default in place of its own.
    """
    found: Json = {}
    for field in fields(options):
        value = getattr(options, field.name)
        default = usual.get(field.name, field.default if field.default_factory is MISSING else field.default_factory())
        if is_dataclass(value):
            if (inner := asked(value)) or default is None:
                found[field.name] = inner
        elif value != default:
            found[field.name] = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return found


def rebuild(payload: Json) -> Options:
    """Return the options that `payload` was made of."""
    given = payload["asked"]
    if payload["command"] == "survey":
        survey = _build(Survey, given)
        assert isinstance(survey, Survey)
        return survey
    kind: type[Pretrain | Unlearn] = {"pretrain": Pretrain, "unlearn": Unlearn}[payload["command"]]
    family: dict[str, Any] = dict(PRETRAINING if kind is Pretrain else UNLEARNING)
    method = choose(family, given.get("method", kind.method), "method")
    detector = choose(DETECTORS, given.get("detector", Unlearn.detector), "detector")
    cut = choose(CUTS, given.get("cut") or detector.cut, "cut")
    options = _build(kind, given, settings=type(method.settings), detector_settings=type(detector.settings), cut_settings=type(cut.settings))
    assert isinstance(options, Pretrain | Unlearn)
    return options


def _build(kind: type, given: Json, **kinds: type) -> Any:
    values = {}
    for field in fields(kind):
        if field.name not in given:
            continue
        value = given[field.name]
        if isinstance(value, dict):
            inner = kinds[field.name] if field.default_factory is MISSING else type(field.default_factory())
            values[field.name] = _build(inner, value)
        else:
            values[field.name] = Path(value) if "Path" in str(field.type) else tuple(value) if isinstance(value, list) else value
    return kind(**values)


def estimate(job: Job) -> tuple[int, int] | None:
    """Return about how many samples go forward and backward through networks, tests included; None for data of unknown size."""
    start = job.run.start
    if start.dataset not in SIZES:
        return None
    train, test, classes = SIZES[start.dataset]
    train, test = min(train, start.data.limit or train), min(test, start.data.test_limit or test)
    train -= round(train * getattr(start.settings, "held_out", 0.0)) if start.method == "ce" else 0
    mode, rate = start.noise.noise_mode, start.noise.noise_rate
    wrong = round(train * rate * (1 - 1 / classes if mode == "sym" else 0.5 if mode == "asym" and start.dataset == "cifar10" else 1))
    if isinstance(job.options, Survey):
        return _survey_passes(job.options, start, train, classes)
    if isinstance(job.options, Unlearn):
        settings = settings_of(job.options, start)
        forgetting, kept = getattr(settings, "forget_epochs", 0) * wrong, train - wrong
        probes, looks = _detection_passes(job.options, classes)
        rounds = job.options.rounds
        again = looks if rounds.second_look == "detector" else rounds.look_views
        repair = 2 * forgetting + (settings.epochs + 1) * kept + (settings.epochs + 2) * test + train
        forward = rounds.rounds * repair + (looks + (rounds.rounds - 1) * again) * train
        return probes * train + forward, probes * train + rounds.rounds * (forgetting + settings.epochs * kept)
    settings = method_settings(start, classes)
    if start.method == "ce":
        return settings.epochs * (train + test), settings.epochs * train
    return _two_networks(start.method, settings, train, test, train - wrong)


def _detection_passes(options: Unlearn, classes: int) -> tuple[int, int]:
    """Return about how many epochs a detector trains probes for, and how often every image goes through the network that is judged."""
    detector = DETECTORS[options.detector]
    settings = options.detector_settings or detector.settings
    needs = detector.needs_with(settings)
    epochs = getattr(settings, "probe_epochs", None) or (10 if classes <= 20 else 30)
    probes = bool({"probe_losses", "reference_probe_losses", "probe_history"} & needs) + ((settings.folds - 1) if "cross_fitted" in needs else 0)
    chosen = "block" in needs and settings.depth == "auto"
    return probes * epochs, 1 + (settings.views if VIEWED & needs else 0) + chosen


def _survey_passes(options: Survey, start: Pretrain, train: int, classes: int) -> tuple[int, int]:
    """Return the passes of a survey: every kind of evidence once, whoever needs it."""
    wishes = options.survey
    choices, _ = plan_survey(wishes, recorded=True)
    needs = frozenset[str]().union(*(choice.how.needs_with(choice.settings) for choice in choices.values()))
    epochs = wishes.probe_epochs or (10 if classes <= 20 else 30)
    trained = (epochs if PROBED & needs else 0) + (epochs * (wishes.folds - 1) if "cross_fitted" in needs else 0)
    answers = len({"reference_losses", "probe_losses", "reference_probe_losses", "cross_fitted"} & needs)
    held = getattr(start.settings, "held_out", 0.0)
    aside = round(train * held / (1 - held))  # looked at like the others, and once more to choose a depth
    looks = (1 + (wishes.views if VIEWED & needs else 0)) * (train + aside)
    fitted = min(train, MOST_FITTED) + aside if "block" in needs and wishes.depth == "auto" else 0
    return looks + fitted + (answers + trained) * train, trained * train


def _two_networks(method: str, settings: Any, train: int, test: int, clean: int) -> tuple[int, int]:
    """Return the passes of a method with two networks, as if it came to trust the `clean` labels and no others."""
    trainings = [(settings.epochs, (20 * clean, 8 * clean))]  # two networks, ten forwards and four backwards for each labelled sample
    if method == "promix":
        mixed = 4 * train + (4 if settings.shared_mixing else 8) * clean  # two networks, two views of all samples, four mixtures of trusted ones
        trainings = [(settings.epochs, (mixed, mixed))]
    elif method == "longremix":
        trainings = [(settings.search_epochs, (20 * clean, 8 * clean)), (settings.epochs, (20 * train, 8 * train))]
    forward, backward = settings.warm_up * (2 * test + 3 * train), settings.warm_up * 2 * train  # LongReMix warms up once for both of its trainings
    for epochs, (ahead, back) in trainings:
        main = epochs - settings.warm_up
        forward += main * (2 * test + 2 * train + ahead)
        backward += main * back
    return forward, backward
