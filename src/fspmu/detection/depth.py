"""The depth of a network at which features tell most of the given labels, chosen without true labels.

Best is the depth whose discriminant (discriminant.py) predicts the given labels of images that the network never saw; without such images, that whose
margins form the clearest two groups.
Source: docs/detection.md, "Evidence, and what it costs".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from fspmu.detection.discriminant import DiscriminantSettings, fitted_discriminant
from fspmu.errors import InputError

BY_HEART = 0.9
"""Share of the given labels from which on a network that agrees with them may have learned them by heart, and an earlier depth tell more than the last ones."""
ABOUT = 0.9
"""Share of the clearest separation that is about as clear."""
LEAST_SIDE = 0.01
"""Share of the samples that two groups must have each, to be groups."""
CLEAREST = 1e3
"""What two groups without any spread come to, and the most that any come to."""


@dataclass(frozen=True)
class Depth:
    """Which depth was chosen, a figure for each, and `how`.

    "held-out": the figures are accuracies on the given labels of images that the network never saw; "separation": how far apart the margins lie that
    look right and wrong, see `separation`.
    """

    index: int
    accuracies: tuple[float, ...]
    how: str


def choose_depth(
    train: Sequence[Tensor],
    train_labels: Tensor,
    held: Sequence[Tensor] | None,
    held_labels: Tensor | None,
    num_classes: int,
    agreement: float = 1.0,
) -> Depth:
    """Return the depth whose features tell the given labels best: `train` and `held` have one (n, D_b) and (m, D_b) for each, from the first layer on.

    Best is what predicts the given labels (m,) of the held-out images; of depths that do so about as well (within a standard error) the last. Without such
    images it is the depth whose margins form the clearest two groups; or, where the network agrees with so few of the given labels (`agreement`, a share)
    that it has not learned them by heart, the last of those that are about as clear. Raises InputError when there is no depth.
    """
    if not train:
        raise InputError("the model has no depth at which features could be taken: choose another --detector")
    found = (fitted_discriminant(features, train_labels, num_classes, DiscriminantSettings()) for features in train)
    if held is None or held_labels is None or not len(held_labels):
        gaps = tuple(separation(each.margins(features, train_labels)) for each, features in zip(found, train, strict=True))
        clear = max(gaps) * (1.0 if agreement >= BY_HEART else ABOUT)
        return Depth(max(index for index, gap in enumerate(gaps) if gap >= clear), gaps, "separation")
    right = torch.stack([each.predict(features) == held_labels for each, features in zip(found, held, strict=True)]).double()
    accuracies = right.mean(dim=1)
    behind = right[int(accuracies.argmax())] - right
    error = behind.std(dim=1, correction=0) / len(held_labels) ** 0.5
    index = int((behind.mean(dim=1) <= error).nonzero().max())
    return Depth(index, tuple(accuracies.tolist()), "held-out")


def separation(margins: Tensor) -> float:
    """Return how far apart the margins (N,) above and below 0 lie, over how far the parts of one Gaussian would lie that 0 cuts at the same share.

    How far is the difference of the means over the root of the mean variance. One Gaussian comes to 1, wherever it is cut; without that
    it would come to 2.7 when cut in the middle and to more near its end, and a network that has learned nearly every label would seem to separate best.
    0 where nearly all are on one side.
    """
    wrong = margins > 0
    above, below = margins[wrong].double(), margins[~wrong].double()
    if min(len(above), len(below)) < max(2, LEAST_SIDE * len(margins)):
        return 0.0
    gap, spread = float(above.mean() - below.mean()), float((above.var() + below.var()) / 2) ** 0.5
    return min(gap / spread / _separation_of_one(len(above) / len(margins)), CLEAREST) if spread > 0 else CLEAREST


def _separation_of_one(share: float) -> float:
    """Return the difference of the means of both parts of a standard Gaussian over the root of their mean variance; `share` of it lies above the cut."""
    normal = NormalDist()
    cut = normal.inv_cdf(1 - share)
    above, below = normal.pdf(cut) / share, -normal.pdf(cut) / (1 - share)
    return (above - below) / math.sqrt((1 + cut * above - above**2 + 1 + cut * below - below**2) / 2)
