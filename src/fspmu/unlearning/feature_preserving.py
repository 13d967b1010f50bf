"""FSPMU: forget by leaving the teacher and the nearest centroids, recover by returning to one's own.

forget   L = -eta KL_T(teacher || student) + zeta mean_i sum_k w_ik cos(f_i, mu_k)
retain   L = gamma CE(z, y) - delta mean_i cos(f_i, mu_{y_i})
Centroids mu come from the retain set under the teacher, once. One SGD serves both passes, and ascends by descending -L.
Source: docs/method.md, "Forget" and "Recover". Beyond the published method, each an option and off in `original`: samples that count by P(clean) (weighing.py),
a rate that falls along a cosine (schedules.py), momentum that is not carried from recovery into forgetting and back, forgotten images used without their labels
(unlabelled.py), and going back to an earlier epoch (rewinding.py).
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fspmu.data.batches import Batch, Batches
from fspmu.data.images import Images
from fspmu.data.split import Split, indices_of
from fspmu.engine.inference import evaluate, find_centroids, right_answers
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import set_lr, sgd, train_epoch
from fspmu.errors import check_settings
from fspmu.losses import consistency, forget_loss, forget_losses, retain_loss, retain_losses
from fspmu.models.classifier import Classifier, copy_of, drawn_from, frozen
from fspmu.unlearning.rewinding import Kept, expected_agreement
from fspmu.unlearning.schedules import Cooled, Steps, decay_at
from fspmu.unlearning.unlabelled import JointBatch, with_unlabelled
from fspmu.unlearning.weighing import Part, parts_of


@dataclass(frozen=True)
class Settings:
    """How to forget and how to recover; what is not given is the preset's."""

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
    """Momentum of SGD."""
    momentum_between: Literal["carried", "dropped"] = "carried"
    """carried: what one kind of pass has built up of momentum goes on in the other, as published. dropped: not where forgetting begins, nor where it ends."""
    weight_decay: float = 5e-4
    """Weight decay on every parameter, in both passes."""
    clip: float = 1.0
    """Largest absolute value of a gradient entry."""
    reference_statistics: bool = False
    """Repeat the published statistics: centroids from one augmented view with batch norm in training mode, and two moves of its
    running statistics per step."""
    weighting: Literal["masks", "clean-probability"] = "masks"
    """masks: every sample of a pass counts the same. clean-probability: it counts by P(clean) in the retain pass and by the rest of 1 in the forget pass."""
    retain_above: float = 0.2
    """With --weighting clean-probability: what is forgotten is retained too if P(clean) is above this. The least, too, that a retained sample counts for."""
    schedule: Literal["steps", "cosine"] = "steps"
    """steps: the learning rate falls at the milestones. cosine: it falls to nothing along half a cosine, before every step."""
    unlabelled: float = 0.0
    """Weight of predicting two views of a forgotten image alike, once the last forget pass is over. 0: forgotten images are left alone."""
    tau_conf: float = 0.8
    """With --unlabelled: probability that some class must have, over both views, for an image to count."""
    sharpening: float = 0.5
    """With --unlabelled: what both views say is raised to the power of one over this."""
    stop: Literal["last", "chance"] = "last"
    """last: hand back the network of the last epoch. chance: of the last one in which forgotten labels are predicted no oftener than they should be."""


_TUNED = Settings(epochs=20, lr=1e-2, delta=10.0, eta=0.05, zeta=0.025, schedule="cosine", momentum_between="dropped")
"""Twenty times the published rate, a twentieth of both terms of forgetting: recovery goes further, a forget step no further than published."""

PRESETS = {
    "original": Settings(),  # published for a model trained with plain cross-entropy
    "nll": Settings(delta=1.0, zeta=1.0, gamma=5.0),
    "as-coded": Settings(zeta=20.0, t=0.5),
    "tuned": _TUNED,
    "tuned-soft": replace(_TUNED, weighting="clean-probability"),
}


def unlearn(model: Classifier, images: Images, split: Split, settings: Settings, run: Run) -> Classifier:
    """Return a copy of `model` without what it learned from `split.forget`.

    Raises EmptySplit when there is nothing to retain, and InputError for settings that are none.
    """
    retained, forgotten = chosen_parts(split, settings, run)
    lost = forgotten.chosen & ~retained.chosen
    _say_what_does_nothing(settings, bool(lost.any()), run)
    teacher, student = frozen(model), copy_of(model)
    centroids = find_centroids(teacher, images, run, chosen=retained.chosen, weights=retained.weights, reference=settings.reference_statistics)
    optimizer = sgd(student, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    judge = run.forward(teacher)
    kept = Kept(expected_agreement(split, lost, model.num_classes)) if settings.stop == "chance" and bool(lost.any()) else None

    def forget(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            teacher_logits = judge(batch.images).logits
        logits, features = model(batch.images)
        return _forget_mean(logits, teacher_logits, features, centroids, forgotten.weights_of(batch.index), settings), {}

    def retain(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, features = model(batch.images)
        if isinstance(batch, JointBatch):
            return _mean_of_all(logits, features, batch, centroids, retained, settings), {}
        return _retain_mean(logits, features, batch, centroids, retained.weights_of(batch.index), settings), {}

    with statistics_moved_twice(student, settings.reference_statistics):
        for epoch in run.epochs(settings.epochs, student=student, optimizer=optimizer, **({} if kept is None else {"kept": kept})):
            set_lr(optimizer, settings.lr * decay_at(settings.schedule, epoch, settings.epochs, settings.milestones))
            losses: dict[str, float] = {}
            if epoch <= settings.forget_epochs:
                batches = run.batches(images, forgotten.chosen, settings.forget_batch, "forget", epoch)
                with momentum_of_its_own(optimizer, settings.momentum_between == "dropped"):
                    losses |= train_epoch(student, batches, forget, optimizer, run, clip=settings.clip, label="forget")
            recovery: Steps = run.batches(images, retained.chosen, settings.retain_batch, "retain", epoch)
            if settings.unlabelled and epoch > settings.forget_epochs:
                recovery = with_unlabelled(recovery, images, lost, settings.unlabelled, settings.retain_batch, run, epoch)
            if settings.schedule == "cosine":
                recovery = Cooled(recovery, optimizer, settings.lr, epoch, settings.epochs)
            losses |= train_epoch(student, recovery, retain, optimizer, run, clip=settings.clip, label="retain")
            if kept is not None and epoch >= min(settings.forget_epochs, settings.epochs):
                losses["forgotten_agreement"] = float(right_answers(student, images, run, chosen=lost).double().mean())
                kept.look(student, epoch, losses["forgotten_agreement"])
            run.log(epoch, **losses, test_accuracy=evaluate(student, run))
    return student if kept is None else _gone_back(student, kept, settings, run)


def _say_what_does_nothing(settings: Settings, lost: bool, run: Run) -> None:
    """Say it where an option has no image to act on, since all that is forgotten is retained as well, or no epoch."""
    asked = [f"--unlabelled {settings.unlabelled:g}"] * bool(settings.unlabelled) + ["--stop chance"] * (settings.stop == "chance")
    if asked and not lost:
        run.notice(f"{' and '.join(asked)}: without effect, since every image that is forgotten is retained as well")
    elif settings.unlabelled and settings.forget_epochs >= settings.epochs:
        run.notice(f"{asked[0]}: without effect, since it begins after {settings.forget_epochs} epochs of forgetting and there are {settings.epochs} in all")


def chosen_parts(split: Split, settings: Settings, run: Run) -> tuple[Part, Part]:
    """Return who is retained and who is forgotten, with weights where batches are.

    Raises EmptySplit when there is nothing to retain, and InputError for settings that are none.
    """
    check_settings(settings)
    split.check_retain()
    retained, forgotten = parts_of(split, settings.weighting, settings.retain_above)
    return retained.to(run.device), forgotten.to(run.device)


def _forget_mean(logits: Tensor, teacher_logits: Tensor, features: Tensor, centroids: Tensor, weights: Tensor | None, settings: Settings) -> Tensor:
    """Return L_forget of a batch (B, ...), a scalar: the mean over its rows by their weights (B,), None: 1 for each."""
    parts: dict[str, Any] = {"eta": settings.eta, "zeta": settings.zeta, "t": settings.t, "temperature": settings.temperature}
    if weights is None:
        return forget_loss(logits, teacher_logits, features, centroids, **parts)
    return (weights * forget_losses(logits, teacher_logits, features, centroids, **parts)).mean()


def _retain_mean(logits: Tensor, features: Tensor, batch: Batch, centroids: Tensor, weights: Tensor | None, settings: Settings) -> Tensor:
    """Return L_retain of a batch, a scalar: the mean over its rows by their weights (B,), None: 1 for each."""
    if weights is None:
        return retain_loss(logits, features, batch.given_labels, centroids, gamma=settings.gamma, delta=settings.delta)
    return (weights * retain_losses(logits, features, batch.given_labels, centroids, gamma=settings.gamma, delta=settings.delta)).mean()


def _mean_of_all(logits: Tensor, features: Tensor, batch: JointBatch, centroids: Tensor, retained: Part, settings: Settings) -> Tensor:
    """Return L_retain of the labelled rows and, at its weight, the consistency of the others, a scalar: the mean over all rows by their weights."""
    own, pairs = slice(0, batch.labelled), batch.pairs
    values = retain_losses(logits[own], features[own], batch.given_labels[own], centroids, gamma=settings.gamma, delta=settings.delta)
    if (weights := retained.weights_of(batch.index[own])) is not None:
        values = weights * values
    first, second = torch.split(logits[batch.labelled :], [pairs, pairs])
    apart = consistency(first, second, sharpening=settings.sharpening, confidence=settings.tau_conf)
    assert batch.weight is not None
    return (batch.weight * torch.cat([values, apart, apart])).mean()


def _gone_back(student: Classifier, kept: Kept, settings: Settings, run: Run) -> Classifier:
    """Return the student with the weights of the epoch that was kept, and say so where it is not the last."""
    if kept.epoch < settings.epochs:
        student.load_state_dict(kept.weights)
        run.notice(
            f"the network of epoch {kept.epoch} of {settings.epochs} is kept: it predicts {kept.agreement:.1%} of the forgotten labels, "
            f"of which {kept.level:.1%} are to be expected, and later ones learn them again"
        )
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

    Raises EmptySplit when there is nothing to retain, and InputError for settings that are none.
    """
    retained, _ = chosen_parts(split, settings, run)
    places = indices_of(retained.chosen)
    count = min(FITTED_ON, len(places))
    student = copy_of(model)
    some = retained.among(places[torch.arange(count) * len(places) // count])
    centroids = find_centroids(frozen(model), images, run, chosen=some.chosen, weights=some.weights)
    shuffled = places[torch.randperm(len(places), generator=run.generator("first step"))][: settings.retain_batch]
    batch = next(iter(Batches(images, shuffled, settings.retain_batch)))
    with drawn_from(run.generator("first step", "layers")):  # dropout draws too
        logits, features = run.forward(student.train(), compile=False)(batch.images)
    run.count_passes()
    _retain_mean(logits, features, batch, centroids, retained.weights_of(batch.index), settings).backward()  # type: ignore[no-untyped-call]
    moved = torch.stack([weight.grad.clamp(-settings.clip, settings.clip).norm() for weight in student.parameters() if weight.grad is not None]).norm()
    length = torch.stack([weight.detach().norm() for weight in student.parameters()]).norm()
    return run.processes.from_main(lambda: float(settings.lr * moved / length))


@contextlib.contextmanager
def momentum_of_its_own(optimizer: torch.optim.Optimizer, wanted: bool) -> Iterator[None]:
    """Begin and end some steps without any momentum.

    What many steps of another loss built up would carry the weights on for some steps that nothing corrects: a forget pass has few. At the rates of the
    presets of our own that ruins some networks (docs/log.md).
    """
    if wanted:
        optimizer.state.clear()
    yield
    if wanted:
        optimizer.state.clear()


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
