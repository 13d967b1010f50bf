"""combined: what features, views and the history of training say of a label, together.

parts    b = the feature margin; others: minus the mean margin over views, and, where there is one, the disagreement over the epochs of training
level    mean of b among the samples of a given label: how many of its labels are wrong. Views and history mistake a hard class for a mislabelled one.
within   what a part says beyond the mean of its class, over its standard deviation s, squashed: g(x) = 3 tanh(x / (3 s))
score    level_y / s_b + (lead * g(b - level_y) + sum over the others of g(part - mean_y)) / (lead + number of others)
0 divides as it does for the feature margin, the level of whose classes is kept.
Source: docs/detection.md, "Scores".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.detection import feature_margin, trajectory
from fspmu.detection.evidence import Evidence

NEEDS = frozenset({"block", "view_margins"})
OPTIONAL = frozenset({"history"})
"""Used where it is there, never computed for this."""
FARTHEST = 3.0
"""Standard deviations at which a part stops counting for more."""


@dataclass(frozen=True)
class Settings(feature_margin.Settings):
    """The feature margin, and what it counts for."""

    lead: float = 2.0
    """What the feature margin counts for, where views and history count for 1 each."""


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return the parts together, (N,), in standard deviations; HIGH = looks wrong, 0 divides."""
    leading = feature_margin.score(evidence, settings, generator)
    others = [-evidence.need("view_margins").float()]
    if evidence.history is not None:
        others.append(trajectory.score(evidence, trajectory.Settings(), generator))
    return join(leading, others, evidence.given_labels, evidence.num_classes, settings.lead)


def join(leading: Tensor, others: list[Tensor], given_labels: Tensor, num_classes: int, lead: float) -> Tensor:
    """Return one score (N,) of a leading margin (N,), which sets the level of each class, and others (N,), which count within the classes.

    One of the others that says the same of all samples of a class does not count.
    """
    level = class_means(leading, given_labels, num_classes)
    inside, spread = _within(leading, level)
    parts = [_within(part, class_means(part, given_labels, num_classes)) for part in others]
    said = [deviations for deviations, size in parts if size > 0]
    scale = spread or float(level.abs().mean()) or 1.0
    weighed = lead * inside + sum(said, torch.zeros(len(leading), dtype=torch.float64))
    return (level / scale + weighed / max(lead + len(said), 1e-12)).float()


def class_means(values: Tensor, given_labels: Tensor, num_classes: int) -> Tensor:
    """Return for each sample the mean of values (N,) among those of its given label, (N,) float64."""
    sums = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, given_labels, values.double())
    return (sums / torch.bincount(given_labels, minlength=num_classes).clamp(min=1))[given_labels]


def _within(values: Tensor, level: Tensor) -> tuple[Tensor, float]:
    """Return the deviations of values (N,) from their level (N,), in standard deviations and squashed, and the standard deviation; 0 where none deviates."""
    away = values.double() - level
    spread = float(away.square().mean().sqrt())
    if not spread > 1e-6 * float(values.double().abs().max()):  # only rounding is left
        return torch.zeros_like(away), 0.0
    return FARTHEST * torch.tanh(away / (FARTHEST * spread)), spread
