"""beta: two Beta distributions over scores scaled to lie between 0 and 1.

    p(u) = (1 - w) Beta(u; a_0, b_0) + w Beta(u; a_1, b_1)

A Beta density leans to one end or piles up there. Two scales: `logistic`, u = 1 / (1 + exp(-(score - median) / (1.4826 MAD))), for margins, and for losses
with many wrong labels; `linear`, from the score that one in fifty lies below to the one that one in fifty lies above, for losses with few. What lies farther
out is left out of the linear fit and judged as the end is: clipped, it would be a pile there that the data do not have.
Fitted by expectation and maximisation, each Beta by its mean m and variance v: a = m k, b = (1 - m) k with k = m (1 - m) / v - 1. P(clean) is the posterior of
the component with the lower mean.
The log of the ratio of both densities, (a_1 - a_0) log u + (b_1 - b_0) log(1 - u), turns at u* = A / (A + B) where A = a_1 - a_0 and B = b_1 - b_0 have the
same sign. Beyond it P(clean) is held, so that it neither falls again among the lowest scores nor rises again among the highest.
Source: docs/detection.md, "Cuts".
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fspmu.detection.cuts.groups import above_quantile, condense, start_shares
from fspmu.detection.cuts.rule import all_equal, check_scores, say_all_equal
from fspmu.detection.cuts.squash import squashed
from fspmu.detection.evidence import Mixture

END, TRIMMED = 0.01, 0.02


@dataclass(frozen=True)
class Settings:
    """How the mixture is fitted."""

    starts: int = 5
    """Starting points, with more and more samples in the high component; the likeliest fit wins."""
    max_iterations: int = 200
    """Rounds of expectation and maximisation."""
    tolerance: float = 1e-6
    """Change of the mean log-likelihood per sample below which the fit stops."""
    scale: Literal["logistic", "linear"] = "logistic"
    """How scores come to lie between 0 and 1."""


def cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Mixture:
    """Return P(clean) (N,), never rising with the score, and no components: they are no Gaussians.

    All clean, with a warning, when all scores are equal. Raises InputError for a score that is not finite.
    """
    check_scores(score)
    if all_equal(score):
        return say_all_equal(score)
    unit = scaled(score, settings.scale)
    inside = unit[(unit > END) & (unit < 1 - END)]
    fitted = inside if len(inside) > 1 and not all_equal(inside) else unit
    return Mixture(torch.sigmoid(-log_odds(unit, fit_betas(*condense(fitted), settings))).float(), ())


def scaled(score: Tensor, scale: str) -> Tensor:
    """Return scores (N,) between END and 1 - END."""
    if scale == "logistic":
        return END + (1 - 2 * END) * squashed(score, 1.0)
    values = score.double()
    ordered = values.sort().values
    skipped = int(TRIMMED * len(values))
    low, high = ordered[skipped], ordered[-1 - skipped]
    if not high > low:
        low, high = ordered[0], ordered[-1]
    return END + (1 - 2 * END) * ((values - low) / (high - low)).clamp(0, 1)


def fit_betas(points: Tensor, counts: Tensor, settings: Settings) -> Tensor:
    """Return (w, a_0, b_0, a_1, b_1), (5,), of the likeliest mixture of points (G,) inside (0, 1) with counts (G,); 1 has the higher mean."""
    weights = counts / counts.sum()
    high = above_quantile(counts[None], start_shares(settings.starts))[0]
    before = torch.full((settings.starts,), -torch.inf, dtype=torch.float64)
    found = torch.empty(settings.starts, 5, dtype=torch.float64)
    for _ in range(settings.max_iterations):
        share = (high * weights).sum(1).clamp(1e-9, 1 - 1e-9)
        found = torch.stack([share, *_shape(points, weights * (1 - high)), *_shape(points, weights * high)], 1)
        below, above = _log_parts(points, found)
        high = torch.sigmoid(above - below)
        likelihood = (weights * torch.logaddexp(below, above)).sum(1)
        if float((likelihood - before).abs().max()) < settings.tolerance:
            break
        before = likelihood
    share, a0, b0, a1, b1 = found[int(likelihood.argmax())]
    if a0 / (a0 + b0) > a1 / (a1 + b1):
        return torch.stack([1 - share, a1, b1, a0, b0])
    return torch.stack([share, a0, b0, a1, b1])


def _shape(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b, (S,) each, of Beta distributions with the means and variances of points (G,) under weights (S, G)."""
    total = weights.sum(1).clamp(min=1e-9)
    mean = ((weights * points).sum(1) / total).clamp(END / 2, 1 - END / 2)
    variance = (weights * (points - mean[:, None]) ** 2).sum(1) / total
    widest = mean * (1 - mean)
    precision = widest / torch.minimum(variance.clamp(min=1e-5), 0.95 * widest) - 1
    return mean * precision, (1 - mean) * precision


def _log_parts(points: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log of weight times density of both components, (S, G) each."""

    def log_beta(a: Tensor, b: Tensor) -> Tensor:
        constant = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
        return constant[:, None] + (a - 1)[:, None] * points.log() + (b - 1)[:, None] * torch.log1p(-points)

    share, a0, b0, a1, b1 = found.unbind(1)
    return (1 - share).log()[:, None] + log_beta(a0, b0), share.log()[:, None] + log_beta(a1, b1)


def log_odds(unit: Tensor, found: Tensor) -> Tensor:
    """Return the log of P(wrong) / P(clean) at unit (N,), never falling as it grows."""
    _, a0, b0, a1, b1 = found
    rise, fall = float(a1 - a0), float(b1 - b0)
    if rise * fall > 0:
        turning = rise / (rise + fall)
        unit = unit.clamp(max=turning) if rise > 0 else unit.clamp(min=turning)
    below, above = _log_parts(unit, found[None])
    return (above - below)[0]
