"""SCRUB: forget by leaving the teacher's predictions, keep the rest by cross-entropy and staying near them.

forget   L = -eta KL_T(teacher || student)
retain   L = gamma CE(z, y) + alpha KL_T(teacher || student)
`scrub` has the settings of its authors; `scrub-reference` is the row called SCRUB in the published FSPMU tables:
eta = 0.5, no distillation on the retain set, and the schedule of FSPMU.
Source: Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023; docs/method.md, "Baselines".
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.data.batches import Batch
from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.engine.inference import evaluate
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import set_lr, sgd, step_decay, train_epoch
from fspmu.errors import check_settings
from fspmu.losses import distillation
from fspmu.models.classifier import Classifier, copy_of, frozen


@dataclass(frozen=True)
class Settings:
    """The authors' values for large-scale unlearning."""

    eta: float = 1.0
    """Push of a forgotten sample from the teacher's prediction."""
    gamma: float = 0.99
    """Weight of cross-entropy on retained samples."""
    alpha: float = 0.001
    """Weight of staying near the teacher on retained samples."""
    temperature: float = 4.0
    """Temperature T of the divergence from the teacher."""
    epochs: int = 3
    """Epochs, each ending with a pass over the retain set."""
    forget_epochs: int = 2
    """Epochs, from the first, that begin with a pass over the forget set."""
    forget_batch: int = 32
    """Samples per step of a forget pass."""
    retain_batch: int = 128
    """Samples per step of a retain pass."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Which steps are made along the gradient."""
    lr: float = 5e-4
    """Learning rate."""
    milestones: tuple[int, ...] = ()
    """Epochs after each of which the learning rate falls to a tenth."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay on every parameter."""
    clip: float | None = None
    """Largest absolute value of a gradient entry; None: no bound."""


PRESETS = {
    "large-scale": Settings(),
    "small-scale": Settings(gamma=1.0, alpha=0.5, temperature=2.0, epochs=10, forget_epochs=3, optimizer="adam", milestones=(5, 8, 9), weight_decay=0.1),
}

REFERENCE = Settings(eta=0.5, gamma=1.0, alpha=0.0, temperature=0.5, epochs=15, forget_epochs=5, forget_batch=512, milestones=(7, 10, 10), clip=1.0)


def unlearn(model: Classifier, images: Images, split: Split, settings: Settings, run: Run) -> Classifier:
    """Return a copy of `model` that left the teacher on `split.forget` and stayed near it on `split.retain`.

    Raises EmptySplit when there is nothing to retain.
    """
    split.check_retain()
    teacher, student = frozen(model), copy_of(model)
    optimizer = make_optimizer(student, settings)
    judge = run.forward(teacher)

    def from_teacher(logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher_logits = judge(batch.images).logits
        return distillation(logits, teacher_logits, settings.temperature)

    def forget(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return -settings.eta * from_teacher(model(batch.images).logits, batch), {}

    def retain(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(batch.images).logits
        loss = settings.gamma * F.cross_entropy(logits, batch.given_labels)
        return loss + settings.alpha * from_teacher(logits, batch) if settings.alpha else loss, {}

    for epoch in run.epochs(settings.epochs, student=student, optimizer=optimizer):
        set_lr(optimizer, settings.lr * step_decay(epoch, settings.milestones))
        losses: dict[str, float] = {}
        if epoch <= settings.forget_epochs:
            batches = run.batches(images, split.forget, settings.forget_batch, "forget", epoch)
            losses |= train_epoch(student, batches, forget, optimizer, run, clip=settings.clip, label="forget")
        batches = run.batches(images, split.retain, settings.retain_batch, "retain", epoch)
        losses |= train_epoch(student, batches, retain, optimizer, run, clip=settings.clip, label="retain")
        run.log(epoch, **losses, test_accuracy=evaluate(student, run))
    return student


def make_optimizer(model: Classifier, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name; raises InputError for settings that are none."""
    check_settings(settings)
    if settings.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
    return sgd(model, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
