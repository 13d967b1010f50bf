"""What a detector sees: everything that it declares and nothing else, from the model itself, from its past, and from probes that are trained for it.

What several detectors need is gathered once when all their needs are asked for together.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.data.augment import normalise
from fspmu.data.images import Images
from fspmu.data.split import indices_of
from fspmu.detection.depth import choose_depth
from fspmu.detection.evidence import DepthSettings, Evidence, FoldSettings, ViewSettings
from fspmu.engine.inference import Predictions, predict, predict_views
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.models.blocks import LAST, AtDepths, Block, find_blocks, named_block
from fspmu.models.classifier import Classifier, reinitialised
from fspmu.preprocessing import Preprocessing
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.pretraining.trained import Trained

FEATURE_BYTES = 64 * 2**20
"""Features of a set that would need more than this are kept for a share of its samples, evenly spaced."""
NOBODY = torch.empty(0, dtype=torch.int64)
"""Those whose features are kept where logits are all that is wanted."""
MOST_FITTED, MOST_FRESH = 10_000, 5_000
"""Training images, and images that the model never saw, on which a depth is chosen: more would not choose another."""
VIEWED = frozenset({"block", "view_probabilities", "view_margins"})
PROBED = frozenset({"probe_losses", "reference_probe_losses", "probe_history"})
SHOWN_AGAIN = PROBED | {"reference_losses", "cross_fitted"}
"""What is gathered from images that are shown once more, and not from what was seen of them."""
PASSES = {
    **dict.fromkeys(("logits", "features"), ("plain",)),
    **dict.fromkeys(("view_probabilities", "view_margins"), ("views",)),
    "block": ("depth", "views"),
    "reference_losses": ("reference",),
    **dict.fromkeys(PROBED, ("probe",)),
    "cross_fitted": ("folds",),
}
"""What has to be done for each field of Evidence, by the names under which its time is told; the others are there already."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Beside:
    """What is known beside model and images, by whoever asks; None where nobody knows.

    truth (N,): the true labels. unseen (N,) bool: samples that no detector may look at. history (E, N): margins of the given label in every epoch of the
    model's training. fresh: images that the model never saw, under labels that may be as wrong as the others, or which of the N these are, (N,) bool.
    """

    truth: Tensor | None = None
    unseen: Tensor | None = None
    history: Tensor | None = None
    fresh: Images | Tensor | None = None

    @property
    def seen(self) -> Tensor | None:
        """The places (M,) of the samples that may be looked at; None: all."""
        return None if self.unseen is None or not bool(self.unseen.any()) else indices_of(~self.unseen)

    def check(self, images: Images) -> None:
        """Raise InputError for what does not fit `images`."""
        masks = {"unseen": self.unseen, "fresh": self.fresh if isinstance(self.fresh, Tensor) else None}
        for name, mask in masks.items():
            if mask is not None and (mask.dtype != torch.bool or mask.shape != (len(images),)):
                raise InputError(f"{name} is {mask.dtype} {tuple(mask.shape)}; needed is torch.bool ({len(images)},), which of the images these are")
        if self.unseen is not None and bool(self.unseen.all()):
            raise InputError("unseen is set for all images, so that there is none to look at; leave some of them False")
        if self.truth is not None and (self.truth.shape != (len(images),) or self.truth.is_floating_point()):
            raise InputError(f"truth is {self.truth.dtype} {tuple(self.truth.shape)}; needed are whole numbers ({len(images)},), a label for each image")
        if self.history is not None and (self.history.ndim != 2 or self.history.shape[1] != len(images) or not len(self.history)):
            raise InputError(f"the history has the shape {tuple(self.history.shape)}; needed is (epochs, {len(images)}), a margin for every image in each")
        if isinstance(self.fresh, Images) and (self.fresh.class_names != images.class_names or self.fresh.pixels.shape[1:] != images.pixels.shape[1:]):
            theirs, ours = (f"[{', '.join(some.class_names)}] {tuple(some.pixels.shape[1:])}" for some in (self.fresh, images))
            raise InputError(f"fresh images have the classes and the size {theirs}, the others {ours}; the two must agree")


@dataclass(frozen=True)
class Looked:
    """What a model itself says of all its N images: predictions, fields of Evidence by their names, and where and how often it was looked at.

    seconds: how long each of PASSES took.
    """

    predictions: Predictions
    fields: dict[str, Tensor] = field(default_factory=dict, repr=False)
    report: Json = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def check_needs(needs: frozenset[str], settings: Any, images: Images, beside: Beside) -> None:
    """Raise InputError for what a detector with these `settings` needs and nobody has, or asks for and cannot be."""
    if "truth" in needs and beside.truth is None:
        raise InputError("the true labels are not known here, so there is no detector 'known'; choose another --detector")
    if "history" in needs and beside.history is None:
        raise InputError("nobody kept how this model learned each sample in its own training; --detector probe trains a fresh network and keeps that instead")
    beside.check(images)
    if "cross_fitted" in needs and len(images) < settings.folds:
        raise InputError(f"--folds is {settings.folds}, but there are only {len(images)} images; give fewer folds")


def look(needs: frozenset[str], model: Classifier, images: Images, settings: Any, beside: Beside, run: Run) -> Looked:
    """Return what `model`, which trained on `images`, says of all of them, as far as a detector with these `settings` needs it.

    Raises InputError when what it says is not finite, or it has no such depth.
    """
    rows = kept_rows(len(images), model.feature_width)
    seconds: dict[str, float] = {}
    with _clocked(seconds, "plain"):
        if "features" in needs and rows is not None:
            seen = predict(model, images, run, half=True)
            fields, predictions = {"features": seen.features}, Predictions(seen.logits, seen.features[rows].float(), rows)
        else:
            predictions = predict(model, images, run, rows=rows)
            fields = {"features": predictions.features} if "features" in needs else {}
    if not bool(predictions.logits.isfinite().all()):
        raise InputError("the model's outputs are not finite on its own training images: its weights are damaged, or --precision bf16 is too coarse")
    if "logits" in needs:
        fields["logits"] = predictions.logits
    if not needs & VIEWED:
        return Looked(predictions, fields, seconds=seconds)
    viewed_as = images.prepared_as(views_wanted(images, settings))
    report: Json = {"views": 1 if viewed_as.preprocessing.augment == "none" else settings.views, "viewing": viewed_as.preprocessing.augment}
    if "block" in needs:
        with _clocked(seconds, "depth"):
            agreement = float((predictions.logits.argmax(dim=1).cpu() == images.given_labels.cpu()).double().mean())
            block, report["depth"] = depth_for(model, images, settings, beside, run, agreement)
            model = AtDepths.of(model, [block], _example(images))
    with _clocked(seconds, "views"):
        viewed = predict_views(model, viewed_as, run, settings.views)
    found = {"block": viewed.features, "view_probabilities": viewed.probabilities, "view_margins": viewed.margins}
    return Looked(predictions, fields | {name: found[name] for name in VIEWED & needs}, report, seconds)


def views_wanted(images: Images, settings: ViewSettings) -> Preprocessing:
    """Return how a network is shown views of `images`.

    A network that was trained on the images as they are may know their very pixels by heart, and agree with wrong labels on these alone.
    """
    trained_on = images.preprocessing
    usual = trained_on.augment if trained_on.augment != "none" else "crop-flip"
    return trained_on.viewed(usual if settings.viewing == "auto" else settings.viewing, images.pixels.shape[2:])


def depth_for(model: Classifier, images: Images, settings: DepthSettings, beside: Beside, run: Run, agreement: float = 1.0) -> tuple[Block, Json]:
    """Return at which depth of the model its features are taken, and how that was chosen: without any true label.

    agreement: the share of the given labels that the model predicts. Raises InputError for a depth that it does not have.
    """
    if settings.depth == "last":
        return Block(LAST, None), {"name": LAST, "how": "asked for"}
    blocks = find_blocks(model, _example(images))
    if settings.depth != "auto":
        return named_block(model, settings.depth, blocks), {"name": settings.depth, "how": "asked for"}
    mask = beside.fresh if isinstance(beside.fresh, Tensor) else torch.zeros(len(images), dtype=torch.bool)
    may = ~mask.cpu() if beside.unseen is None else ~mask.cpu() & ~beside.unseen.cpu()
    fitted = _drawn(images, may, MOST_FITTED, run, "fitted")
    fresh = None if beside.fresh is None else _fresh_images(images, mask, beside, run)
    everywhere = AtDepths.of(model, blocks, _example(images))

    def at_each(some: Images) -> list[Tensor]:
        return list(torch.split(predict(everywhere, some, run, half=True).features, list(everywhere.widths), dim=1))

    parts, held = at_each(fitted), None if fresh is None else at_each(fresh)
    labels, held_labels = fitted.given_labels.cpu(), None if fresh is None else fresh.given_labels.cpu()
    depth = run.processes.from_main(lambda: choose_depth(parts, labels, held, held_labels, images.num_classes, agreement))
    names = [block.name for block in blocks]
    told = {name: round(value, 6) for name, value in zip(names, depth.accuracies, strict=True)}
    used = {"fitted": len(fitted), "fresh": 0 if fresh is None else len(fresh)}
    return blocks[depth.index], {"name": names[depth.index], "how": depth.how, "depths": told, **used}


def gather(
    needs: frozenset[str], model: Classifier, images: Images, looked: Looked, beside: Beside, settings: Any, run: Run, seconds: dict[str, float] | None = None
) -> Evidence:
    """Return the evidence that a detector with these `settings` needs of the samples that may be looked at, and no more.

    seconds: is told how long each of PASSES took that are made here.
    """
    seconds = {} if seconds is None else seconds
    seen = beside.seen
    found = {name: values if seen is None else values[seen] for name, values in looked.fields.items() if name in needs}
    if "history" in needs and beside.history is not None:
        found["history"] = beside.history if seen is None else beside.history[:, seen]
    if "truth" in needs and beside.truth is not None:
        found["truth"] = (beside.truth if seen is None else beside.truth[seen]).cpu()
    given = images.given_labels.cpu() if seen is None else images.given_labels.cpu()[seen]
    shown = images.subset(seen) if seen is not None and needs & SHOWN_AGAIN else images
    if "reference_losses" in needs:
        with _clocked(seconds, "reference"):
            found["reference_losses"] = F.cross_entropy(predict(model, shown, run, reference=True, rows=NOBODY).logits, given, reduction="none")
    if PROBED & needs:
        with _clocked(seconds, "probe"):
            with run.timed("probe"):
                trained = train_probe(model, shown, settings.probe_epochs, settings.probe_lr, run)
            if "probe_history" in needs:
                found["probe_history"] = trained.history.margins
            for name in needs & {"probe_losses", "reference_probe_losses"}:
                seen_by_it = predict(trained.models[0], shown, run, reference=name.startswith("reference"), batch_statistics=False, rows=NOBODY)
                found[name] = F.cross_entropy(seen_by_it.logits, given, reduction="none")
    if "cross_fitted" in needs:
        with _clocked(seconds, "folds"):
            found["cross_fitted"] = cross_fit(model, shown, settings, run)
    return Evidence(given, images.num_classes, **found)


def train_probe(model: Classifier, images: Images, epochs: int | None, lr: float, run: Run) -> Trained:
    """Return a fresh network of the same kind as `model`, trained on all given labels for a few epochs: before it has memorised the wrong ones.

    epochs None: 10 for up to 20 classes, else 30.
    """
    epochs = epochs or (10 if images.num_classes <= 20 else 30)
    settings = replace(PRETRAINING["ce"].settings, epochs=epochs, lr=lr, lr_step=epochs)
    with _unmeasured(run):
        return PRETRAINING["ce"].pretrain(images, lambda generator: reinitialised(model, generator).requires_grad_(True), settings, run)


def cross_fit(model: Classifier, images: Images, settings: FoldSettings, run: Run) -> Tensor:
    """Return probabilities (N, K) of each of `images` by a probe that was not trained on it; every fold has its share of every class."""
    given = images.given_labels.cpu()
    order = torch.randperm(len(images), generator=run.generator("folds"))
    order = order[given[order].argsort(stable=True)]
    fold = torch.empty(len(images), dtype=torch.int64)
    fold[order] = torch.arange(len(images)) % settings.folds
    found = torch.empty(len(images), images.num_classes)
    for number in range(settings.folds):
        aside = fold == number
        with run.timed(f"fold-{number + 1}"):
            probe = train_probe(model, images.subset(indices_of(~aside)), settings.probe_epochs, settings.probe_lr, run).models[0]
            found[aside] = predict(probe, images, run, chosen=aside, rows=NOBODY).logits.softmax(1)
    return found


def kept_rows(samples: int, width: int) -> Tensor | None:
    """Return the places (M,) of the samples whose features of `width` are kept, evenly spaced; None: all of them."""
    most = max(1, FEATURE_BYTES // (4 * width))
    return None if samples <= most else torch.arange(most) * samples // most


@contextmanager
def _clocked(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Keep under a name how long the block took."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


@contextmanager
def _unmeasured(run: Run) -> Iterator[None]:
    """Let nothing be measured after an epoch: nobody asks how good a probe is."""
    evaluation, run.evaluation = run.evaluation, None
    try:
        yield
    finally:
        run.evaluation = evaluation


def _example(images: Images) -> Tensor:
    """Return two images as a network sees them, of a single one that twice."""
    return normalise(images.pixels[torch.arange(2).clamp(max=len(images) - 1)], images.preprocessing)


def _drawn(images: Images, may: Tensor, most: int, run: Run, purpose: str) -> Images:
    """Return at most so many of the images where `may` (N,) bool is set, in dataset order."""
    places = indices_of(may)
    if len(places) > most:
        places = places[torch.randperm(len(places), generator=run.generator("depth", purpose))[:most]].sort().values
    return images.subset(places)


def _fresh_images(images: Images, mask: Tensor, beside: Beside, run: Run) -> Images | None:
    """Return images that the model never saw, prepared as it wants them; None where there are none."""
    if isinstance(beside.fresh, Images):
        images = beside.fresh.prepared_as(images.preprocessing).to(run.device)
        mask = torch.ones(len(images), dtype=torch.bool)
    found = _drawn(images, mask.cpu(), MOST_FRESH, run, "fresh")
    return found if len(found) else None
