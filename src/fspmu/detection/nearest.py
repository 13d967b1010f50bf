"""knn: the neighbours of a wrong label, among features, bear another one.

similarity   cosine; the k nearest of every sample are found exactly, the sample itself left out
share        s_c = share of the neighbours whose given label is c, each counted once or by its similarity (the share of a negative one is 0)
score        max_{c != y} s_c - s_y, in [-1, 1]: above 0 where another label has more neighbours
Its cost grows with the square of the number of samples: minutes for 50,000, hours for a million.
Source: docs/detection.md, "Scores".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.detection.evidence import Evidence, check_finite

MOST_NEIGHBOURS = 200
MOST_SIMILARITIES = 2**25
"""Similarities that exist at once, float32."""


@dataclass(frozen=True)
class Settings:
    """A plain vote."""

    neighbours: int | None = None
    """How many neighbours vote. None: twice the root of the number of samples, at most 200."""
    weighted: bool = False
    """Whether a neighbour counts by its similarity."""


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return the best share of another label among the neighbours less that of the own, (N,); HIGH = looks wrong, 0 divides.

    Raises InputError when a feature is not finite.
    """
    features, given = evidence.need("block"), evidence.given_labels
    count = len(given)
    wanted = min(MOST_NEIGHBOURS, max(1, round(2 * count**0.5))) if settings.neighbours is None else settings.neighbours
    margins = torch.zeros(count)
    if not (wanted := min(wanted, count - 1)) > 0:
        return margins
    directions = unit_rows(features)
    for rows in torch.split(torch.arange(count), max(1, MOST_SIMILARITIES // count)):
        similarity, found = nearest(directions, rows, wanted)
        weight = similarity.clamp(min=0) if settings.weighted else torch.ones_like(similarity)
        votes = torch.zeros(len(rows), evidence.num_classes).scatter_add_(1, given[found], weight)
        shares = votes / weight.sum(dim=1, keepdim=True).clamp(min=1e-12)
        own = shares.gather(1, given[rows, None]).squeeze(1)
        margins[rows] = shares.scatter_(1, given[rows, None], 0.0).amax(dim=1) - own
    return margins


def unit_rows(features: Tensor) -> Tensor:
    """Return features (N, D) less their mean over samples, each of length 1, float32.

    Raises InputError when one is not finite.
    """
    plain = features.float()
    centred = plain - plain.mean(dim=0)
    check_finite(centred)
    return F.normalize(centred, dim=1)


def nearest(directions: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the similarities and places, (n, count) each, of the nearest to the unit vectors (N, D) at `rows` (n,), themselves left out."""
    similarity = directions[rows] @ directions.T
    similarity[torch.arange(len(rows)), rows] = -torch.inf
    best = similarity.topk(count, dim=1)
    return best.values, best.indices
