"""Open this first: a model and the images it was trained on -> label issues, a repaired model, and what changed.

    evidence -> score -> P(clean) -> split -> unlearning -> before and after

Each line above is a function below, or one in `detection` or `unlearning`; nothing here knows a method by name.
"""

import copy
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.detection import DETECTORS
from fspmu.detection.cuts import SplitSettings, forget_memorised, split_at
from fspmu.detection.evidence import Detector, Evidence
from fspmu.detection.label_issues import Opinions, join_opinions, label_issues, opinions_of
from fspmu.detection.quality import detection_quality
from fspmu.engine.inference import Predictions, accuracy_of, evaluate, predict
from fspmu.engine.run import Run
from fspmu.errors import DetectionWarning, InputError, check_settings, choose
from fspmu.models.classifier import Classifier, reinitialised
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.unlearning import METHODS as UNLEARNING


@dataclass(frozen=True)
class Detection:
    """What a detector found: scores (N,) HIGH = looks wrong, the split, the issues, and the detector's quality where the truth is known."""

    score: Tensor
    split: Split
    predictions: Predictions
    issues: pd.DataFrame
    report: dict[str, Any]


@dataclass(frozen=True)
class Repair:
    """The repaired model, what was found before, what the model says of every training image after, and the figures."""

    model: Classifier
    detection: Detection
    after: Predictions
    issues: pd.DataFrame
    report: dict[str, Any]
    test_accuracy: dict[str, float | None]


def find_label_issues(
    model: Classifier,
    images: Images,
    *,
    detector: str = "gmm",
    settings: Any = None,
    cut: SplitSettings | None = None,
    truth: Tensor | None = None,
    run: Run | None = None,
) -> Detection:
    """Return the samples of `images` whose label looks wrong to `model`.

    truth (N,) true labels: shown to the detector `known` alone, and used to judge the others. The model is left as it is.
    Raises InputError for an unknown detector, for images that do not fit the model, or when `known` is asked for without the truth.
    """
    chosen, run = choose(DETECTORS, detector, "detector"), run or Run.create()
    settings, cut = settings or chosen.settings, cut or SplitSettings()
    for asked in (settings, cut):
        check_settings(asked)
    trained_by = model.description.trained_by if model.description else ""
    if detector == "gmm" and trained_by in PRETRAINING and PRETRAINING[trained_by].preset == "nll":
        run.notice(f"{trained_by} has kept most wrong labels out of training already; --detector gmm-probe also finds those that it memorised all the same")
    images, model = _prepared(model, images, run)
    with run.timed("detection"):
        predictions = predict(model, images, run)
        if not bool(predictions.logits.isfinite().all()):
            raise InputError("the model's outputs are not finite on its own training images: its weights are damaged, or --precision bf16 is too coarse")
        evidence = gather(chosen.needs, model, images, predictions, truth, run, settings)
        draws = run.generator("score", detector), run.generator("cut", detector)
        score, clean, early, remarks = run.processes.from_main(lambda: _judge(chosen, evidence, settings, *draws))
        for remark in remarks:
            run.notice(remark)
        split = split_at(clean, score, evidence.given_labels, images.num_classes, cut if chosen.floor else replace(cut, class_floor=0))
        if saved := {images.class_names[k] for k in evidence.given_labels[split.retain & (clean <= cut.threshold)].tolist()}:
            run.notice(
                f"every label of {', '.join(sorted(saved))} looks wrong; the {cut.class_floor} surest of each are kept, so that the class is not unlearned"
            )
        if early is not None:
            split = forget_memorised(split, early, cut)
            score = 1 - split.clean_probability
    quality = None if truth is None else detection_quality(score, split, evidence.given_labels, truth)
    issues = label_issues(images, split, _opinions(predictions.logits, images.given_labels))
    report = {"detector": detector, "settings": asdict(settings), "quality": quality, **split.counts, "issues": int(issues["is_label_issue"].sum())}
    return Detection(score, split, predictions, issues, report | {"passes": run.passes["detection"]})


def _opinions(logits: Tensor, given_labels: Tensor) -> Opinions:
    """Return the opinions behind logits (N, K), without the probabilities of all samples at once."""
    batches = zip(torch.split(logits, 65_536), torch.split(given_labels.cpu(), 65_536), strict=True)
    return join_opinions((opinions_of(z.softmax(1), labels) for z, labels in batches), len(logits))


def _judge(detector: Detector, evidence: Evidence, settings: Any, *generators: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None, list[str]]:
    """Return score (N,), HIGH = looks wrong, P(clean) (N,), the same by the early score if there is one, and what the detector had to remark."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DetectionWarning)
        score = detector.score(evidence, settings, generators[0])
        clean = detector.cut(score, evidence.given_labels, settings, generators[1])
        early = None
        if detector.early is not None:
            early = detector.cut(detector.early(evidence, settings, generators[0]), evidence.given_labels, settings, generators[1])
    return score, clean, early, [str(warning.message) for warning in caught]


def gather(
    needs: frozenset[str], model: Classifier, images: Images, predictions: Predictions, truth: Tensor | None, run: Run, settings: Any = None
) -> Evidence:
    """Return the evidence that a detector with these `settings` declares in `needs`, and no more."""
    given = images.given_labels.cpu()
    found: dict[str, Tensor] = {}
    if "logits" in needs:
        found["logits"] = predictions.logits
    if "reference_losses" in needs:
        found["reference_losses"] = F.cross_entropy(predict(model, images, run, reference=True).logits, given, reduction="none")
    if {"probe_losses", "reference_probe_losses"} & needs:
        probe = train_probe(model, images, settings.probe_epochs or (10 if images.num_classes <= 20 else 30), settings.probe_lr, run)
        for name in needs & {"probe_losses", "reference_probe_losses"}:
            seen = predict(probe, images, run, reference=name.startswith("reference"), batch_statistics=False)
            found[name] = F.cross_entropy(seen.logits, given, reduction="none")
    if "truth" in needs:
        if truth is None:
            raise InputError("the true labels are not known here, so there is no detector 'known'; choose another --detector")
        found["truth"] = truth.cpu()
    return Evidence(given, images.num_classes, **found)


def train_probe(model: Classifier, images: Images, epochs: int, lr: float, run: Run) -> Classifier:
    """Return a fresh network of the same kind as `model`, trained on all given labels for a few epochs: before it has memorised the wrong ones."""
    settings = replace(PRETRAINING["ce"].settings, epochs=epochs, lr=lr, lr_step=epochs)
    evaluation, run.evaluation = run.evaluation, None  # nobody asks how good the probe is
    with run.timed("probe"):
        trained = PRETRAINING["ce"].pretrain(images, lambda generator: reinitialised(model, generator).requires_grad_(True), settings, run)
    run.evaluation = evaluation
    return trained.models[0]


def repair(
    model: Classifier,
    images: Images,
    *,
    method: str = "fspmu",
    settings: Any = None,
    detector: str = "gmm",
    detector_settings: Any = None,
    cut: SplitSettings | None = None,
    truth: Tensor | None = None,
    run: Run | None = None,
) -> Repair:
    """Return a copy of `model` that has forgotten the labels of `images` that look wrong, and recovered on the rest.

    settings None: the preset that suits how the model was trained. Without anything to forget the model comes back unchanged.
    Raises what `find_label_issues` raises, and EmptySplit when there is nothing to retain.
    """
    chosen, run = choose(UNLEARNING, method, "method"), run or Run.create()
    settings = settings or suitable_settings(method, model)
    check_settings(settings)
    found = find_label_issues(model, images, detector=detector, settings=detector_settings, cut=cut, truth=truth, run=run)
    split = found.split
    images, model = _prepared(model, images, run)
    if run.evaluation is not None:
        run.evaluation = run.evaluation.prepared_as(images.preprocessing).to(run.device)
    before = evaluate(model, run)
    with run.timed("unlearning"):
        if split.counts["forget"]:
            model = chosen.unlearn(model, images, split, settings, run).eval()
        else:
            model.eval()
            run.notice("nothing looks wrong, so there is nothing to forget: the model is returned unchanged")
    with run.timed("evaluation"):
        last, after = evaluate(model, run), predict(model, images, run)
    if before is not None and last is not None and last < before:
        run.notice(f"the repaired model is WORSE on the evaluation images: {last:.2%} after, {before:.2%} before; keep the model you had")
        run.notices.insert(0, run.notices.pop())  # the first thing to know
    report = {"method": method, "settings": asdict(settings), "audit": audit(found.predictions, after, split, images.given_labels.cpu(), truth)}
    best = max(run.accuracies("unlearning"), default=last)
    return Repair(
        model,
        found,
        after,
        label_issues(images, split, _opinions(after.logits, images.given_labels)),
        report | {"passes": run.passes["unlearning"]},
        {"before": before, "last": last, "best": best},
    )


def suitable_settings(method: str, model: Classifier | None, preset: str | None = None) -> Any:
    """Return the settings of the named preset of `method`, or of the one that suits how `model` was trained.

    Raises InputError when the method has no such preset.
    """
    chosen = choose(UNLEARNING, method, "method")
    if preset is not None:
        if not chosen.presets:
            raise InputError(f"{method} has no presets; leave --preset out")
        return choose(chosen.presets, preset, f"preset of {method}")
    trained_by = model.description.trained_by if model is not None and model.description else ""
    suited = PRETRAINING[trained_by].preset if trained_by in PRETRAINING else ""
    return chosen.presets.get(suited, chosen.settings)


def audit(before: Predictions, after: Predictions, split: Split, given: Tensor, truth: Tensor | None) -> dict[str, dict[str, float | None]]:
    """Return accuracies on the forget and the retain set before and after, fractions.

    On the forget set the agreement with the given labels should fall to chance, and with the truth (where known) rise.
    """

    def agreement(predictions: Predictions, labels: Tensor | None, mask: Tensor) -> float | None:
        return None if labels is None or not bool(mask.any()) else accuracy_of(predictions.logits[mask], labels[mask])

    figures = {}
    for name, predictions in (("before", before), ("after", after)):
        figures[name] = {
            "forget_given": agreement(predictions, given, split.forget),
            "forget_true": agreement(predictions, truth, split.forget),
            "retain_given": agreement(predictions, given, split.retain),
        }
    return figures


def _prepared(model: Classifier, images: Images, run: Run) -> tuple[Images, Classifier]:
    """Return images and a copy of the model on the device, the images prepared as the model was trained with."""
    if model.num_classes != images.num_classes or (model.class_names and model.class_names != images.class_names):
        theirs = ", ".join(model.class_names) or f"{model.num_classes} classes"
        raise InputError(f"the model knows the classes [{theirs}], the images have [{', '.join(images.class_names)}]; the two must agree in order")
    if model.description is not None:
        images = images.prepared_as(model.description.preprocessing)
    return images.to(run.device), run.place(copy.deepcopy(model))
