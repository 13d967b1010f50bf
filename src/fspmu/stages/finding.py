"""The first half of a repair: a model and the images it was trained on -> evidence -> score -> P(clean) -> split and label issues."""

import copy
import functools
import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.data.images import Images
from fspmu.data.split import Split, indices_of
from fspmu.detection import DEFAULT, DETECTORS
from fspmu.detection.cuts import SplitSettings, forget_memorised, split_at
from fspmu.detection.evidence import Detector, Evidence
from fspmu.detection.label_issues import Opinions, join_opinions, label_issues, opinions_of
from fspmu.detection.quality import detection_quality
from fspmu.engine.inference import Predictions, predict
from fspmu.engine.run import Run
from fspmu.errors import DetectionWarning, InputError, check_settings, choose
from fspmu.models.classifier import Classifier, reinitialised
from fspmu.pretraining import METHODS as PRETRAINING

FEATURE_BYTES = 64 * 2**20
"""Features of a set that would need more than this are kept for a share of its samples, evenly spaced."""


@dataclass(frozen=True)
class Detection:
    """What a detector found in `images`: scores (N,) HIGH = looks wrong, the split, and a report with the detector's quality where the truth is known."""

    score: Tensor
    split: Split
    predictions: Predictions
    images: Images = field(repr=False)
    report: dict[str, Any]

    @functools.cached_property  # a table of a million rows is made only for whoever looks at it
    def issues(self) -> pd.DataFrame:
        """A row for each image as the model sees it before any repair: see `label_issues`."""
        return label_issues(self.images, self.split, opinions_behind(self.predictions.logits, self.images.given_labels))


def find_label_issues(
    model: Classifier,
    images: Images,
    *,
    detector: str = DEFAULT,
    settings: Any = None,
    cut: SplitSettings | None = None,
    truth: Tensor | None = None,
    unseen: Tensor | None = None,
    predictions: Predictions | None = None,
    run: Run | None = None,
) -> Detection:
    """Return the samples of `images` whose label looks wrong to `model`.

    truth (N,) true labels: shown to the detector `known` alone, and used to judge the others. unseen (N,) bool: samples that no detector may look at; they are
    neither retained nor forgotten, with a score of NaN. predictions: of the same model on the same images, where they are there already. The model is left as
    it is. Raises InputError for an unknown detector, for images that do not fit the model, or when `known` is asked for without the truth.
    """
    chosen, run = choose(DETECTORS, detector, "detector"), run or Run.create()
    settings, cut = settings or chosen.settings, cut or SplitSettings()
    for asked in (settings, cut):
        check_settings(asked)
    trained_by = model.description.trained_by if model.description else ""
    if detector == "gmm" and trained_by in PRETRAINING and PRETRAINING[trained_by].preset == "nll":
        run.notice(f"{trained_by} has kept most wrong labels out of training already; --detector gmm-probe also finds those that it memorised all the same")
    as_given = images
    images, model = prepared(model, images, run)
    with run.timed("detection"):
        predictions = predictions or predict(model, images, run, rows=kept_rows(len(images), model.feature_width))
        if not bool(predictions.logits.isfinite().all()):
            raise InputError("the model's outputs are not finite on its own training images: its weights are damaged, or --precision bf16 is too coarse")
        seen = None if unseen is None or not bool(unseen.any()) else indices_of(~unseen)
        shown = images if seen is None else images.subset(seen)
        shown_truth = truth if truth is None or seen is None else truth[seen]
        logits = predictions.logits if seen is None else predictions.logits[seen]
        evidence = gather(chosen.needs, model, shown, logits, shown_truth, run, settings)
        draws = run.generator("score", detector), run.generator("cut", detector)
        score, clean, early, remarks, parts = run.processes.from_main(lambda: _judge(chosen, evidence, settings, *draws))
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
    axis = chosen.axis if early is None else "noise probability"
    mixture = {"axis": axis, "threshold": score_at(score, split.clean_probability, cut.threshold), "components": [] if early is not None else parts}
    quality = None if shown_truth is None else detection_quality(score, split, evidence.given_labels, shown_truth)
    if seen is not None:
        score, split = _spread(score, seen, len(images), float("nan")), split_among(split, seen, len(images))
    report = {"detector": detector, "settings": asdict(settings), "quality": quality, "mixture": mixture}
    return detection_of(as_given, split, predictions, score, report | {"passes": run.passes["detection"]})


def detection_of(images: Images, split: Split, predictions: Predictions, score: Tensor, report: dict[str, Any]) -> Detection:
    """Return what was found as one thing: the split, and the issues as the model of `predictions` sees them."""
    seen = ~split.clean_probability.isnan()
    return Detection(score, split, predictions, images, report | split.counts | {"issues": int((split.forget | ~split.retain)[seen].sum())})


def score_at(score: Tensor, clean_probability: Tensor, threshold: float) -> float | None:
    """Return the score, HIGH = looks wrong, above which P(clean) (N,) is not above `threshold`: between two samples; None where one side is empty.

    A wide component may call the lowest scores wrong too: these do not count.
    """
    order = score.argsort(stable=True)
    good = (clean_probability[order] > threshold).nonzero().squeeze(1)
    if not len(good) or int(good[-1]) + 1 == len(score):
        return None
    last = int(good[-1])
    return float((score[order[last]].double() + score[order[last + 1]].double()) / 2)


def split_among(split: Split, rows: Tensor, total: int) -> Split:
    """Return the split of the samples at `rows` (M,) as one of all `total`: the others are in neither mask, their P(clean) NaN."""
    retain, forget = (_spread(mask, rows, total, False) for mask in (split.retain, split.forget))
    return Split(retain, forget, _spread(split.clean_probability, rows, total, float("nan")))


def _spread(values: Tensor, rows: Tensor, total: int, empty: float) -> Tensor:
    spread = torch.full((total,), empty, dtype=values.dtype)
    spread[rows] = values
    return spread


def kept_rows(samples: int, width: int) -> Tensor | None:
    """Return the places (M,) of the samples whose features of `width` are kept, evenly spaced; None: all of them."""
    most = max(1, FEATURE_BYTES // (4 * width))
    return None if samples <= most else torch.arange(most) * samples // most


def opinions_behind(logits: Tensor, given_labels: Tensor) -> Opinions:
    """Return the opinions behind logits (N, K), without the probabilities of all samples at once."""
    batches = zip(torch.split(logits, 65_536), torch.split(given_labels.cpu(), 65_536), strict=True)
    return join_opinions((opinions_of(z.softmax(1), labels) for z, labels in batches), len(logits))


def _judge(
    detector: Detector, evidence: Evidence, settings: Any, *generators: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None, list[str], list[dict[str, Any]]]:
    """Return score (N,), HIGH = looks wrong, P(clean) (N,), the same by the early score if there is one, what was remarked, and the mixture's components."""
    parts: list[dict[str, Any]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DetectionWarning)
        score = detector.score(evidence, settings, generators[0])
        if detector.mixture is None:
            clean = detector.cut(score, evidence.given_labels, settings, generators[1])
        else:
            clean, components = detector.mixture(score, evidence.given_labels, settings, generators[1])
            parts = [part._asdict() for part in components]
        early = None
        if detector.early is not None:
            early = detector.cut(detector.early(evidence, settings, generators[0]), evidence.given_labels, settings, generators[1])
    return score, clean, early, [str(warning.message) for warning in caught], parts


def gather(needs: frozenset[str], model: Classifier, images: Images, logits: Tensor, truth: Tensor | None, run: Run, settings: Any = None) -> Evidence:
    """Return the evidence that a detector with these `settings` declares in `needs`, and no more; logits (N, K) are the model's of `images`."""
    given = images.given_labels.cpu()
    found: dict[str, Tensor] = {}
    if "logits" in needs:
        found["logits"] = logits
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


def prepared(model: Classifier, images: Images, run: Run) -> tuple[Images, Classifier]:
    """Return images and a copy of the model on the device, the images prepared as the model was trained with."""
    if model.num_classes != images.num_classes or (model.class_names and model.class_names != images.class_names):
        theirs = ", ".join(model.class_names) or f"{model.num_classes} classes"
        raise InputError(f"the model knows the classes [{theirs}], the images have [{', '.join(images.class_names)}]; the two must agree in order")
    if model.description is not None:
        images = images.prepared_as(model.description.preprocessing)
    return images.to(run.device), run.place(copy.deepcopy(model))
