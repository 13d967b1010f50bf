"""log-odds: the score is the log-odds that a label is wrong, and so says its probability itself.

    P(clean) = 1 / (1 + exp(score))

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
    """Nothing to set: the score says it all."""


def cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Mixture:
    """Return P(clean) (N,) by what each score says of it, and no components; all clean, with a warning, when all scores are equal."""
    check_scores(score)
    if all_equal(score):
        return say_all_equal(score)
    return Mixture(on_its_side(torch.sigmoid(-score.double()).float(), score > 0), ())
