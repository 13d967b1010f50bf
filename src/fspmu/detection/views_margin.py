"""views-margin: a network agrees with a wrong label less on views of the image other than those it learned it by heart from.

logit         m = the mean over the views of z_y - max_{c != y} z_c
probability   m = p_y - max_{c != y} p_c, p the mean softmax over the views
score         -m: above 0 where another label has more
Source: docs/detection.md, "Scores".
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fspmu.detection.evidence import Evidence
from fspmu.losses import margins


@dataclass(frozen=True)
class Settings:
    """What the margin is taken of."""

    of: Literal["logit", "probability"] = "logit"
    """Of the logits of each view, or of the mean probabilities."""


def needs_of(settings: Settings) -> frozenset[str]:
    """Return the evidence that is asked for: which margins."""
    return frozenset({"view_margins" if settings.of == "logit" else "view_probabilities"})


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return minus the margin of the given label over the views, (N,); HIGH = looks wrong, 0 divides."""
    if settings.of == "logit":
        return -evidence.need("view_margins").float()
    return -margins(evidence.need("view_probabilities").float(), evidence.given_labels)
