"""random: every sample has the same chance to be forgotten. The baseline that a detector must beat.

Source: docs/method.md, "Which samples look wrong".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.detection.evidence import Evidence
from fspmu.errors import check_share


@dataclass(frozen=True)
class Settings:
    """A coin."""

    share: float = 0.5
    """Probability with which each sample is taken for wrong."""


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return 1 with probability `share`, else 0, (N,)."""
    check_share(settings.share, "--share")
    return (torch.rand(len(evidence.given_labels), generator=generator) < settings.share).float()
