"""Retraining: a network with fresh weights, trained on the retain set from scratch. What repair is measured against, at its full price.

Cross-entropy, as in training. `retrain` keeps the lower learning rate to the end; `retrain-reference` repeats the published schedule,
which returns to the higher one after a single epoch.
Source: docs/method.md, "Baselines".
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fspmu.data.batches import Batch
from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.engine.inference import evaluate
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import set_lr, sgd, train_epoch
from fspmu.models.classifier import Classifier, reinitialised


@dataclass(frozen=True)
class Settings:
    """The settings of training."""

    epochs: int = 201
    """Passes over the retain set."""
    batch_size: int = 128
    """Samples per step."""
    lr: float = 0.01
    """Learning rate of SGD."""
    lr_step: int = 100
    """Epochs after which the learning rate falls to a tenth."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay on every parameter."""
    reference_schedule: bool = False
    """Repeat the published schedule: the lower learning rate in the one epoch after `lr_step`, the higher one again from the next."""


REFERENCE = Settings(reference_schedule=True)


def learning_rate(epoch: int, settings: Settings) -> float:
    """Return the learning rate of `epoch`, counted from 1."""
    lowered = epoch == settings.lr_step + 1 if settings.reference_schedule else epoch > settings.lr_step
    return settings.lr / 10 if lowered else settings.lr


def unlearn(model: Classifier, images: Images, split: Split, settings: Settings, run: Run) -> Classifier:
    """Return a fresh network of the same kind as `model`, trained on `split.retain` alone.

    Raises EmptySplit when there is nothing to retain.
    """
    split.check_retain()
    student = run.place(reinitialised(model, run.generator("retrained weights")).requires_grad_(True))
    optimizer = sgd(student, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)

    def cross_entropy(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(model(batch.images).logits, batch.given_labels), {}

    for epoch in run.epochs(settings.epochs, student=student, optimizer=optimizer):
        set_lr(optimizer, learning_rate(epoch, settings))
        batches = run.batches(images, split.retain, settings.batch_size, "retain", epoch)
        losses = train_epoch(student, batches, cross_entropy, optimizer, run, label="retain")
        run.log(epoch, **losses, test_accuracy=evaluate(student, run))
    return student
