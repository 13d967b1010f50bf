"""From P(clean) to a split: a threshold, and a floor under every class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.data.split import Split
from fspmu.errors import check_share


@dataclass(frozen=True)
class SplitSettings:
    """How P(clean) becomes two masks."""

    threshold: float = 0.5
    """A label counts as clean when P(clean) is above this."""
    class_floor: int = 10
    """A class that would lose all its samples keeps this many, its surest ones with P(clean) > 0."""


def split_at(clean_probability: Tensor, given_labels: Tensor, num_classes: int, settings: SplitSettings) -> Split:
    """Return retain = P(clean) above the threshold and forget = the rest, (N,) each.

    A class left without any retained sample keeps its `class_floor` surest ones: without them the network would unlearn the class itself.
    Samples with P(clean) = 0 are never kept, so that a class whose labels are all known to be wrong may go.
    """
    check_share(settings.threshold, "--threshold")
    retain = clean_probability > settings.threshold
    kept = torch.bincount(given_labels[retain], minlength=num_classes)
    for label in (kept == 0).nonzero().squeeze(1).tolist():
        members = ((given_labels == label) & (clean_probability > 0)).nonzero().squeeze(1)
        surest = clean_probability[members].argsort(descending=True, stable=True)[: settings.class_floor]
        retain[members[surest]] = True
    return Split(retain, ~retain, clean_probability)
