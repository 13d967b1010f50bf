"""otsu: the threshold with the most variance between the scores below and above it (Otsu, 1979), over all values and not over a histogram.

    t = argmax  n_below n_above (m_above - m_below)^2

halfway between the two neighbouring scores. It always finds one: of a single symmetric group half the labels are called wrong. For scores that are known to
be two groups of about the same size.
Source: docs/detection.md, "Cuts".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.detection.cuts.rule import all_equal, check_scores, members_of_classes, say_all_equal
from fspmu.detection.cuts.step import between, smooth_step
from fspmu.detection.evidence import Mixture


@dataclass(frozen=True)
class Settings:
    """Whose scores are divided."""

    per_class: bool = False
    """A threshold for every class, in place of one for all."""
    smallest: int = 50
    """With a threshold for every class: one with fewer samples has that of all."""


def cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Mixture:
    """Return P(clean) (N,), .5 at the threshold and falling with the score (of a class), and no components.

    All clean, with a warning, when all scores are equal. Raises InputError for a score that is not finite.
    """
    check_scores(score)
    if all_equal(score):
        return say_all_equal(score)
    common = otsu_threshold(score)
    clean = smooth_step(score, common)
    if settings.per_class:
        for members in members_of_classes(given_labels):
            inside = score[members]
            if len(members) >= settings.smallest and not all_equal(inside):
                clean[members] = smooth_step(inside, otsu_threshold(inside))
    return Mixture(clean, ())


def otsu_threshold(score: Tensor) -> float:
    """Return the threshold of scores (N,) that are not all equal."""
    ordered = score.double().sort().values
    centred = ordered - ordered.mean()
    count = len(ordered)
    below = torch.arange(1, count, dtype=torch.float64)
    between_variance = centred.cumsum(0)[:-1] ** 2 / (below * (count - below))  # n_below n_above (difference)^2 / N^2, as the sums cancel
    place = int(torch.where(ordered.diff() > 0, between_variance, -1).argmax())
    return between(ordered[place], ordered[place + 1])
