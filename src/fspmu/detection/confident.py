"""confident-learning: cleanlab's count of who is confidently taken for what, and what it prunes by that.

issues   cleanlab.filter.find_label_issues on the given labels and predicted probabilities p
quality  q = p_y, or normalised margin (p_y - max_{c != y} p_c + 1) / 2, from cleanlab.rank
score    1 - q for an issue, -q for any other: above 0 exactly for what cleanlab calls an issue, and by quality on either side
The cut `sign` therefore decides as cleanlab does. It is made for probabilities of networks that never saw the sample: ask for them with `cross_fit`.
Source: docs/detection.md, "Scores"; C. Northcutt, L. Jiang, I. Chuang, Confident Learning, 2021.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fspmu.detection.evidence import Evidence
from fspmu.errors import InputError

SURE = 1e-6
"""How far from 0 a score stays at least, so that its side is certain."""


@dataclass(frozen=True)
class Settings:
    """What cleanlab is asked for."""

    prune: Literal["confident_learning", "prune_by_class", "prune_by_noise_rate", "both"] = "prune_by_noise_rate"
    """Which of the confidently disputed labels are issues: cleanlab's filter_by."""
    quality: Literal["self_confidence", "normalized_margin"] = "self_confidence"
    """What ranks them."""
    cross_fit: bool = False
    """Whether the probabilities are those of networks trained without the sample, instead of the model's own."""


def needs_of(settings: Settings) -> frozenset[str]:
    """Return the evidence that is asked for: whose probabilities."""
    return frozenset({"cross_fitted" if settings.cross_fit else "logits"})


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return 1 - q for what cleanlab calls an issue and -q for the rest, (N,); HIGH = looks wrong, 0 divides.

    Classes without a given label are left out, and without a second class there is no issue. Raises InputError when cleanlab is not installed.
    """
    (source,) = needs_of(settings)
    probabilities = evidence.need(source).double()
    if source == "logits":
        probabilities = probabilities.softmax(dim=1)
    present, labels = torch.unique(evidence.given_labels, return_inverse=True)
    if len(present) < 2:
        return torch.full((len(labels),), -1.0)
    probabilities = probabilities[:, present].clamp_(min=1e-12)
    probabilities /= probabilities.sum(dim=1, keepdim=True)
    issues, quality = found_by_cleanlab(labels.numpy(), probabilities.numpy(), settings)
    wrong, good = torch.from_numpy(issues), torch.from_numpy(quality).clamp(SURE, 1 - SURE)
    return torch.where(wrong, 1 - good, -good).float()


def found_by_cleanlab(labels: np.ndarray, probabilities: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Return cleanlab's issues (N,) bool and its label quality (N,) in [0, 1], LOW = looks wrong, for labels (N,) and probabilities (N, K).

    Raises InputError when cleanlab is not installed.
    """
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise InputError("the detector 'confident-learning' needs cleanlab: pip install -e '.[cleanlab]'") from None
    issues = find_label_issues(labels, probabilities, filter_by=settings.prune, n_jobs=1)
    return np.asarray(issues, dtype=bool), np.asarray(get_label_quality_scores(labels, probabilities, method=settings.quality))
