"""sign: 0 divides the scores of a margin; what is above it looks more like another class than like the given one.

    P(clean) = 1 / (1 + exp(2 score / median |score|))

.5 at 0, just above it for 0 itself, .12 or .88 at the typical distance. Nothing is fitted, so a data set without a single wrong label loses no more than
the detector itself gets wrong, and one whose scores form no two groups is cut all the same.
Source: docs/detection.md, "Cuts".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.detection.cuts.rule import all_equal, check_scores, say_all_equal
from fspmu.detection.cuts.step import on_its_side
from fspmu.detection.evidence import Mixture


@dataclass(frozen=True)
class Settings:
    """Nothing to set: the data give the scale, and 0 is where it is."""


def cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Mixture:
    """Return P(clean) (N,) by the side of 0 on which a score lies, and no components; all clean, with a warning, when all scores are equal."""
    check_scores(score)
    if all_equal(score):
        return say_all_equal(score)
    distance = score.double().abs()
    typical = distance.median()
    if not typical > 0:  # most scores are 0: the others say what is far
        typical = distance[distance > 0].median()
    return Mixture(on_its_side(torch.sigmoid(-2 * (score.double() / typical)).float(), score > 0), ())  # what is at 0 does not look wrong
