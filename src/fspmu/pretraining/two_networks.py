"""What methods with two networks share: their test, the division of samples by a mixture over losses, and which network is kept."""

import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.data.images import Images
from fspmu.detection import loss_mixture
from fspmu.engine.inference import accuracy, accuracy_of, predict
from fspmu.engine.run import Run, Stateful
from fspmu.errors import DetectionWarning, InputError, choose
from fspmu.models.classifier import Classifier

KEEP = {
    "net1": "the first network, whichever is better",
    "better-on-validation": "the network that agrees more with held-out GIVEN labels",
    "better-on-test": "the network better on TEST data, as published for ProMix and LongReMix; a tie goes to the second",
}

MIXTURE = loss_mixture.Settings(starts=1)
"""The published mixture: one start, losses scaled to [0, 1]."""


def check_alone(run: Run, method: str) -> None:
    """Raise InputError when several processes share the run: rows of a batch are mixed with each other here."""
    if run.processes.count > 1:
        raise InputError(
            f"{method} mixes the rows of a batch and trains in one process; start it without a launcher, and other runs beside it on the other GPUs"
        )


def training_mask(images: Images, keep: str, share: float, run: Run) -> Tensor:
    """Return which samples are trained on, (N,) bool: all, but for a drawn `share` when the network is kept that agrees with held-out labels."""
    choose(KEEP, keep, "--keep")
    mask = torch.ones(len(images), dtype=torch.bool)
    if keep == "better-on-validation":
        held = max(1, round(share * len(images)))
        mask[torch.randperm(len(images), generator=run.generator("validation"))[:held]] = False
    return mask


def numbered(**pairs: Sequence[Stateful]) -> dict[str, Stateful]:
    """Return what comes in pairs under numbered names, for a checkpoint: net1, net2."""
    return {f"{name}{number}": thing for name, things in pairs.items() for number, thing in enumerate(things, start=1)}


class Losses:
    """The losses of one network, scaled to [0, 1], of its last `length` epochs: the mixture is fitted to their mean."""

    def __init__(self, length: int) -> None:
        self._kept: deque[Tensor] = deque(maxlen=length)

    def add(self, values: Tensor) -> Tensor:
        """Take the losses (N,) of an epoch; return the mean of those kept, each scaled to [0, 1]."""
        low, high = values.min(), values.max()
        self._kept.append((values - low) / (high - low) if high > low else torch.zeros_like(values))
        return torch.stack(tuple(self._kept)).mean(dim=0)

    def clear(self) -> None:
        """Forget all epochs."""
        self._kept.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the kept losses for a checkpoint."""
        return {"kept": list(self._kept)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take them back."""
        self._kept = deque(state_dict["kept"], self._kept.maxlen)


def clean_probability(logits: Tensor, images: Images, chosen: Tensor, losses: Losses, run: Run, *purpose: object) -> Tensor:
    """Return P(clean) (N,) from the mixture over the losses of logits (N, K), zero outside `chosen` (N,) bool.

    Losses that are all equal say nothing: every label then counts as clean.
    """
    values = losses.add(F.cross_entropy(logits, images.given_labels.cpu(), reduction="none")[chosen])
    seed = int(torch.randint(0, 2**31 - 1, (), generator=run.generator(run.stage, "mixture", *purpose)))
    clean = torch.zeros(len(images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DetectionWarning)  # early epochs are seldom two clear groups, and that is no news
        clean[chosen] = loss_mixture.posterior(values, MIXTURE, seed)
    return clean


def test_figures(networks: Sequence[Classifier], run: Run) -> dict[str, float | None]:
    """Return the accuracies of both networks and of the sum of their logits on the run's evaluation images; None without any."""
    if run.evaluation is None:
        return {}
    with run.timed("evaluation"):
        logits = [predict(network, run.evaluation, run).logits for network in networks]
    labels = run.evaluation.given_labels
    first, second, both = (accuracy_of(z, labels) for z in (*logits, torch.stack(logits).sum(dim=0)))
    return {"test_accuracy": first, "test_accuracy_net2": second, "test_accuracy_ensemble": both}


def order_of(networks: Sequence[Classifier], images: Images, trained_on: Tensor, keep: str, run: Run) -> tuple[tuple[Classifier, ...], str]:
    """Return the networks, the one to keep first, and its name."""
    if keep == "net1" or (keep == "better-on-test" and run.evaluation is None):
        return tuple(networks), "net1"
    judged = run.evaluation if keep == "better-on-test" else images.subset((~trained_on).nonzero().squeeze(1))
    assert judged is not None
    first, second = (accuracy(network, judged, run) for network in networks)
    what = "TEST data: picked on test data" if keep == "better-on-test" else "held-out given labels"
    better = second >= first
    run.notice(f"net{2 if better else 1} is kept: net1 {first:.2%}, net2 {second:.2%} on {what}")
    return (tuple(networks[::-1]), "net2") if better else (tuple(networks), "net1")
