"""FSPMU: forget by leaving the teacher and the nearest centroids, recover by returning to one's own.

forget   L = -eta KL_T(teacher || student) + zeta mean_i sum_k w_ik cos(f_i, mu_k)
retain   L = gamma CE(z, y) - delta mean_i cos(f_i, mu_{y_i})
Centroids mu come from the retain set under the teacher, once. One SGD serves both passes, and ascends by descending -L.
Source: docs/method.md, "Forget" and "Recover".
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fspmu.data.batches import Batch, Batches
from fspmu.data.images import Images
from fspmu.data.split import Split, indices_of
from fspmu.engine.inference import evaluate, find_centroids
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import set_lr, sgd, step_decay, train_epoch
from fspmu.losses import forget_loss, retain_loss
from fspmu.models.classifier import Classifier, copy_of, drawn_from, frozen


@dataclass(frozen=True)
class Settings:
    """Published values for a model trained with plain cross-entropy."""

    delta: float = 500.0
    """Pull of a retained sample to its own centroid."""
    zeta: float = 0.5
    """Push of a forgotten sample from the centroids it sits near."""
    gamma: float = 1.0
    """Weight of cross-entropy on retained samples."""
    eta: float = 1.0
    """Push of a forgotten sample from the teacher's prediction."""
    t: float = 0.25
    """Temperature of the centroid weights: cosines are raised to the power 1/t."""
    temperature: float = 0.5
    """Temperature T of the divergence from the teacher."""
    epochs: int = 15
    """Epochs, each ending with a pass over the retain set."""
    forget_epochs: int = 5
    """Epochs, from the first, that begin with a pass over the forget set."""
    forget_batch: int = 512
    """Samples per step of a forget pass."""
    retain_batch: int = 128
    """Samples per step of a retain pass."""
    lr: float = 5e-4
    """Learning rate of SGD."""
    milestones: tuple[int, ...] = (7, 10, 10)
    """Epochs after each of which the learning rate falls to a tenth; a number that stands twice counts twice."""
    momentum: float = 0.9
    """Momentum of SGD; it carries over between passes."""
    weight_decay: float = 5e-4
    """Weight decay on every parameter, in both passes."""
    clip: float = 1.0
    """Largest absolute value of a gradient entry."""
    reference_statistics: bool = False
    """Repeat the published statistics: centroids from one augmented view with batch norm in training mode, and two moves of its
    running statistics per step."""


PRESETS = {
    "original": Settings(),
    "nll": Settings(delta=1.0, zeta=1.0, gamma=5.0),
    "as-coded": Settings(zeta=20.0, t=0.5),
}


def unlearn(model: Classifier, images: Images, split: Split, settings: Settings, run: Run) -> Classifier:
    """Return a copy of `model` without what it learned from `split.forget`.

    Raises EmptySplit when there is nothing to retain.
    """
    split.check_retain()
    teacher, student = frozen(model), copy_of(model)
    centroids = find_centroids(teacher, images, run, chosen=split.retain, reference=settings.reference_statistics)
    optimizer = sgd(student, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    judge = run.forward(teacher)

    def forget(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            teacher_logits = judge(batch.images).logits
        logits, features = model(batch.images)
        loss = forget_loss(logits, teacher_logits, features, centroids, eta=settings.eta, zeta=settings.zeta, t=settings.t, temperature=settings.temperature)
        return loss, {}

    def retain(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, features = model(batch.images)
        return retain_loss(logits, features, batch.given_labels, centroids, gamma=settings.gamma, delta=settings.delta), {}

    with statistics_moved_twice(student, settings.reference_statistics):
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


LARGEST_MOVE = 0.005
"""Share of the length of all weights that the first recovery step may move them by; measured in docs/own_model.md."""
FITTED_ON = 4096
"""Samples whose centroids stand for all in measuring that step."""


def fit(settings: Settings, model: Classifier, images: Images, split: Split, run: Run) -> tuple[Settings, str]:
    """Return settings whose learning rate suits a network of another scale or normaliser, and a line that says what was changed, if anything.

    The pull of the centroids is delta times a gradient that falls with the length of the features, so the same rate is a small step for one network and ruin
    for another. Where the first recovery step would move the weights by more than LARGEST_MOVE, the rate is lowered until it moves them by that.
    Raises EmptySplit when there is nothing to retain.
    """
    share = first_move(settings, model, images, split, run)
    if share <= LARGEST_MOVE or not math.isfinite(share):  # what is wrong with such weights training says best
        return settings, ""
    lr = float(f"{settings.lr * LARGEST_MOVE / share:.2g}")
    told = f"the learning rate is lowered from {settings.lr:g} to {lr:g}: the first step would move this network's weights by {share:.1%}"
    return replace(settings, lr=lr), told


def first_move(settings: Settings, model: Classifier, images: Images, split: Split, run: Run) -> float:
    """Return |lr * clipped gradient| / |weights| of the first recovery step, with the centroids of at most FITTED_ON samples.

    Raises EmptySplit when there is nothing to retain.
    """
    split.check_retain()
    places = indices_of(split.retain)
    some = torch.zeros_like(split.retain)
    count = min(FITTED_ON, len(places))
    some[places[torch.arange(count) * len(places) // count]] = True
    student = copy_of(model)
    centroids = find_centroids(frozen(model), images, run, chosen=some)
    shuffled = places[torch.randperm(len(places), generator=run.generator("first step"))][: settings.retain_batch]
    batch = next(iter(Batches(images, shuffled, settings.retain_batch)))
    with drawn_from(run.generator("first step", "layers")):  # dropout draws too
        logits, features = run.forward(student.train(), compile=False)(batch.images)
    run.count_passes()
    retain_loss(logits, features, batch.given_labels, centroids, gamma=settings.gamma, delta=settings.delta).backward()  # type: ignore[no-untyped-call]
    moved = torch.stack([weight.grad.clamp(-settings.clip, settings.clip).norm() for weight in student.parameters() if weight.grad is not None]).norm()
    length = torch.stack([weight.detach().norm() for weight in student.parameters()]).norm()
    return run.processes.from_main(lambda: float(settings.lr * moved / length))


@contextlib.contextmanager
def statistics_moved_twice(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Give batch norm the momentum 1 - (1 - m)^2 for a while: what two forwards of each batch, as in the published passes, do to it."""
    kind = nn.modules.batchnorm._BatchNorm
    norms = [module for module in model.modules() if isinstance(module, kind) and module.momentum is not None] if wanted else []
    momenta = [float(norm.momentum or 0) for norm in norms]
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = 1 - (1 - momentum) ** 2
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
