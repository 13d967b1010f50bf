"""Fine-tuning: go on with cross-entropy on the retain set alone, and hope that the rest fades. The simplest baseline.

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
from fspmu.engine.training import sgd, train_epoch
from fspmu.models.classifier import Classifier, copy_of


@dataclass(frozen=True)
class Settings:
    """Ten epochs at the learning rate of training."""

    epochs: int = 10
    """Passes over the retain set."""
    batch_size: int = 128
    """Samples per step."""
    lr: float = 0.01
    """Learning rate of SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay on every parameter."""


def unlearn(model: Classifier, images: Images, split: Split, settings: Settings, run: Run) -> Classifier:
    """Return a copy of `model` trained further on `split.retain`.

    Raises EmptySplit when there is nothing to retain.
    """
    split.check_retain()
    student = copy_of(model)
    optimizer = sgd(student, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)

    def cross_entropy(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(model(batch.images).logits, batch.given_labels), {}

    for epoch in run.epochs(settings.epochs, student=student, optimizer=optimizer):
        batches = run.batches(images, split.retain, settings.batch_size, "retain", epoch)
        losses = train_epoch(student, batches, cross_entropy, optimizer, run, label="retain")
        run.log(epoch, **losses, test_accuracy=evaluate(student, run))
    return student
