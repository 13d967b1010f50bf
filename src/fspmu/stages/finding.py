"""The first half of a repair: a model and the images it was trained on -> evidence -> score -> P(clean) -> split and label issues."""

import copy
import functools
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.detection import DEFAULT
from fspmu.detection.label_issues import Opinions, join_opinions, label_issues, opinions_of
from fspmu.detection.quality import detection_quality
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.inference import Predictions
from fspmu.engine.run import Run
from fspmu.errors import InputError, check_settings
from fspmu.models.classifier import Classifier
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.pretraining import Pretraining
from fspmu.stages.choosing import Choice, choose_detection
from fspmu.stages.gathering import Beside, Looked, check_needs, gather, look
from fspmu.stages.scoring import Judged, cut_scores, final_score, score_evidence, split_judged


@dataclass(frozen=True)
class Detection:
    """What a detector found in `images`: scores (N,) HIGH = looks wrong, the split, and a report with the detector's quality where the truth is known."""

    score: Tensor
    split: Split
    predictions: Predictions
    images: Images = field(repr=False)
    report: dict[str, Any]
    looked: Looked | None = field(default=None, repr=False)
    """What the model itself said of all samples, to judge others of them without another look."""

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
    cut: str | None = None,
    cut_settings: Any = None,
    split: SplitSettings | None = None,
    truth: Tensor | None = None,
    unseen: Tensor | None = None,
    history: Tensor | None = None,
    fresh: Images | Tensor | None = None,
    looked: Looked | None = None,
    run: Run | None = None,
) -> Detection:
    """Return the samples of `images` whose label looks wrong to `model`.

    cut: how scores become P(clean); None: what suits the detector. truth (N,) true labels: shown to the detector `known` alone, and used to judge the others.
    unseen (N,) bool: samples that no detector may look at; they are neither retained nor forgotten, with a score of NaN. history (E, N): the margin of the
    given label in every epoch of the model's own training, for detectors that ask for it. fresh: labelled images that the model never saw, or which of these
    it never saw, (N,) bool; they tell where in the network to look. looked: what the same model said of the same images before. The model is left as it is.
    Raises InputError for an unknown detector or cut, for images that do not fit the model, and for what a detector needs and nobody has.
    """
    choice, run = choose_detection(detector, settings, cut, cut_settings), run or Run.create()
    split_settings, beside = split or SplitSettings(), Beside(truth, unseen, history, fresh)
    check_settings(split_settings)
    needs = choice.how.needs_with(choice.settings) | (choice.how.optional & (frozenset() if history is None else frozenset({"history"})))
    check_needs(needs, choice.settings, images, beside)
    if model.description and training_of(model).robust and choice.how.early is None and choice.how.floor:
        trained_by = model.description.trained_by
        run.notice(f"{trained_by} has kept most wrong labels out of training already; --detector gmm-probe also finds those that it memorised all the same")
    as_given = images
    images, model = prepared(model, images, run)
    with run.timed("detection"):
        looked = looked or look(needs, model, images, choice.settings, beside, run)
        evidence = gather(needs, model, images, looked, beside, choice.settings, run)
        draws = run.generator("score", detector), run.generator("cut", detector)
        judged = run.processes.from_main(lambda: cut_scores(choice, score_evidence(choice, evidence, draws[0]), evidence.given_labels, draws[1]))
        for remark in judged.remarks:
            run.notice(remark)
        found = _split(judged, evidence.given_labels, images, choice, split_settings, run)
    score = final_score(judged, found)
    axis = choice.how.axis if judged.early is None else "noise probability"
    parts = [part._asdict() for part in judged.components] if judged.early is None else []
    mixture = {"axis": axis, "threshold": score_at(score, found.clean_probability, split_settings.threshold), "components": parts}
    seen = beside.seen
    shown_truth = truth if truth is None or seen is None else truth[seen]
    quality = None if shown_truth is None else detection_quality(score, found, evidence.given_labels, shown_truth)
    if seen is not None:
        score, found = _spread(score, seen, len(images), float("nan")), split_among(found, seen, len(images))
    told = {"detector": detector, "settings": asdict(choice.settings), "cut": choice.cut, "cut_settings": asdict(choice.cut_settings)}
    report = told | looked.report | {"quality": quality, "mixture": mixture, "passes": run.passes["detection"]}
    return replace(detection_of(as_given, found, looked.predictions, score, report), looked=looked)


def training_of(model: Classifier | None) -> Pretraining:
    """Return how `model` was trained; if nobody knows, by cross-entropy."""
    trained_by = model.description.trained_by if model is not None and model.description else ""
    return PRETRAINING.get(trained_by, PRETRAINING["ce"])


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


def opinions_behind(logits: Tensor, given_labels: Tensor) -> Opinions:
    """Return the opinions behind logits (N, K), without the probabilities of all samples at once."""
    batches = zip(torch.split(logits, 65_536), torch.split(given_labels.cpu(), 65_536), strict=True)
    return join_opinions((opinions_of(z.softmax(1), labels) for z, labels in batches), len(logits))


def _split(judged: Judged, given_labels: Tensor, images: Images, choice: Choice, settings: SplitSettings, run: Run) -> Split:
    """Return the split of the samples that were judged; say which classes the floor saved."""
    split = split_judged(judged, given_labels, images.num_classes, choice, settings)
    say_kept(split, judged.clean, given_labels, images, settings, run)
    return split


def say_kept(split: Split, clean: Tensor, given_labels: Tensor, images: Images, settings: SplitSettings, run: Run) -> None:
    """Say which classes of a split are kept alive by samples whose P(clean), (M,), is too low to be retained by itself."""
    kept = split.retain & ~settings.clean(clean)
    if saved := {images.class_names[k] for k in given_labels[kept].tolist()}:
        told = f"every label of {', '.join(sorted(saved))} looks wrong; the {settings.class_floor} surest of each are kept, so that the class is not unlearned"
        run.notice(told)


def prepared(model: Classifier, images: Images, run: Run) -> tuple[Images, Classifier]:
    """Return images and a copy of the model on the device, the images prepared as the model was trained with."""
    if model.num_classes != images.num_classes or (model.class_names and model.class_names != images.class_names):
        theirs = ", ".join(model.class_names) or f"{model.num_classes} classes"
        raise InputError(f"the model knows the classes [{theirs}], the images have [{', '.join(images.class_names)}]; the two must agree in order")
    if model.description is not None:
        images = images.prepared_as(model.description.preprocessing)
    return images.to(run.device), run.place(copy.deepcopy(model))
