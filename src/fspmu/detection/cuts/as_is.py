"""as-is: the score is the probability that the label is wrong already; for `known` and `random`, which mean what they say.

Source: docs/detection.md, "Cuts".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.detection.cuts.rule import check_scores
from fspmu.detection.evidence import Mixture
from fspmu.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Nothing to set."""


def cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Mixture:
    """Return P(clean) (N,) = 1 - score, and no components.

    Raises InputError for a score outside [0, 1].
    """
    check_scores(score)
    outside = ((score < 0) | (score > 1)).nonzero().squeeze(1)
    if len(outside):
        raise InputError(f"--cut as-is takes scores that are probabilities, but one is {float(score[outside[0]]):g}; choose another --cut, say mixture")
    return Mixture(1 - score, ())
