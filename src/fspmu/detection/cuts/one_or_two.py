"""One group of scores or two? A test without labels that a skewed group or one with heavy tails does not deceive.

Two Gaussians always fit better than one where a single group is skewed, and the margins and losses of clean labels are. So both readings may bend the axis:
powers of the distance from either end, and sinh(d asinh u - e) of the robustly standardised score u. Scores count as two groups when some reading by two
Gaussians on a bent axis
  - is likelier than EVERY reading by one Gaussian (or by equal chances over the range): gain > penalty * log(n) / 2, at 3 the BIC;
  - has two groups on that axis: Ashman's D above `separation`;
  - has a valley on the axis of the score itself: its density there is below the lower of both peaks by a tenth;
  - has at least three samples, and no more than nine in ten, in the high group.
Of those that pass, the likeliest says P(clean).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fspmu.detection.cuts.groups import Groups, condense, fit_groups, log_density, log_odds

STARTS, ROUNDS, TOLERANCE = 5, 60, 1e-3
VALLEY = 0.1
"""How far the log of the density falls between the peaks."""
_MIRRORED = 0.3
_POWERS = tuple(("power", 1.0, power) for power in (1.0, 0.5, 0.25, 0.0)) + tuple(("power", -1.0, power) for power in (0.5, 0.25, 0.0))
_TAMED = tuple(("asinh", tails, 0.0) for tails in (0.4, 0.7))
_LEANING = tuple(("asinh", tails, lean) for tails in (0.4, 0.7, 1.0) for lean in (-1.5, -0.75, -0.35, 0.0, 0.35, 0.75, 1.5))
TWO = _POWERS + _TAMED
"""Axes on which two Gaussians are fitted."""
ONE = _POWERS + _LEANING
"""Axes on which one is."""

Bend = tuple[str, float, float]


class Scale(NamedTuple):
    """Where the scores of C sets lie: lowest, highest, median and spread, (C, 1) each."""

    lowest: Tensor
    highest: Tensor
    median: Tensor
    spread: Tensor


class Reading(NamedTuple):
    """Two groups in one set of scores."""

    bend: Bend
    scale: Scale
    groups: Groups
    row: int
    start: int

    @property
    def share(self) -> float:
        """Weight of the high group."""
        return float(self.groups.share[self.row, self.start])

    def log_odds(self, score: Tensor) -> Tensor:
        """Return the log of P(wrong) / P(clean) at scores (N,), never falling as the score grows."""
        return log_odds(bent(score.double()[None], self.scale, self.bend)[0][0], self.groups, self.row, self.start)


def read_groups(sets: list[Tensor], separation: float, penalty: float, most: int) -> list[Reading | None]:
    """Return for each set of scores (n,) its two groups, or None where it is one; each set is condensed to at most `most` points."""
    found: list[Reading | None] = [None] * len(sets)
    usable = [place for place, score in enumerate(sets) if len(score) > 1 and bool(score.max() > score.min())]
    for start in range(0, len(usable), 32):
        places = usable[start : start + 32]
        for place, reading in zip(places, _read([sets[place] for place in places], separation, penalty, most), strict=True):
            found[place] = reading
    return found


def _read(sets: list[Tensor], separation: float, penalty: float, most: int) -> list[Reading | None]:
    points, counts = _stacked(sets, most)
    scale, total = _scale_of(points, counts), counts.sum(1)
    one = torch.stack([_likelihood_of_one(points, counts, scale, bend) for bend in ONE]).amax(0)
    one = torch.maximum(one, -total * (scale.highest - scale.lowest).squeeze(1).log())
    best = torch.full_like(total, -torch.inf)
    readings: list[Reading | None] = [None] * len(sets)
    between = torch.cat([points[:, :-1] + (points[:, 1:] - points[:, :-1]) * k / 4 for k in range(4)] + [points[:, -1:]], 1).sort(1).values
    for bend in TWO:
        axis, slope = bent(points, scale, bend)
        groups = fit_groups(axis, counts, STARTS, ROUNDS, TOLERANCE)
        inner, inner_slope = bent(between, scale, bend)
        valley = _valley(log_density(inner, groups) + inner_slope[:, None, :])
        passed = (groups.separation() > separation) & (valley > VALLEY) & (groups.share * total[:, None] >= 3) & (groups.share <= 0.9)
        likelihood = torch.where(passed, groups.likelihood + (counts * slope).sum(1, keepdim=True), -torch.inf)
        value, start = likelihood.max(1)
        for row in ((value > best) & (value - one > penalty * total.log() / 2)).nonzero().squeeze(1).tolist():
            best[row] = value[row]
            readings[row] = Reading(bend, Scale(*(field[row : row + 1] for field in scale)), groups, row, int(start[row]))
    return readings


def _stacked(sets: list[Tensor], most: int) -> tuple[Tensor, Tensor]:
    """Return the condensed sets as rows (C, G); short rows repeat their last point, with a count of 0."""
    condensed = [condense(loosened(score), most) for score in sets]
    width = max(len(points) for points, _ in condensed)
    points = torch.stack([torch.cat([points, points[-1:].expand(width - len(points))]) for points, _ in condensed])
    return points, torch.stack([torch.cat([counts, counts.new_zeros(width - len(counts))]) for _, counts in condensed])


def loosened(score: Tensor) -> Tensor:
    """Return scores (N,) in rising order in which a value that more than one in twenty share is spread: it says where many lie, and is no group of its own.

    Between two others it is spread half the way to each, and so are the ends of a scale of few steps. Else an end, say a loss of exactly 0, is spread
    outwards like a small image of all other scores in a mirror: it then falls off as the group does whose end it is.
    """
    rest = score.double().sort().values
    starts = torch.cat([torch.tensor([True]), rest.diff() > 0]).nonzero().squeeze(1)
    levels, counts = rest[starts], torch.cat([starts, torch.tensor([len(rest)])]).diff()
    heavy = counts > max(1, len(score) // 20)
    if len(levels) == 1:
        return rest
    parts = [levels.repeat_interleave(torch.where(heavy, 0, counts))]
    for k in heavy.nonzero().squeeze(1).tolist():
        others, even = rest[rest != levels[k]], torch.linspace(0, 1, int(counts[k]), dtype=torch.float64)
        first, last = k == 0, k == len(levels) - 1
        if not (first or last) or (len(levels) > 1 and bool(heavy[1 if first else -2])):
            below, above = levels[max(k - 1, 0)], levels[min(k + 1, len(levels) - 1)]
            left, right = (above - levels[k] if first else levels[k] - below), (levels[k] - below if last else above - levels[k])
            parts.append(levels[k] - left / 2 + (left + right) / 2 * even)
        else:
            image = others[(even * (len(others) - 1)).long()]
            parts.append(levels[k] - _MIRRORED * (image - levels[k]))
    return torch.cat(parts).sort().values


def _scale_of(points: Tensor, counts: Tensor) -> Scale:
    rank = counts.cumsum(1) / counts.sum(1, keepdim=True)

    def quantile(share: float) -> Tensor:
        return points.gather(1, (rank >= share - 1e-9).double().argmax(1, keepdim=True))

    lowest, highest = points[:, :1], points.amax(1, keepdim=True)
    spread = (quantile(0.75) - quantile(0.25)) / 1.349
    return Scale(lowest, highest, quantile(0.5), spread.clamp(min=1e-3 * (highest - lowest)))


def bent(score: Tensor, scale: Scale, bend: Bend) -> tuple[Tensor, Tensor]:
    """Return scores (C, G) on a bent axis, which rises with them, and the log of the slope of the bend, (C, G) each."""
    kind, first, second = bend
    if kind == "asinh":
        u = (score - scale.median) / scale.spread
        angle = first * u.asinh() - second
        return angle.sinh(), angle.cosh().log() + torch.log(first / scale.spread) - (1 + u * u).log() / 2
    end = scale.lowest if first > 0 else scale.highest
    unit = ((scale.median - end) * first).clamp(min=1e-3 * (scale.highest - scale.lowest))
    distance = ((score - end) * first).clamp(min=0) / unit + 0.02  # not 0: the end itself would lie at infinity
    axis = distance.log() if second == 0 else (distance**second - 1) / second
    return first * axis, (second - 1) * distance.log() - unit.log()


def _likelihood_of_one(points: Tensor, counts: Tensor, scale: Scale, bend: Bend) -> Tensor:
    """Return the log-likelihood (C,) of one Gaussian on a bent axis."""
    axis, slope = bent(points, scale, bend)
    total = counts.sum(1)
    mean = (counts * axis).sum(1, keepdim=True) / total[:, None]
    variance = ((counts * (axis - mean) ** 2).sum(1) / total).clamp(min=1e-300)
    return -0.5 * total * ((2 * torch.pi * variance).log() + 1) + (counts * slope).sum(1)


def _valley(density: Tensor) -> Tensor:
    """Return how far log-densities (R, S, G), at points in rising order, fall between two peaks, (R, S): the drop below the lower of the two."""
    left, right = density.cummax(2).values, density.flip(2).cummax(2).values.flip(2)
    return (torch.minimum(left, right) - density).amax(2)
