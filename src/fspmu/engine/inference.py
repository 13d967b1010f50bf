"""Passes over the data without training: logits and features in dataset order, and accuracy."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from fspmu.data.batches import Batch, Batches
from fspmu.data.images import Images
from fspmu.data.split import indices_of
from fspmu.engine.device import is_out_of_memory
from fspmu.engine.run import Forward, Run
from fspmu.models.classifier import Classifier, Output

REFERENCE_BATCH = 128
"""Batch size of the published statistics passes, whose batch norm makes it matter."""


class Predictions(NamedTuple):
    """logits (N, K) and features (N, D), float32, on the CPU, in dataset order."""

    logits: Tensor
    features: Tensor


@torch.no_grad()  # not inference mode: its tensors could not take part in a later loss
def predict(model: Classifier, images: Images, run: Run, *, chosen: Tensor | None = None, reference: bool = False) -> Predictions:
    """Return what `model` says of every image, or of those where `chosen` (N,) bool is set.

    Evaluation mode and plain images; `reference` repeats the published statistics pass instead: one augmented view, batch norm in
    training mode, batches of 128 in dataset order. Either way the model keeps its running statistics.
    """
    size, generator = (256 if run.device.type == "cpu" else 1024), None  # on a CPU small batches stay in its cache
    if reference:
        size, generator, model = REFERENCE_BATCH, run.generator(run.stage, "reference view"), copy.deepcopy(model)
    was_training = model.training
    model.train(reference)
    forward = run.forward(model)
    indices = torch.arange(len(images)) if chosen is None else indices_of(chosen)
    logits = features = torch.empty(0)
    filled, parts = 0, 1
    try:
        for batch in run.bar(Batches(images, indices, size, generator, shuffle=False), "predicting"):
            output, parts = _in_parts(forward, batch, run, parts)
            if not filled:
                logits, features = (torch.empty(len(indices), part.shape[1]) for part in output)
            rows = slice(filled, filled := filled + len(batch))
            logits[rows], features[rows] = output.logits.cpu(), output.features.cpu()
    finally:
        model.train(was_training)
    return Predictions(logits, features)


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


def accuracy(model: Classifier, images: Images, run: Run) -> float:
    """Return the share of `images` whose label the model predicts."""
    return accuracy_of(predict(model, images, run).logits, images.given_labels)


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows (N, K) whose largest entry is at the label (N,)."""
    return float((logits.argmax(dim=1) == labels.cpu()).float().mean())


def evaluate(model: Classifier, run: Run) -> float | None:
    """Return the accuracy on the run's evaluation images, a fraction; None when it has none."""
    if run.evaluation is None:
        return None
    with run.timed("evaluation"):
        return accuracy(model, run.evaluation, run)
