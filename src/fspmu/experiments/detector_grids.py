"""Grids of our own: what every detector and cut finds, what a repair with it is worth, and how presets and defaults were chosen."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fspmu.detection import at_random
from fspmu.detection.splitting import SplitSettings
from fspmu.experiments.experiment import Pretrain, Unlearn
from fspmu.experiments.grid_jobs import LATER, Grid, GridRun
from fspmu.experiments.survey_options import Survey
from fspmu.experiments.table_grids import SMALL_DATA, noise_of
from fspmu.pretraining import cross_entropy
from fspmu.report.result_table import Layout
from fspmu.stages.rounds import Rounds
from fspmu.stages.surveying import SurveySettings
from fspmu.unlearning import feature_preserving as unlearning
from fspmu.unlearning.feature_preserving import PRESETS

LEADING = "noise-transition"
"""The detector that the longer lists of repairs are made with."""
REPAIRS = (
    ("gmm", "original"),
    ("known", "original"),
    ("known", "tuned"),
    (LEADING, "tuned-soft"),
)
"""What finds the forget set and how the method is set, in the repairs that follow a survey."""
MORE_REPAIRS = (("gmm", "tuned"), (LEADING, "original"), ("combined", "tuned-soft"))
"""The same for seed 0 alone: which part of a gain is the detector's and which the preset's, and what comes next."""
LONGER_LR = 0.03
"""By the published rate of 0.01 a network is not trained to the end in 50 epochs of 10,000 images: 3,900 steps instead of 78,600."""
WITHOUT_PROBE = SurveySettings(probe=False)
"""What a survey costs where detectors that train networks of their own were judged in another grid."""

_TUNED, _SOFT = PRESETS["tuned"], PRESETS["tuned-soft"]
_SOUGHT = unlearning.Settings(epochs=20, lr=5e-3, delta=50.0, schedule="cosine")
"""Where the search for the presets of our own began, from one seed of other noise."""
RECIPES = {
    **{f"lr {lr:g} delta {delta:g}": replace(_SOUGHT, lr=lr, delta=delta) for lr, delta in ((5e-3, 100), (5e-3, 50), (5e-3, 25), (5e-3, 10), (5e-3, 5))},
    **{f"lr {lr:g} delta {delta:g}": replace(_SOUGHT, lr=lr, delta=delta) for lr, delta in ((2.5e-3, 50), (2.5e-3, 25), (1e-2, 10), (2e-2, 5))},
    "lr 0.005 delta 50 steps": replace(_SOUGHT, schedule="steps", milestones=(10, 15, 15)),
    "lr 0.005 delta 50 zeta 0": replace(_SOUGHT, zeta=0.0),
}
"""Learning rates and weights, tried where the wrong labels are known."""
_SOUGHT_SOFT = replace(_SOUGHT, weighting="clean-probability")
SOFT_RECIPES = {
    "lr 0.005 delta 50 soft": _SOUGHT_SOFT,
    "lr 0.005 delta 25 soft": replace(_SOUGHT_SOFT, delta=25.0),
    "lr 0.005 delta 10 soft": replace(_SOUGHT_SOFT, delta=10.0),
    "lr 0.01 delta 10 soft": replace(_SOUGHT_SOFT, lr=1e-2, delta=10.0),
    "lr 0.005 delta 50 soft above .05": replace(_SOUGHT_SOFT, retain_above=0.05),
    "lr 0.005 delta 50 soft above .5": replace(_SOUGHT_SOFT, retain_above=0.5),
}
"""The same where the default detector says how probable a wrong label is, retained above .2 where nothing else is said."""
_PICKED = replace(_SOUGHT, lr=1e-2, delta=10.0, momentum_between="dropped")
FORGETTING = {
    "forgetting in full": _PICKED,
    "a twentieth of forgetting": replace(_PICKED, eta=0.05, zeta=0.025),
    "without forgetting": replace(_PICKED, forget_epochs=0),
}
"""How strongly to forget at the rate that was picked; a twentieth is what the published rate would move the weights by."""
CLOSER = ("lr 0.005 delta 50", "lr 0.005 delta 10", "lr 0.01 delta 10")
"""What was tried on all kinds of noise: where the search began, and what was best on symmetric and asymmetric noise."""
ROUTES: dict[str, dict[str, Any]] = {
    "two rounds": {"preset": "tuned-soft", "rounds": Rounds(rounds=2)},
    "three rounds": {"preset": "tuned-soft", "rounds": Rounds(rounds=3)},
    "two rounds and relabel .9": {"preset": "tuned-soft", "rounds": Rounds(rounds=2, relabel=0.9)},
    "two rounds by the detector": {"preset": "tuned-soft", "rounds": Rounds(rounds=2, second_look="detector")},
    "margin .1": {"preset": "tuned", "split": SplitSettings(margin=0.1)},
    "unlabelled 1": {"settings": replace(_TUNED, unlabelled=1.0)},
    "soft and unlabelled 1": {"settings": replace(_SOFT, unlabelled=1.0)},
    "stop chance": {"settings": replace(_TUNED, stop="chance")},
    "soft and momentum carried": {"settings": replace(_SOFT, momentum_between="carried")},
    "soft without forgetting": {"settings": replace(_SOFT, forget_epochs=0)},
    "beta": {"preset": "tuned-soft", "cut": "beta"},
    "bounded-mixture": {"preset": "tuned-soft", "cut": "bounded-mixture"},
    "per-class": {"preset": "tuned-soft", "cut": "per-class"},
}
"""Options of a repair and of a cut, each by itself; P(clean) calibrated by a mixture, or class by class, is a route by its cut."""


PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "training on": ("random", {"settings": replace(_TUNED, forget_epochs=0), "detector_settings": at_random.Settings(share=0.001)}),
    "without forgetting": ("known", {"settings": replace(_TUNED, forget_epochs=0)}),
    "without centroids": ("known", {"settings": replace(_TUNED, delta=0.0, zeta=0.0)}),
    "cross-entropy alone": ("known", {"settings": replace(_TUNED, forget_epochs=0, delta=0.0)}),
}
"""What a repair consists of, less some of it; training on is so many epochs more under the labels as they are, but for one in a thousand left out by chance."""


def detectors_small() -> Grid:
    """Return detectors and cuts on four kinds of noise, after a shorter and a longer training; repairs on the shorter ones alone."""
    noises, runs = ("sym 50", "asym 40", "instance 40", "none 0"), []
    for noise in noises:
        runs += with_survey(small_start(noise, 30), REPAIRS, MORE_REPAIRS)
    for noise in noises:
        runs += with_survey(small_start(noise, 60), seeds=1, looking=WITHOUT_PROBE)
    notes = (
        "Without noise every label is right: the share that is retained is 100% less what is flagged.",
        "The first 5,000 images, PreActResNet18 of width 16, 4,000 test images; a column is a noise in percent and the epochs of training.",
        "60 epochs: seed 0 alone, and no repairs; probes know nothing of a model's own training, so that those of 30 epochs hold.",
        "Rows that tell detector and preset apart: seed 0 alone.",
    )
    return Grid(runs, detection_layout("detectors-small", runs, notes))


def detectors_10k() -> Grid:
    """Return detectors and cuts on twice as many images, trained for longer, and at a rate by which so few steps suffice."""
    runs = with_survey(small_start("sym 50", 50, limit=10_000, lr=LONGER_LR), more=REPAIRS, looking=WITHOUT_PROBE)
    runs += with_survey(small_start("asym 40", 50, limit=10_000, lr=LONGER_LR), looking=WITHOUT_PROBE)
    notes = (
        f"The first 10,000 images, PreActResNet18 of width 16, 4,000 test images, learning rate {LONGER_LR:g}.",
        "Repairs: seed 0 of symmetric noise alone.",
    )
    return Grid(runs, detection_layout("detectors-10k", runs, notes))


def detectors_wide() -> Grid:
    """Return detectors and cuts where few labels are wrong, and where most are."""
    runs = [run for noise in ("sym 20", "sym 80") for run in with_survey(small_start(noise, 30), REPAIRS, looking=WITHOUT_PROBE)]
    notes = ("The first 5,000 images, PreActResNet18 of width 16, 4,000 test images.",)
    return Grid(runs, detection_layout("detectors-wide", runs, notes), seeds=1)


def detectors_memorised() -> Grid:
    """Return detectors and cuts on a network that was trained for long, twice the steps an epoch, with 2,000 images beside those 5,000 that it never saw."""
    start = small_start("sym 50", 100, limit=7000, width=32, held_out=2 / 7, batch_size=64)
    runs = with_survey(start, looking=WITHOUT_PROBE)
    notes = ("5,000 images trained on, 2,000 held out under given labels to choose a depth by, PreActResNet18 of width 32, 4,000 test images.",)
    return Grid(runs, detection_layout("detectors-memorised", runs, notes), seeds=1)


def small_start(noise: str, epochs: int, *, limit: int = 5000, width: int = 16, **changes: Any) -> Pretrain:
    """Return a training by cross-entropy on the first images of CIFAR-10; half of the epochs before the learning rate falls."""
    settings = cross_entropy.Settings(epochs=epochs, lr_step=epochs // 2, **changes)
    data = replace(SMALL_DATA, limit=limit)
    return Pretrain(dataset="cifar10", model="preactresnet18", width=width, data=data, noise=noise_of(noise), settings=settings)


def with_survey(
    start: Pretrain,
    repairs: Sequence[tuple[str, str]] = (),
    more: Sequence[tuple[str, str]] = (),
    *,
    seeds: int | None = None,
    looking: SurveySettings | None = None,
    purpose: str = "",
) -> list[GridRun]:
    """Return a training, its survey, and the repairs that stand on it, a detector and a preset each; `more` of them for seed 0 alone.

    Without noise there is nothing to know. Runs of another `purpose` lie in folders of their own, so that no grid finds those of another below the same --out.
    """
    noise, words = start.noise, f"{start.settings.epochs} epochs"
    column = f"{f'{noise.noise_mode} {100 * noise.noise_rate:g}' if noise.noise_mode != 'none' else 'none'}, {words}"
    words = f"{words} {purpose}".strip()
    original = GridRun(start, (start.dataset, "original", column), words=words, seeds=seeds)
    survey = GridRun(Survey(LATER, survey=looking or SurveySettings()), (start.dataset, "survey", column), original, seeds=seeds)
    wanted = [(pair, seeds) for pair in repairs] + [(pair, 1) for pair in more]
    return [
        original,
        survey,
        *(
            GridRun(Unlearn(LATER, detector=detector, preset=preset), (start.dataset, f"FSPMU {preset}, {detector}", column), original, seeds=count)
            for (detector, preset), count in wanted
            if detector != "known" or noise.noise_mode != "none"
        ),
    ]


def detection_layout(name: str, runs: Sequence[GridRun], notes: tuple[str, ...]) -> Layout:
    """Return how a grid of detectors is shown: its columns and the rows of its accuracies are those of its runs, in their order."""
    cells = [run.cell for run in runs]
    data, columns = tuple(dict.fromkeys(data for data, _, _ in cells)), tuple(dict.fromkeys(column for _, _, column in cells))
    rows = tuple(dict.fromkeys(row for _, row, _ in cells if row != "survey"))
    return Layout(name, "forget set = known or found by a detector", data, rows, columns, notes)


def recipes() -> Grid:
    """Return the search for the presets and defaults of our own: a seed and, but for none, kinds of noise by which no other grid judges them."""
    runs: list[GridRun] = []
    thorough, brief = ("sym 35", "asym 30"), ("instance 30", "none 0")
    for noise in (*thorough, *brief, "sym 70"):
        wanted = [("gmm", "original"), ("known", "original")]
        original, *others = with_survey(small_start(noise, 30), wanted, looking=WITHOUT_PROBE, purpose="to choose by")
        runs += [original, *others]
        for recipes_of, detector in ((RECIPES, "known"), (SOFT_RECIPES, LEADING)):
            names = [words for words in recipes_of if noise in thorough or (noise in brief and words.removesuffix(" soft") in CLOSER)]
            runs += [repair_of(original, words, detector, settings=recipes_of[words]) for words in names if detector != "known" or noise != "none 0"]
        runs += _forgetting_of(original)
    notes = ("The first 5,000 images, PreActResNet18 of width 16, 4,000 test images, seed 7. By these the presets and defaults were chosen.",)
    return Grid(runs, detection_layout("recipes-small", runs, notes), seeds=1, first_seed=7)


def _forgetting_of(original: GridRun) -> list[GridRun]:
    """Return repairs by masks and by weights that forget more or less strongly."""
    soft = {f"{words} soft": replace(settings, weighting="clean-probability") for words, settings in FORGETTING.items()}
    known = {} if original.start.noise.noise_mode == "none" else FORGETTING
    return [repair_of(original, words, detector, settings=asked) for detector, tried in (("known", known), (LEADING, soft)) for words, asked in tried.items()]


def routes() -> Grid:
    """Return what might recover better, each by itself, beside the presets of our own: on half of the labels drawn anew."""
    original, *others = with_survey(small_start("sym 50", 30), REPAIRS, MORE_REPAIRS)
    runs = [original, *others, *(repair_of(original, words, LEADING, **changes) for words, changes in ROUTES.items())]
    runs += [repair_of(original, words, detector, **changes) for words, (detector, changes) in PARTS.items()]
    notes = ("The first 5,000 images, PreActResNet18 of width 16, 4,000 test images.",)
    return Grid(runs, detection_layout("routes-small", runs, notes), seeds=1)


def repair_of(original: GridRun, words: str, detector: str, preset: str | None = None, **changes: Any) -> GridRun:
    """Return a repair by `fspmu` that stands on a training; `words` tell it from others with that detector and preset, in its title and in the table."""
    data, _, column = original.cell
    row = f"FSPMU {words}, {detector}" if preset is None else f"FSPMU {preset}, {detector}, {words}"
    return GridRun(Unlearn(LATER, detector=detector, preset=preset, **changes), (data, row, column), original, words=words)
