"""Open this first: a trained model and the images it was trained on -> label issues, a repaired model, and what changed.

    take in -> find what looks wrong -> forget it and recover -> compare before and after -> hand back

Each step is a function that can be called alone: `take_in`, `find_label_issues`, `mend` (`repair_rounds`: find and mend more than once), `compare`, and
`write_repair`.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.detection import DEFAULT
from fspmu.detection.label_issues import label_issues, to_cleanlab
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.checkpoint import load_tensors
from fspmu.engine.device import asked_precision
from fspmu.engine.handing_back import like, weights_hash
from fspmu.engine.inference import accuracy_of, predict
from fspmu.engine.rebuilding import lay_in
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.models.adopt import Adopted
from fspmu.models.classifier import Classifier
from fspmu.report.run_files import read_issues
from fspmu.report.summary import SHOWN, summary_html
from fspmu.results.record import make_record
from fspmu.results.store import RunFolder, read_json
from fspmu.stages.asking import Asked, check_given, config_of, forget_set, settled
from fspmu.stages.deciding import Decided, decide_found, decide_split, held_apart, mark_decided, read_decided
from fspmu.stages.finding import Detection, detection_of, find_label_issues, opinions_behind, prepared
from fspmu.stages.gathering import Looked, kept_rows
from fspmu.stages.judging import compare, verdict
from fspmu.stages.mending import Mended, fitted_settings
from fspmu.stages.page_material import given_settings
from fspmu.stages.rounds import Rounds, repair_rounds
from fspmu.stages.taking_in import Intake, Taken, take_in
from fspmu.stages.writing import Work, check_out, entered, write_repair

IMPLAUSIBLE = 0.5
"""Agreement with the given labels below which a model was hardly trained on them as they are seen here."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Repair:
    """What came of a repair.

    model: the repaired model, of the type that was given; the very model that was given where the repair did not pay. issues: a row for each image that could
    be read, in dataset order (docs/own_model.md explains the columns). record: every figure, as in `record.json`.
    """

    model: nn.Module
    issues: pd.DataFrame
    record: Json
    work: Work | None = None
    """What `save` writes; None where the result was read from the folder of an earlier run."""

    def to_cleanlab(self) -> pd.DataFrame:
        """Return the issues as cleanlab's CleanLearning takes them: labels as numbers, `label_quality` LOW = bad."""
        return to_cleanlab(self.issues, self.record["data"]["classes"])

    def save(self, folder: str | Path) -> Path:
        """Write model, issues and record into a new folder, as `fspmu repair` does; return it.

        Raises InputError when the folder holds anything, or this result came out of one.
        """
        if self.work is None:
            raise InputError("this result was read from the folder of an earlier run, where everything lies already; copy that folder")
        target = RunFolder(folder)
        target.open(self.record["config"], resume=True)  # what a save that failed left there is written anew
        try:
            if target.finished:
                raise InputError(f"{target.path} already holds this result; give another folder")
            write_repair(self.work, self.issues, self.record, target.path)
            target.finish()
        finally:
            target.close()
        return target.path

    def _repr_html_(self) -> str:
        worst = self.issues[self.issues["is_label_issue"]].sort_values("label_score", kind="stable")
        return summary_html(self.record, worst.head(SHOWN).to_dict("records"))


def repair(
    model: nn.Module,
    images: Any,
    *,
    out: str | Path | None = None,
    evaluation: Any = None,
    detector: str | None = None,
    forget: Any = None,
    method: str = "fspmu",
    preset: str | None = None,
    settings: Any = None,
    detector_settings: Any = None,
    cut: str | None = None,
    cut_settings: Any = None,
    split: SplitSettings | None = None,
    rounds: Rounds | None = None,
    corrections: str | Path | None = None,
    truth: Tensor | None = None,
    history: Tensor | None = None,
    keep: str = "better",
    class_names: Sequence[str] | None = None,
    class_map: str | Path | Mapping[str, str] | None = None,
    class_order: str | None = None,
    head: str | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: str = "none",
    hold_out: float = 0.1,
    storage: str = "auto",
    limit: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Repair:
    """Return `model` without what it learned from labels of `images` that look wrong.

    model: any classifier whose last layer is linear; it is left as it is. images, evaluation: a folder per class, a CSV file, a data set, a pair of arrays, or
    anything else that `load_images` takes. With `out` everything is written there too, and the same call goes on where it was stopped. The other arguments
    are those of `Intake` and `Asked`, where they are explained.
    Raises InputError for what cannot be carried out as given, and EmptySplit when there is nothing to retain.
    """
    found_by = {"detector": detector, "detector_settings": detector_settings, "cut": cut, "cut_settings": cut_settings, "split": split}
    check_given(forget, [name for name, value in found_by.items() if value is not None])
    if out is not None:
        check_out(out, images, evaluation)
    run = Run.create(device=device, precision=precision, seed=seed, progress=progress)
    names = None if class_names is None else tuple(class_names)
    centre, spread = (None if values is None else tuple(float(value) for value in values) for values in (mean, std))
    intake = Intake(names, class_order, head, size, centre, spread, augment, hold_out, storage, limit)
    given = None if corrections is None else Path(corrections)
    how = (forget, truth, history, method, preset, settings, keep, settings is None, given, rounds or Rounds())
    asked = Asked(detector or DEFAULT, detector_settings, cut, cut_settings, split or SplitSettings(), *how)
    taken = take_in(model, images, evaluation, intake, run, class_map=class_map)
    config = config_of(taken, asked, run) | asked_precision(precision)
    return carry_out(taken, asked, run, config) if out is None else _carry_into(out, taken, asked, run, config)


def _carry_into(out: str | Path, taken: Taken, asked: Asked, run: Run, config: Json) -> Repair:
    """Return the repair of what was taken in, and leave it in a folder; a finished one is read."""
    with entered(out, config, run) as folder:
        if folder.finished:
            return read_back(folder.path, taken)
        result = carry_out(taken, asked, run, config)
        if result.work is not None and run.processes.main:
            write_repair(result.work, result.issues, result.record, folder.path)
            folder.finish()
        return result


def carry_out(taken: Taken, asked: Asked, run: Run, config: Json | None = None) -> Repair:
    """Return the repair of what was taken in: the whole method on a screen. `config` is what the record says was asked for.

    Raises what `repair` raises.
    """
    config = config or config_of(taken, asked, run)
    taken, asked = settled(taken, asked, run)
    decided = None if asked.corrections is None else read_decided(asked.corrections, taken.images, taken.evaluation)
    if decided is not None:
        taken = held_apart(taken, decided, run)
    images, held = taken.images, taken.held
    found = find(taken, asked, run)
    looked = found.looked if bool(held.any()) else None  # it may be as large as the images: nobody keeps it for longer than it is needed
    found = replace(found, looked=None)
    if decided is not None:
        found = decide_found(found, decided, images, asked.truth)
    warn_of_disagreement(found, images, run)
    settings = asked.settings_for(taken.model)
    if asked.fit:
        settings = fitted_settings(settings, asked.method, taken.model, images, found.split, run)
    run.evaluation = taken.evaluation
    how: Json = {"method": asked.method, "settings": settings, "finding": {**_wanted(taken, asked), "unseen": held}, "truth": asked.truth}
    mended = repair_rounds(taken.model, images, asked.rounds, **how, found=found, decided=decided, run=run)
    found = mended.detection
    comparison, kept, sentence = None, True, ""
    if mended.right is not None:
        comparison = compare(*mended.right, run.generator("bootstrap"))
        better, sentence = verdict(comparison, taken.kind, found.split.counts["retain"] / int((~held).sum()))
        kept = better or asked.keep == "always"
        sentence = sentence if better == kept else sentence.replace("the model you gave is", "as asked, the repaired model is still")
        run.notice(sentence)
    issues = issues_of(mended, taken, asked, run, decided, looked)
    network = mended.model if kept else taken.model
    record = make_record(
        config=config,
        data=taken.described(),
        detection=found.report | {"issues": int(issues["is_label_issue"].sum())},
        unlearning=mended.report,
        test_accuracy=mended.test_accuracy,
        evaluation=None if comparison is None else asdict(comparison) | {"kind": taken.kind, "handed_back": "repaired" if kept else "original"},
        seconds=run.seconds,
        passes=run.passes,
        warnings=run.notices,
        machine=run.machine,
    )
    work = Work(taken, mended, network, weights_hash(taken.given), comparison, sentence, tuple(run.lines), _explained(asked, settings))
    return Repair(given_back(network, taken.given) if kept else taken.given, issues, record, work)


def _explained(asked: Asked, settings: Any) -> tuple[tuple[str, str, str], ...]:
    """Return whatever was set, explained."""
    if asked.forget is not None:
        return given_settings(method=settings)
    choice = asked.choice
    return given_settings(detector=choice.settings, cut=choice.cut_settings, split=asked.split, method=settings, rounds=asked.rounds)


def find(taken: Taken, asked: Asked, run: Run) -> Detection:
    """Return what looks wrong, by a detector or by somebody else; what is held out is in neither mask."""
    if asked.forget is None:
        return find_label_issues(taken.model, taken.images, **_wanted(taken, asked), truth=asked.truth, unseen=taken.held, run=run)
    given = forget_set(taken, asked)
    unknown = given.clean_probability.masked_fill(taken.held, float("nan"))  # as of what a detector may not look at
    split = Split(given.retain & ~taken.held, given.forget & ~taken.held, unknown)
    images, model = prepared(taken.model, taken.images, run)
    with run.timed("detection"):
        seen = predict(model, images, run, rows=kept_rows(len(images), model.feature_width))
    report = {"detector": "given", "settings": {}, "quality": None, "passes": run.passes["detection"]}
    return detection_of(taken.images, split, seen, 1 - split.clean_probability, report)


def _wanted(taken: Taken, asked: Asked) -> Json:
    """Return how `find_label_issues` is asked; images to measure on tell where to look, too, but for those that the model was trained on."""
    choice = asked.choice
    how = {"detector": choice.detector, "settings": choice.settings, "cut": choice.cut, "cut_settings": choice.cut_settings, "split": asked.split}
    return how | {"history": asked.history, "fresh": taken.evaluation if taken.kind == "given" else None}


def issues_of(mended: Mended, taken: Taken, asked: Asked, run: Run, decided: Decided | None = None, looked: Looked | None = None) -> pd.DataFrame:
    """Return a row for each image as the repaired model sees it.

    Images that were held out are judged now, by the detector and the model as it was, with all labels at hand, or by whoever gave the forget set: their
    `action` is review. looked: what the model as it was said of all images, if somebody kept it.
    """
    found, held = mended.detection, taken.held
    if not bool(held.any()):
        return mended.issues if decided is None else mark_decided(mended.issues, decided, taken.images.class_names)
    split, clean = found.split, found.split.clean_probability
    if asked.forget is None:
        aside = replace(run, folder=None, notices=list(run.notices), lines=[], _uncounted=[0, 0])  # what it saves and remarks is about another set
        judged = find_label_issues(taken.model, taken.images, **_wanted(taken, asked), truth=asked.truth, looked=looked, run=aside)
        clean = torch.where(held, judged.split.clean_probability, clean)
        trusted = Split(split.retain | held & asked.split.clean(clean), split.forget, clean)
    else:
        trusted = forget_set(taken, asked)
        trusted = trusted if decided is None else decide_split(trusted, decided)
    issues = label_issues(taken.images, trusted, opinions_behind(mended.after.logits, taken.images.given_labels))
    rows = held.numpy()
    issues.loc[rows, "retain"], issues.loc[rows, "action"] = False, "review"
    return issues if decided is None else mark_decided(issues, decided, taken.images.class_names)


def warn_of_disagreement(found: Detection, images: Images, run: Run) -> None:
    """Say it where the model agrees with so few of the labels that it was hardly trained on them as they are seen here."""
    agreement = accuracy_of(found.predictions.logits, images.given_labels.cpu())
    if agreement < IMPLAUSIBLE:
        run.notice(
            f"the model agrees with only {agreement:.1%} of the given labels, which is implausible for images it was trained on: "
            "check size, mean and std, and the order of its classes, before you trust any of this"
        )


def given_back(network: Classifier, given: nn.Module) -> nn.Module:
    """Return the repaired network as its owner knows it: of the given type, on the given device and in the given number format."""
    return like(given, network.module if isinstance(network, Adopted) and not isinstance(given, Adopted) else network)


def read_back(folder: Path, taken: Taken) -> Repair:
    """Return the result of a finished repair of the same model."""
    record, issues = read_json(folder / "record.json"), read_issues(folder / "label_issues.csv")
    if (record.get("evaluation") or {}).get("handed_back") == "original":
        return Repair(taken.given, issues, record)
    network = copy.deepcopy(taken.model)
    lay_in(network.module if isinstance(network, Adopted) else network, load_tensors(folder / "model.safetensors"), folder)
    return Repair(given_back(network, taken.given), issues, record)
