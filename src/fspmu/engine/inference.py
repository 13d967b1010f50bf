"""Passes over the data without training: logits and features in dataset order, and accuracy."""

import contextlib
import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fspmu.centroids import centroid_sums, unit_centroids
from fspmu.data.augment import Views, apply_views, draw_views, normalise
from fspmu.data.batches import Batch, Batches
from fspmu.data.images import Images
from fspmu.data.split import indices_of
from fspmu.data.stream import read_batches
from fspmu.engine.device import is_out_of_memory
from fspmu.engine.run import Forward, Run
from fspmu.errors import InputError
from fspmu.losses import margins
from fspmu.models.blocks import AtDepths
from fspmu.models.classifier import Classifier, Output

REFERENCE_BATCH = 128
"""Batch size of the published statistics passes, whose batch norm makes it matter."""


class Predictions(NamedTuple):
    """logits (N, K) float32 and features (N, D) float32, or float16 where half was asked for, on the CPU, in dataset order.

    `rows` (M,) ascending: of a set too large to keep them all, whose features these are, then (M, D); None: everybody's.
    """

    logits: Tensor
    features: Tensor
    rows: Tensor | None = None


class Viewed(NamedTuple):
    """Means over several random views, on the CPU, in dataset order: softmax (N, K), margins of the given label (N,), and features (N, D) float16."""

    probabilities: Tensor
    margins: Tensor
    features: Tensor


def predict(
    model: Classifier,
    images: Images,
    run: Run,
    *,
    chosen: Tensor | None = None,
    reference: bool = False,
    batch_statistics: bool = True,
    rows: Tensor | None = None,
    half: bool = False,
) -> Predictions:
    """Return what `model` says of every image, or of those where `chosen` (N,) bool is set; from all processes, to all processes.

    Evaluation mode and plain images; `reference` repeats the published statistics pass instead: one augmented view, batch norm in
    training mode (without `batch_statistics` in evaluation mode), batches of 128 in dataset order. Either way the model keeps its running statistics.
    rows (M,): keep the features of these places alone. half: keep features as float16.
    """
    batches = _batches(images, run, chosen, reference)
    place_of = torch.full((batches.samples,), -1)
    if rows is not None:
        place_of[rows] = torch.arange(len(rows))
    logits = features = None
    kind, places, filled = torch.float16 if half else torch.float32, batches.places, 0
    for output, _ in _outputs(model, batches, run, reference and batch_statistics):
        if logits is None or features is None:
            logits = torch.empty(batches.samples, output.logits.shape[1])
            features = torch.empty(batches.samples if rows is None else len(rows), output.features.shape[1], dtype=kind)
        here = places[filled : (filled := filled + len(output.logits))]
        logits[here] = output.logits.cpu()
        if rows is None:
            features[here] = within(output.features, kind).cpu()
        elif bool((kept := place_of[here] >= 0).any()):
            features[place_of[here][kept]] = within(output.features[kept.to(output.features.device)], kind).cpu()
    if logits is None or features is None:  # more processes than batches
        logits = torch.empty(batches.samples, model.num_classes)
        features = torch.empty(batches.samples if rows is None else len(rows), model.feature_width, dtype=kind)
    own = places if rows is None else place_of[places][place_of[places] >= 0]
    return Predictions(run.processes.complete(logits, places), run.processes.complete(features, own), rows)


def within(values: Tensor, kind: torch.dtype) -> Tensor:
    """Return `values` as numbers of a type, those beyond its ends as these ends: an infinite feature would be as far from everything as any other."""
    if kind == values.dtype:
        return values
    largest = torch.finfo(kind).max
    return values.clamp(-largest, largest).to(kind)


@torch.no_grad()
def predict_views(model: Classifier, images: Images, run: Run, views: int) -> Viewed:
    """Return the means of what `model` says of `views` random views of every image, drawn for each; from all processes, to all processes.

    Evaluation mode. Each batch is read once and goes through the network `views` times, so that memory holds one answer for each image. Images without an
    augmentation have one view, the plain one.
    """
    count, drawn = len(images), [draw_views(len(images), images.preprocessing, run.generator("views", view)) for view in range(views)]
    drawn = drawn[:1] if drawn[0] is None else drawn
    batches = list(torch.split(torch.arange(count), _batch_size(run)))
    if len(batches) > 1 and len(batches[-1]) == 1:  # as elsewhere: a module of somebody else's may squeeze a single row away
        batches[-2:] = [torch.cat(batches[-2:])]
    mine = batches[run.processes.rank :: run.processes.count]
    found = Viewed(torch.empty(count, model.num_classes), torch.empty(count), torch.empty(count, model.feature_width, dtype=torch.float16))
    was_training, parts = model.training, 1
    forward = run.forward(model.eval(), compile=not isinstance(model, AtDepths))
    try:
        with contextlib.closing(read_batches(images.pixels, mine)) as read:
            plain = (Batch(pixels, images.given_labels[rows.to(pixels.device)], rows) for rows, pixels in zip(mine, read, strict=True))
            for batch in run.bar(plain, "viewing"):
                rows = batch.index
                views_of_it = [view and view[int(rows[0]) : int(rows[-1]) + 1] for view in drawn]
                sums, parts = _sums_over_views(forward, batch, views_of_it, images, run, parts)
                for kept, total in zip(found, sums, strict=True):
                    kept[rows] = within(total / len(drawn), kept.dtype).cpu()
    finally:
        model.train(was_training)
    run.count_passes()
    own = torch.cat(mine) if mine else torch.arange(0)
    return Viewed(*(run.processes.complete(kept, own) for kept in found))


def _sums_over_views(
    forward: Forward, batch: Batch, views: list[Views | None], images: Images, run: Run, parts: int
) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """Return the sums of softmax (B, K), margins (B,) and features (B, D) over views of the pixels in `batch`, and in how many parts they had to go."""
    sums: tuple[Tensor, Tensor, Tensor] | None = None
    for view in views:
        pixels = batch.images if view is None else apply_views(batch.images, view.to(batch.images.device), images.preprocessing.padding)
        run.begin_step()
        output, parts = _in_parts(forward, Batch(normalise(pixels, images.preprocessing), batch.given_labels, batch.index), run, parts)
        said = output.logits.softmax(1), margins(output.logits, batch.given_labels), output.features
        sums = said if sums is None else (sums[0] + said[0], sums[1] + said[1], sums[2] + said[2])
    assert sums is not None
    return sums, parts


def find_centroids(
    model: Classifier, images: Images, run: Run, *, chosen: Tensor | None = None, weights: Tensor | None = None, reference: bool = False
) -> Tensor:
    """Return the class centroids (K, D) of `images` under `model`, float32, on the device; weights (N,): what each counts for; else as for `predict`.

    The features stream by: no (N, D) is kept, and what processes exchange is (K, D).
    """
    sums = torch.zeros(model.num_classes, model.feature_width, device=run.device, dtype=torch.float32 if run.device.type == "mps" else torch.float64)
    batches = _batches(images, run, chosen, reference)
    weights = None if weights is None else weights.to(run.device)
    for output, batch in _outputs(model, batches, run, reference):
        sums += centroid_sums(output.features, output.logits.softmax(1), None if weights is None else weights[batch.index])
    run.processes.check_complete(batches.places, batches.samples)
    return unit_centroids(run.processes.sum(sums)).float()


def right_answers(model: Classifier, images: Images, run: Run, *, chosen: Tensor | None = None) -> Tensor:
    """Return for each of the images, or of those where `chosen` (N,) bool is set, whether the model predicts its label, bool."""
    logits = predict(model, images, run, chosen=chosen, rows=torch.empty(0, dtype=torch.int64)).logits
    labels = images.given_labels.cpu()
    return logits.argmax(dim=1) == (labels if chosen is None else labels[chosen])


def accuracy(model: Classifier, images: Images, run: Run) -> float:
    """Return the share of `images` whose label the model predicts."""
    right = torch.zeros((), dtype=torch.int64, device=run.device)
    batches = _batches(images, run, None, reference=False)
    for output, batch in _outputs(model, batches, run, batch_statistics=False):
        right += (output.logits.argmax(dim=1) == batch.given_labels).sum()
    run.processes.check_complete(batches.places, batches.samples)
    return sum(run.processes.gather(int(right))) / batches.samples


def _batches(images: Images, run: Run, chosen: Tensor | None, reference: bool) -> Batches:
    """Return the batches of a pass without training that fall to this process: whole ones, so that their number does not change what they say."""
    size, generator = _batch_size(run), None
    if reference:
        size, generator = REFERENCE_BATCH, run.generator(run.stage, "reference view")
    indices = torch.arange(len(images)) if chosen is None else indices_of(chosen)
    return Batches(images, indices, size, generator, shuffle=False).dealt(run.processes.rank, run.processes.count)


def _batch_size(run: Run) -> int:
    return 256 if run.device.type == "cpu" else 1024  # on a CPU small batches stay in its cache


@torch.no_grad()  # not inference mode: its tensors could not take part in a later loss
def _outputs(model: Classifier, batches: Batches, run: Run, batch_statistics: bool) -> Iterator[tuple[Output, Batch]]:
    """Yield what `model` says of each batch, beside the batch."""
    if batch_statistics:
        if run.sync_bn:
            raise InputError("the published statistics pass normalises each batch by itself; leave --sync-bn out")
        model = copy.deepcopy(model)
    was_training = model.training
    model.train(batch_statistics)
    forward, parts = run.forward(model, compile=not batch_statistics and not isinstance(model, AtDepths)), 1
    try:
        for batch in run.bar(batches, "predicting"):
            run.begin_step()
            output, parts = _in_parts(forward, batch, run, parts)
            yield output, batch
    finally:
        model.train(was_training)
    run.count_passes()


def _in_parts(forward: Forward, batch: Batch, run: Run, parts: int) -> tuple[Output, int]:
    """Return forward(batch.images), in more parts than asked for where the memory does not hold these; and how many that were."""
    while True:
        try:
            outputs = [forward(part.images) for part in batch.parts(parts)]
            return Output(torch.cat([output.logits for output in outputs]), torch.cat([output.features for output in outputs])), parts
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(batch) < 4 * parts:
                raise
        parts *= 2
        run.notice(f"out of memory in {run.stage}: images are predicted in smaller batches")


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows (N, K) whose largest entry is at the label (N,)."""
    return float((logits.argmax(dim=1) == labels.cpu()).float().mean())


def evaluate(model: Classifier, run: Run) -> float | None:
    """Return the accuracy on the run's evaluation images, a fraction; None when it has none, or this epoch is not one to be tested."""
    if run.tested is None:
        return None
    with run.timed("evaluation"):
        return accuracy(model, run.tested, run)
