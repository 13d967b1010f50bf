"""per-class: in every class the high group of scores is wrong, where the class has one.

Each class of at least `smallest` samples is asked whether its scores are one group or two (see one_or_two.py). Two: P(clean) is the posterior of the low one.
The other classes lean on all: the scores of each class are moved so that its clean labels (of one group: all of it) have their median at 0, and all together
are asked again. A class then has the two groups of all, with a share of wrong labels of its own, estimated with the weight of 50 samples on the common one.
So a class without wrong labels keeps its samples, however high its scores lie, and a small class is judged by the others.
All one group: every label counts as clean, with a warning.

Where it fails: the smaller a class and the fewer its wrong labels, the further apart the groups must lie to be seen, and at most nine tenths may be wrong. It
finds two groups in one of scores with fewer than about ten different values, and in clean labels that are two groups themselves, say easy and hard images.
Margins of a network that has not settled overlap: for these see the cut `sign`.
Source: docs/detection.md, "Cuts".
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.detection.cuts.one_or_two import Reading, loosened, read_groups
from fspmu.detection.cuts.rule import all_equal, check_scores, members_of_classes, say_all_equal
from fspmu.detection.evidence import Mixture
from fspmu.errors import DetectionWarning

_POINTS, _POOLED_POINTS = 160, 1024
_PRIOR = 50.0


@dataclass(frozen=True)
class Settings:
    """When two groups are two."""

    smallest: int = 50
    """A class with fewer samples is judged by all classes together."""
    separation: float = 2.0
    """Ashman's D that the two groups must exceed."""
    penalty: float = 6.0
    """Gain in log-likelihood that they must bring, in units of log(n) / 2; 3, their number of parameters, is the BIC."""


def cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Mixture:
    """Return P(clean) (N,), never rising with the score within a class, and no components: every class has its own.

    All clean, with a warning, when all scores are equal or form one group. Raises InputError for a score that is not finite.
    """
    check_scores(score)
    if all_equal(score):
        return say_all_equal(score)
    rows = members_of_classes(given_labels)
    values = score.double()
    asked = [len(members) >= max(2, settings.smallest) for members in rows]
    readings = iter(read_groups([values[members] for members, ask in zip(rows, asked, strict=True) if ask], settings.separation, settings.penalty, _POINTS))
    own: list[Reading | None] = [next(readings) if ask else None for ask in asked]
    places = _places(values, rows, asked, own)
    pooled = None
    if None in own:
        together = torch.cat([loosened(values[members]) - place for members, place in zip(rows, places, strict=True)])
        pooled = read_groups([together], settings.separation, settings.penalty, _POOLED_POINTS)[0]
    if pooled is None and not any(own):
        warnings.warn(
            "the scores form one group, in every class and together: no label is called wrong; where wrong labels are known to be there, give "
            "--cut noise-rate --rate, or for margins --cut sign",
            DetectionWarning,
            stacklevel=3,
        )
    clean = torch.ones(len(score))
    for members, place, reading in zip(rows, places, own, strict=True):
        if reading is not None:
            clean[members] = torch.sigmoid(-reading.log_odds(values[members])).float()
        elif pooled is not None:
            clean[members] = torch.sigmoid(-_with_own_share(pooled.log_odds(values[members] - place), pooled.share)).float()
    return Mixture(clean, ())


def _places(score: Tensor, rows: list[Tensor], asked: list[bool], own: list[Reading | None]) -> list[Tensor]:
    """Return where the clean labels of each class lie among scores (N,); a class too small to say is taken for a typical one."""
    places = []
    for members, ask, reading in zip(rows, asked, own, strict=True):
        inside = score[members]
        low = inside if reading is None else inside[reading.log_odds(inside) <= 0]
        places.append((low if len(low) else inside).median() if ask else None)
    known = [place for place in places if place is not None]
    typical = torch.stack(known).median() if known else score.new_zeros(())
    return [typical if place is None else place for place in places]


def _with_own_share(odds: Tensor, share: float) -> Tensor:
    """Return log-odds (n,) that assume a common share of wrong labels as they are with the share of these samples."""
    common = torch.logit(torch.tensor(share, dtype=torch.float64))
    shift = torch.zeros((), dtype=torch.float64)
    for _ in range(30):
        found = (_PRIOR * share + torch.sigmoid(odds + shift).sum()) / (_PRIOR + len(odds))
        shift = torch.logit(found, eps=1e-9) - common
    return odds + shift
