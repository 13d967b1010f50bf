"""gmm: a wrong label costs a high loss.

score    cross-entropy of the model on the given label
Two forms: the sound one (evaluation mode, plain images), and `gmm-reference`, which repeats the published statistics pass (one augmented view, batch norm
in training mode). `gmm-probe` is for models that were trained to keep wrong labels out (DivideMix, ProMix, LongReMix): a second score, the losses of a fresh
network after a few epochs on all given labels, says what they memorised all the same.
Two Gaussians tell high from low: the cuts `mixture` and `mixture-reference`.
Source: docs/method.md, "Which samples look wrong".
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.detection.evidence import Evidence, ProbeSettings


@dataclass(frozen=True)
class Settings:
    """Nothing to set: a loss is a loss."""


PROBE_REFERENCE = ProbeSettings(probe_lr=0.1)


def score(evidence: Evidence, settings: Any, generator: torch.Generator) -> Tensor:
    """Return the loss of each sample on its given label, (N,); HIGH = looks wrong."""
    return F.cross_entropy(evidence.need("logits"), evidence.given_labels, reduction="none")


def reference_score(evidence: Evidence, settings: Any, generator: torch.Generator) -> Tensor:
    """Return the losses of the published statistics pass, (N,); HIGH = looks wrong."""
    return evidence.need("reference_losses")


def probe_score(evidence: Evidence, settings: Any, generator: torch.Generator) -> Tensor:
    """Return the losses of the probe, (N,); HIGH = looks wrong."""
    return evidence.need("probe_losses")


def reference_probe_score(evidence: Evidence, settings: Any, generator: torch.Generator) -> Tensor:
    """Return the losses of the probe on the published view, (N,); HIGH = looks wrong."""
    return evidence.need("reference_probe_losses")
