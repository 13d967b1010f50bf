"""What a cut is: a rule that turns scores into P(clean), with its settings."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fspmu.detection.evidence import Cut, Mixture
from fspmu.errors import DetectionWarning, InputError


@dataclass(frozen=True)
class CutRule:
    """A rule from scores (N,), HIGH = looks wrong, to P(clean) (N,)."""

    cut: Cut
    settings: Any
    about: str
    signed_only: bool = False
    """Whether it asks on which side of 0 a score lies, and so is for margins alone."""


def check_signed(name: str, rule: CutRule, detector: str, signed: bool) -> None:
    """Raise InputError when the rule called `name` needs scores that 0 divides, and those of `detector` are not `signed`."""
    if rule.signed_only and not signed:
        raise InputError(
            f"--cut {name} asks on which side of 0 a score lies, but 0 does not divide the scores of the detector {detector!r}; choose another --cut"
        )


def check_scores(score: Tensor) -> None:
    """Raise InputError unless scores (N,) are there and finite."""
    if score.dim() != 1 or not len(score):
        raise InputError(f"the scores have the shape {tuple(score.shape)}; a cut needs one number for every sample, and at least one sample")
    odd = (~torch.isfinite(score)).nonzero().squeeze(1)
    if len(odd):
        place = int(odd[0])
        raise InputError(
            f"the score of sample {place} is {float(score[place])}, so it cannot be ranked ({len(odd):,} such of {len(score):,}); "
            "choose another --detector, or look at what the model says of that sample"
        )


def say_all_equal(score: Tensor) -> Mixture:
    """Return every label of scores (N,) as clean, with the warning that equal scores say nothing."""
    warnings.warn("all scores are equal: no label looks worse than another, all count as clean", DetectionWarning, stacklevel=4)
    return Mixture(torch.ones(len(score)), ())


def all_equal(score: Tensor) -> bool:
    """Return whether scores (N,) differ by no more than rounding."""
    low, high = float(score.min()), float(score.max())
    return high - low <= 1e-12 * max(abs(low), abs(high))


def members_of_classes(given_labels: Tensor) -> list[Tensor]:
    """Return the places (n,) of the samples of every class that has any."""
    counts = torch.bincount(given_labels)
    return list(torch.split(given_labels.argsort(stable=True), counts[counts > 0].tolist()))
