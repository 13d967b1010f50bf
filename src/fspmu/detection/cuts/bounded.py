"""bounded-mixture: two Gaussians over scores that are squashed between 0 and 1 first.

    u = (score - median) / (1.4826 MAD)        b = 1 / (1 + exp(-u / 2))

A few huge losses otherwise stretch the scale until all the rest is one narrow group, and one Gaussian is spent on them. The logistic rule suits margins and
losses alike: it is nearly linear where most scores lie, bounded at both ends, and neither the unit of the score nor where its 0 is matters. 1 - exp(-loss),
the usual way to bound a loss, needs both. With u / 2 a single group keeps the shape of a bell; with u it spreads over the whole scale and is cut in the
middle, and with u / 3 and less long tails get a Gaussian of their own again.
It is for margins, and for losses of which many are wrong. Few wrong labels among losses are lost beside the long tail of the clean ones, and half of a skewed
group is called wrong: see the cuts `otsu` and `per-class`.
P(clean) is the posterior of the lower group, held where the wider Gaussian would claim the far end, so that it never rises with the score.
Source: docs/detection.md, "Cuts".
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.detection.cuts.groups import condense, fit_groups, log_odds
from fspmu.detection.cuts.rule import all_equal, check_scores, say_all_equal
from fspmu.detection.cuts.squash import squashed
from fspmu.detection.evidence import Mixture
from fspmu.errors import DetectionWarning

SOFTNESS = 2.0


@dataclass(frozen=True)
class Settings:
    """How the mixture is fitted."""

    starts: int = 10
    """Starting points, with more and more samples in the high group; the likeliest fit wins."""
    max_iterations: int = 200
    """Rounds of expectation and maximisation."""
    tolerance: float = 1e-4
    """Change of the parameters, in standard deviations of all scores, below which the fit stops."""


def cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Mixture:
    """Return P(clean) (N,), never rising with the score, and no components: the axis is another.

    All clean, with a warning, when all scores are equal; warns when the components are no two groups (Ashman's D below 2). Raises InputError for a score
    that is not finite.
    """
    check_scores(score)
    if all_equal(score):
        return say_all_equal(score)
    values = squashed(score, SOFTNESS)
    points, counts = condense(values)
    groups = fit_groups(points[None], counts[None], settings.starts, settings.max_iterations, settings.tolerance)
    start = int(groups.likelihood[0].argmax())
    distance = float(groups.separation()[0, start])
    if distance < 2:
        warnings.warn(
            f"the bounded scores do not form two groups (Ashman's D = {distance:.2f}, below 2): the split between clean and wrong labels is a guess",
            DetectionWarning,
            stacklevel=2,
        )
    return Mixture(torch.sigmoid(-log_odds(values, groups, 0, start)).float(), ())
