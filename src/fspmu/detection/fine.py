"""fine: the features of a class share a direction, and a wrong label's do not lie along it.

direction   u_c = first eigenvector of sum_{i: y_i = c} f_i f_i^T
score       1 - <u_y, f / |f|>^2, in [0, 1]
What is high differs from class to class: scaling per class is left to the cut.
Source: docs/detection.md, "Scores".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.detection.evidence import Evidence, check_finite


@dataclass(frozen=True)
class Settings:
    """Nothing to choose."""


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return how far the feature of each sample turns away from the direction of its class, (N,) in [0, 1]; HIGH = looks wrong.

    A class of one sample is its own direction: 0. Raises InputError when a feature is not finite.
    """
    features, given = evidence.need("features"), evidence.given_labels
    away = torch.zeros(len(given))
    counts = torch.bincount(given, minlength=evidence.num_classes)
    for members in torch.split(given.argsort(stable=True), counts.tolist()):
        if len(members):
            of_class = features[members].float()
            away[members] = 1 - (F.normalize(of_class, dim=1) @ main_direction(of_class)).square()
    return away.clamp_(0, 1)


def main_direction(features: Tensor) -> Tensor:
    """Return the unit vector (D,) along which features (n, D) have the largest sum of squares, float32.

    Raises InputError when a feature is not finite.
    """
    check_finite(features)
    rows = features.double()
    small = len(rows) < rows.shape[1]
    _, vectors = torch.linalg.eigh(rows @ rows.T if small else rows.T @ rows)
    main: Tensor = rows.T @ vectors[:, -1] if small else vectors[:, -1]
    return F.normalize(main, dim=0).float()
