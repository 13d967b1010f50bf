"""feature-margin: among features, a wrong label lies nearer to another class than to its own.

score          d_y - min_{k != y} d_k: above 0 where another class is nearer; d_k as in discriminant.py
Source: docs/detection.md, "Scores".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.detection.discriminant import DiscriminantSettings, fitted_discriminant
from fspmu.detection.evidence import Evidence


@dataclass(frozen=True)
class Settings(DiscriminantSettings):
    """How the discriminant is estimated."""


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return d_y - min_{k != y} d_k among the pooled features of one depth, (N,); HIGH = looks wrong, 0 divides."""
    block, given = evidence.need("block"), evidence.given_labels
    return fitted_discriminant(block, given, evidence.num_classes, settings).margins(block, given)
