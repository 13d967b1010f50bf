"""known: the true labels, as a yardstick for every other detector; or a simulated detector of a stated quality.

Source: docs/method.md, "Which samples look wrong".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.detection.evidence import Evidence
from fspmu.errors import check_share


@dataclass(frozen=True)
class Settings:
    """Perfect knowledge."""

    quality: float = 1.0
    """Share q of the wrong labels that is found; 1 - q of the clean ones is then taken for wrong."""


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return 1 for a wrong label and 0 for a right one, (N,); at quality q a share q of the wrong and 1 - q of the clean samples has 1."""
    check_share(settings.quality, "--quality")
    wrong = evidence.given_labels != evidence.need("truth")
    flagged = torch.zeros(len(wrong))
    for group, share in ((wrong, settings.quality), (~wrong, 1 - settings.quality)):
        members = group.nonzero().squeeze(1)
        chosen = members[torch.randperm(len(members), generator=generator)][: round(share * len(members))]
        flagged[chosen] = 1.0
    return flagged
