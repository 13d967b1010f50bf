"""From P(clean) to a split: a threshold, and a floor under every class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.data.split import Split
from fspmu.errors import check_settings


@dataclass(frozen=True)
class SplitSettings:
    """How P(clean) becomes two masks."""

    threshold: float = 0.5
    """A label counts as clean when P(clean) is above this."""
    class_floor: int = 10
    """A class that would lose all its samples keeps this many, those with the lowest score; not with `known` and `random`, which mean what they say."""
    margin: float = 0.0
    """Distance of P(clean) from the threshold up to which a label is neither retained nor forgotten. 0: every label is one or the other."""

    def clean(self, clean_probability: Tensor) -> Tensor:
        """Return which labels are clean enough to learn from, (N,) bool, of P(clean) (N,); NaN is not."""
        return clean_probability > self.threshold + self.margin

    def wrong(self, clean_probability: Tensor) -> Tensor:
        """Return which labels are wrong enough to forget, (N,) bool, of P(clean) (N,): with margin 0 those that are not clean enough to learn from."""
        return clean_probability <= self.threshold - self.margin


def forget_memorised(split: Split, early: Tensor, settings: SplitSettings) -> Split:
    """Return the split in which what is retained is forgotten too where P(clean) by an early network, (N,), is not above the threshold.

    Forgotten and then learned again: the forget set is a part of the retain set, and what is in neither was left out of training already. P(clean) is the
    lower of both, so that whatever either calls wrong counts as an issue.
    """
    return Split(split.retain, split.retain & settings.wrong(early), torch.minimum(split.clean_probability, early))


def split_at(clean_probability: Tensor, score: Tensor, given_labels: Tensor, num_classes: int, settings: SplitSettings) -> Split:
    """Return retain = P(clean) above the threshold and forget = the rest, (N,) each; score HIGH = looks wrong.

    With a margin: retain = P(clean) above threshold + margin, forget = at most threshold - margin, and what lies between is in neither.
    A class left without any retained sample keeps its `class_floor` surest ones: without them the network would unlearn the class itself.
    The score says which these are: a posterior may be 0 for all of them.
    """
    check_settings(settings)
    retain, forget = settings.clean(clean_probability), settings.wrong(clean_probability)
    kept = torch.bincount(given_labels[retain], minlength=num_classes)
    for label in (kept == 0).nonzero().squeeze(1).tolist():
        members = (given_labels == label).nonzero().squeeze(1)
        surest = score[members].argsort(stable=True)[: settings.class_floor]
        retain[members[surest]] = True
    return Split(retain, forget & ~retain, clean_probability)
