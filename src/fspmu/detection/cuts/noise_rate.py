"""noise-rate: as many labels are wrong as there seem to be, and these are the ones with the highest scores.

Where nobody gives the rate it is estimated, without true labels, in one of two ways:
  mirror     for scores that 0 divides: of the half of the samples that lie farthest from 0, the share above it. A margin that far out seldom has the wrong
             sign, and wrong labels lie as far out on their side as right ones on theirs.
  mixture    for all others: the mean posterior of the high group, where the scores are two groups (see one_or_two.py), else 0.
Where the groups overlap much, the mirror says too much for low rates. Margins of one sign, as of a network that has memorised every label, go to the mixture.
Source: docs/detection.md, "Cuts".
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fspmu.detection.cuts.one_or_two import read_groups
from fspmu.detection.cuts.rule import all_equal, check_scores, say_all_equal
from fspmu.detection.cuts.step import between, smooth_step
from fspmu.detection.evidence import Mixture
from fspmu.errors import DetectionWarning, InputError, check_share

_SEPARATION, _PENALTY, _POINTS = 2.0, 6.0, 1024


@dataclass(frozen=True)
class Settings:
    """How many labels are wrong."""

    rate: float | None = None
    """Share of the labels that are wrong. None: it is estimated."""
    estimate: Literal["auto", "mirror", "mixture"] = "auto"
    """How, where it is; auto: mirror for scores on both sides of 0, else mixture."""


def cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Mixture:
    """Return P(clean) (N,), .5 where the cut is and never rising with the score, and no components.

    Equal scores stay together: as many are called wrong as comes nearest to the rate. All clean, with a warning, when all scores are equal, or when the
    rate is estimated as 0. Raises InputError for a score that is not finite, or a rate that is no fraction.
    """
    check_scores(score)
    if settings.rate is not None:
        check_share(settings.rate, "--rate")
    if all_equal(score):
        return say_all_equal(score)
    rate = estimate_rate(score, settings.estimate) if settings.rate is None else settings.rate
    worst = round(rate * len(score))
    if worst == 0 and settings.rate is None:
        warnings.warn("the noise rate is estimated as 0: no label is called wrong; give --rate where it is known", DetectionWarning, stacklevel=2)
    if worst in (0, len(score)):
        return Mixture(torch.full((len(score),), float(worst == 0)), ())
    ordered = score.sort(descending=True).values
    steps = (ordered[:-1] > ordered[1:]).nonzero().squeeze(1)  # after place i, where the next score is lower
    place = int(steps[(steps + 1 - worst).abs().argmin()])
    return Mixture(smooth_step(score, between(ordered[place + 1], ordered[place])), ())


def estimate_rate(score: Tensor, estimate: str = "auto") -> float:
    """Return the share of wrong labels that scores (N,) speak of, in [0, 1], by "mirror", "mixture", or what suits them ("auto").

    Raises InputError for "mirror" and scores on one side of 0.
    """
    values = score.double()
    both_sides = bool((values < 0).any()) and bool((values > 0).any())
    if estimate == "mirror" and not both_sides:
        raise InputError("--estimate mirror compares scores on both sides of 0, and these lie on one: leave it out, or give --rate")
    if both_sides and estimate != "mixture":
        distance = values.abs()
        return float((values[distance >= distance.median()] > 0).double().mean())
    reading = read_groups([values], _SEPARATION, _PENALTY, _POINTS)[0]
    return 0.0 if reading is None else float(torch.sigmoid(reading.log_odds(values)).mean())
