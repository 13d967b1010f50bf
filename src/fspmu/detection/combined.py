"""combined: what features say of a label, and the history of training, or views where nobody kept that.

leading  the log-odds of noise-transition: how many labels of a class are wrong, and taken for which others
beside   the disagreement over the epochs of training; without it minus the mean margin over views, which counts for less
within   what that says beyond the mean of its class, over its standard deviation s, squashed: g(x) = 3 tanh(x / (3 s)). Views and history mistake a hard
         class for a mislabelled one, and so count within a class alone.
score    leading + times * g(beside - mean_y)
0 divides as it does for the log-odds.
Source: docs/detection.md, "Scores".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.detection import noise_transition, trajectory
from fspmu.detection.evidence import Evidence

NEEDS = frozenset({"block", "view_margins"})
OPTIONAL = frozenset({"history"})
"""Used where it is there, never computed for this."""
FARTHEST = 3.0
"""Standard deviations at which a part stops counting for more."""


@dataclass(frozen=True)
class Settings(noise_transition.Settings):
    """The log-odds by features, and what counts beside them for how much."""

    history_counts: float = 2.0
    """What a standard deviation of the history adds to the log-odds."""
    views_count: float = 0.5
    """What a standard deviation of the margin over views adds to the log-odds, where there is no history."""


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return both together, (N,), as log-odds; HIGH = looks wrong, 0 divides."""
    leading = noise_transition.score(evidence, settings, generator)
    if evidence.history is None:
        beside, times = -evidence.need("view_margins").float(), settings.views_count
    else:
        beside, times = trajectory.score(evidence, trajectory.Settings(), generator), settings.history_counts
    return join(leading, beside, evidence.given_labels, evidence.num_classes, times)


def join(leading: Tensor, beside: Tensor, given_labels: Tensor, num_classes: int, times: float) -> Tensor:
    """Return one score (N,) of leading log-odds (N,) and what is said beside them (N,), which counts within the classes alone."""
    return (leading.double() + times * within_classes(beside, given_labels, num_classes)).float()


def within_classes(values: Tensor, given_labels: Tensor, num_classes: int) -> Tensor:
    """Return how far values (N,) lie from the mean of their class, in standard deviations of all and squashed, (N,) float64; 0 where none differs."""
    away = values.double() - class_means(values, given_labels, num_classes)
    spread = float(away.square().mean().sqrt())
    if not spread > 1e-6 * float(values.double().abs().max()):  # only rounding is left
        return torch.zeros_like(away)
    return FARTHEST * torch.tanh(away / (FARTHEST * spread))


def class_means(values: Tensor, given_labels: Tensor, num_classes: int) -> Tensor:
    """Return for each sample the mean of values (N,) among those of its given label, (N,) float64."""
    sums = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, given_labels, values.double())
    return (sums / torch.bincount(given_labels, minlength=num_classes).clamp(min=1))[given_labels]
