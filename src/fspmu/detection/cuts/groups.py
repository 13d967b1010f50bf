"""Two Gaussians over many small sets of numbers at once: what the cuts share that ask where a low group of scores ends and a high one begins.

Scores in one dimension are first condensed: sorted and gathered into a few hundred means of neighbours. A fit then costs the same for a thousand scores
and for a million, and the sets (classes, transforms, starts) are rows of one tensor.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

MOST = 4096
"""Points that stand for the scores of one set, at most."""
VARIANCE_FLOOR = 2.5e-3
"""Added to each variance, in units of the set's own: a group is at least a twentieth as wide as the set."""
_AT_ONCE = 2**18


class Groups(NamedTuple):
    """Two Gaussians for each of R sets and S starts, (R, S) each, on the axis z = (x - centre) / spread of the set; the first has the lower mean."""

    share: Tensor
    """Weight of the high group."""
    low: Tensor
    low_variance: Tensor
    high: Tensor
    high_variance: Tensor
    likelihood: Tensor
    """Log-likelihood of the set on its own axis x."""
    centre: Tensor
    """(R,)."""
    spread: Tensor
    """(R,)."""

    def separation(self) -> Tensor:
        """Return Ashman's D = sqrt(2) (m_high - m_low) / sqrt(v_low + v_high); above 2 two Gaussians are clearly two groups."""
        return 2**0.5 * (self.high - self.low) / (self.low_variance + self.high_variance).sqrt()


def condense(score: Tensor, most: int = MOST) -> tuple[Tensor, Tensor]:
    """Return points (G,) in rising order and how many of the scores (N,) each stands for, (G,), G at most `most`; float64.

    Half of the edges are evenly spaced over the range, so that no point bridges a gap; half are evenly spaced in the log-odds of the rank, so that the
    ends of a long tail keep points of their own.
    """
    ordered = score.double().sort().values
    count = len(ordered)
    if count <= most:
        return ordered, torch.ones_like(ordered)
    level = torch.linspace(0, 1, most // 2 + 1, dtype=torch.float64)[1:-1]
    by_value = torch.searchsorted(ordered, ordered[0] + (ordered[-1] - ordered[0]) * level)
    by_rank = (torch.sigmoid((2 * level - 1) * math.log(count)) * count).round().long()
    edges = torch.cat([torch.tensor([0, count]), by_value, by_rank]).sort().values
    edges = edges[torch.cat([torch.tensor([True]), edges.diff() > 0])]
    counts = edges.diff()
    point_of = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return torch.zeros(len(counts), dtype=torch.float64).index_add_(0, point_of, ordered) / counts, counts.double()


def start_shares(starts: int) -> Tensor:
    """Return the shares (S,) of the high group from which the fits start: denser among the small ones, which are the harder to find."""
    return 0.9 * ((torch.arange(starts, dtype=torch.float64) + 0.5) / starts) ** 2


def above_quantile(counts: Tensor, shares: Tensor) -> Tensor:
    """Return for points in rising order with counts (R, G) whether each is among the highest `shares` (S,) of its set, (R, S, G) float64."""
    rank = torch.where(counts > 0, (counts.cumsum(1) - counts / 2) / counts.sum(1, keepdim=True), -1)  # a count of 0 only fills a row
    start = (rank[:, None, :] > 1 - shares[:, None]).double()
    return torch.where(start.sum(2, keepdim=True) > 0, start, (rank == rank.amax(1, keepdim=True)).double()[:, None, :])


def fit_groups(points: Tensor, counts: Tensor, starts: int, max_iterations: int, tolerance: float) -> Groups:
    """Return two Gaussians for each row of points (R, G), in rising order, with counts (R, G), by expectation and maximisation from each start.

    A fit ends when no parameter moves by more than `tolerance` in units of the set's spread. No row may hold equal points alone.
    """
    rows = max(1, _AT_ONCE // (points.shape[1] * starts))
    parts = [_fit(x, n, starts, max_iterations, tolerance) for x, n in zip(torch.split(points, rows), torch.split(counts, rows), strict=True)]
    return Groups(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _fit(points: Tensor, counts: Tensor, starts: int, max_iterations: int, tolerance: float) -> Groups:
    total = counts.sum(1)
    weights = counts / total[:, None]
    centre = (weights * points).sum(1)
    spread = (weights * (points - centre[:, None]) ** 2).sum(1).sqrt()
    z = ((points - centre[:, None]) / spread[:, None]).repeat_interleave(starts, 0)
    weights = weights.repeat_interleave(starts, 0)
    found = torch.empty(len(z), 5, dtype=torch.float64)
    left, (x, w), before = torch.arange(len(z)), (z, weights), torch.full((len(z), 5), torch.inf, dtype=torch.float64)
    whole = _sums(w, x)
    part = w * above_quantile(counts, start_shares(starts)).flatten(0, 1)
    for _ in range(max_iterations):
        now = _moments(_sums(part, x), whole)
        found[left] = now
        moving = (now - before).abs().amax(1) > tolerance
        if not bool(moving.all()):
            left, x, w, whole, now = (field[moving] for field in (left, x, w, whole, now))
        if not len(left):
            break
        before, part = now, w * torch.sigmoid(_log_odds(x, now))
    share, low, low_variance, high, high_variance = found.view(-1, starts, 5).unbind(2)
    density = _log_density(z, found)
    likelihood = total[:, None] * ((weights * density).sum(1).view(-1, starts) - spread.log()[:, None])
    flip = low > high
    return Groups(
        torch.where(flip, 1 - share, share),
        torch.where(flip, high, low),
        torch.where(flip, high_variance, low_variance),
        torch.where(flip, low, high),
        torch.where(flip, low_variance, high_variance),
        likelihood,
        centre,
        spread,
    )


def _sums(weights: Tensor, z: Tensor) -> Tensor:
    """Return the sums (R, 3) of 1, z and z^2 under weights (R, G)."""
    weighted = weights * z
    return torch.stack([weights.sum(1), weighted.sum(1), (weighted * z).sum(1)], 1)


def _moments(sums: Tensor, whole: Tensor) -> Tensor:
    """Return (share, low mean, low variance, high mean, high variance), (R, 5), from the sums (R, 3) of 1, z and z^2 over the high group and over all."""

    def mean_and_variance(sums: Tensor) -> tuple[Tensor, Tensor]:
        weight = sums[:, 0].clamp(min=1e-9)
        mean = sums[:, 1] / weight
        return mean, (sums[:, 2] / weight - mean**2).clamp(min=0) + VARIANCE_FLOOR

    share = sums[:, 0].clamp(1e-9, 1 - 1e-9)
    return torch.stack([share, *mean_and_variance(whole - sums), *mean_and_variance(sums)], 1)


def _log_parts(z: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    share, low, low_variance, high, high_variance = (column[:, None] for column in found.unbind(1))
    below = (1 - share).log() - low_variance.log() / 2 - (z - low) ** 2 / (2 * low_variance)
    return below, share.log() - high_variance.log() / 2 - (z - high) ** 2 / (2 * high_variance)


def _log_odds(z: Tensor, found: Tensor) -> Tensor:
    """Return log P(high) - log P(low) at z (R, G): a quadratic."""
    share, low, low_variance, high, high_variance = found.unbind(1)
    square = (1 / low_variance - 1 / high_variance) / 2
    slope = high / high_variance - low / low_variance
    level = torch.logit(share) + (low_variance / high_variance).log() / 2 + (low**2 / low_variance - high**2 / high_variance) / 2
    return (square[:, None] * z + slope[:, None]) * z + level[:, None]


def _log_density(z: Tensor, found: Tensor) -> Tensor:
    return torch.logaddexp(*_log_parts(z, found)) - math.log(2 * math.pi) / 2


def log_density(x: Tensor, groups: Groups) -> Tensor:
    """Return the log-density of the mixtures, (R, S, G), at the points x (R, G) of each set."""
    starts = groups.share.shape[1]
    z = ((x - groups.centre[:, None]) / groups.spread[:, None]).repeat_interleave(starts, 0)
    found = torch.stack(groups[:5], 2).flatten(0, 1)
    return (_log_density(z, found) - groups.spread.log().repeat_interleave(starts)[:, None]).view(-1, starts, x.shape[1])


def log_odds(x: Tensor, groups: Groups, row: int, start: int) -> Tensor:
    """Return the log of P(high) / P(low) at x (N,) for one fit, never falling as x grows.

    The wider of two Gaussians claims both ends. Beyond the turning point of the quadratic the value is held, so that the lowest never look higher than what
    lies above them, nor the highest lower.
    """
    low, low_variance, high, high_variance = (float(field[row, start]) for field in groups[1:5])
    z = (x.double() - groups.centre[row]) / groups.spread[row]
    if low_variance != high_variance:
        turning = (low * high_variance - high * low_variance) / (high_variance - low_variance)
        z = z.clamp(min=turning) if high_variance > low_variance else z.clamp(max=turning)
    return _log_odds(z[None], torch.stack([field[row, start] for field in groups[:5]])[None])[0]
