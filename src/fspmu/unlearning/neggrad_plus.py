"""NegGrad+: descend on the retain set and ascend on the forget set, in one joint step.

L = beta CE(retain) - (1 - beta) CE(forget); each retain batch meets the next forget batch, which start over when they run out.
Source: docs/method.md, "Baselines".
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from fspmu.data.batches import Batch, Batches, join
from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.engine.inference import evaluate
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import sgd, train_epoch
from fspmu.errors import check_share
from fspmu.models.classifier import Classifier, copy_of


@dataclass(frozen=True)
class Settings:
    """Mild ascent: near 1 the method is stable, far below it destroys the network."""

    beta: float = 0.99
    """Weight of the retain set, a fraction; the forget set has the rest."""
    epochs: int = 10
    """Passes over the retain set."""
    batch_size: int = 128
    """Samples of each set per step."""
    lr: float = 5e-3
    """Learning rate of SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay on every parameter."""


def unlearn(model: Classifier, images: Images, split: Split, settings: Settings, run: Run) -> Classifier:
    """Return a copy of `model` that descended on `split.retain` while it ascended on `split.forget`.

    Raises EmptySplit when there is nothing to retain, InputError when beta is no fraction.
    """
    check_share(settings.beta, "--beta")
    split.check_retain()
    student = copy_of(model)
    optimizer = sgd(student, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)

    def contrast(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.weight is not None
        losses = F.cross_entropy(model(batch.images).logits, batch.given_labels, reduction="none")
        return (batch.weight * losses).mean(), {}

    for epoch in run.epochs(settings.epochs, student=student, optimizer=optimizer):
        retain = run.batches(images, split.retain, settings.batch_size, "retain", epoch)
        forget = run.batches(images, split.forget, settings.batch_size, "forget", epoch)
        losses = train_epoch(student, _Joint(retain, forget, settings.beta), contrast, optimizer, run)
        run.log(epoch, **losses, test_accuracy=evaluate(student, run))
    return student


@dataclass(frozen=True)
class _Joint:
    """Every retain batch once, each with a forget batch at its side."""

    retain: Batches
    forget: Batches
    beta: float

    def __len__(self) -> int:
        return len(self.retain)

    def __iter__(self) -> Iterator[Batch]:
        partners = iter(self.forget)
        for batch in self.retain:
            partner = next(partners, None)
            if partner is None:
                partners = iter(self.forget)
                partner = next(partners, replace(batch.rows(slice(0, 0)), size=0))
            yield join(batch, partner, self.beta, self.beta - 1)
