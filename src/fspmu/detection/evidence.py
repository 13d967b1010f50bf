"""What a detector may see, what it asks to be gathered, and the seam between score and cut."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fspmu.errors import InputError


@dataclass(frozen=True)
class Evidence:
    """Per-sample evidence in dataset order, on the CPU; a field is filled only for a detector that declares it in `needs`.

    N samples, K classes, E epochs, features of D numbers. A margin is z_y - max_{c != y} z_c, HIGH = agrees with the given label; a "view" is a random one,
    drawn for each image, and a "probe" is a fresh network of the same kind, trained on all given labels for a few epochs.
    """

    given_labels: Tensor
    """(N,) int64."""
    num_classes: int
    logits: Tensor | None = None
    """(N, K), of the plain image."""
    features: Tensor | None = None
    """(N, D), what the head is given for the plain image; float32, of a large set float16."""
    block: Tensor | None = None
    """(N, D) float16, pooled features at one depth of the network, means over the views."""
    view_probabilities: Tensor | None = None
    """(N, K), mean softmax over the views."""
    view_margins: Tensor | None = None
    """(N,), mean margin over the views."""
    history: Tensor | None = None
    """(E, N) float16, the margins of every epoch of the model's own training."""
    probe_history: Tensor | None = None
    """(E, N) float16, the margins of every epoch of a probe's training."""
    cross_fitted: Tensor | None = None
    """(N, K), probabilities by probes that were not trained on the sample."""
    reference_losses: Tensor | None = None
    """(N,), the published loss pass."""
    probe_losses: Tensor | None = None
    """(N,), the losses of a probe."""
    reference_probe_losses: Tensor | None = None
    """(N,), the same as published."""
    truth: Tensor | None = None
    """(N,) int64, for `known` alone."""

    def need(self, name: str) -> Tensor:
        """Return the field called `name`.

        Raises LookupError when it was not gathered.
        """
        value = getattr(self, name)
        if value is None:
            raise LookupError(f"this detector needs {name}, which was not gathered: declare it in `needs`")
        assert isinstance(value, Tensor)
        return value


def check_finite(features: Tensor) -> None:
    """Raise InputError unless all numbers of features, or sums of them, are finite."""
    if not bool(features.isfinite().all()):
        raise InputError("features of the model are not finite on its own training images: its weights are damaged, or --precision bf16 is too coarse")


# What the settings of a detector say of how its evidence is gathered.


@dataclass(frozen=True)
class ViewSettings:
    """How a network is looked at."""

    views: int = 6
    """Random views of each image over which the network's answers are averaged."""
    viewing: Literal["auto", "none", "crop", "crop-flip"] = "auto"
    """How views are drawn: auto (as in training, and crop-flip where that was on the images as they are, or nobody knows), none (one view: the image as it is),
    crop, or crop-flip."""


@dataclass(frozen=True)
class DepthSettings(ViewSettings):
    """How a network is looked at, and where."""

    depth: str = "auto"
    """Where in the network features are taken: auto (where they best tell the given labels of images that the network never saw, if there are any), last, or
    the name of a part, such as layer3.1."""


@dataclass(frozen=True)
class ProbeSettings:
    """How a fresh network is trained for a short while."""

    probe_epochs: int | None = None
    """Epochs of the probe. None: 10 for up to 20 classes, else 30."""
    probe_lr: float = 0.01
    """Learning rate of the probe; in the published code it ends up as 0.1."""


@dataclass(frozen=True)
class FoldSettings(ProbeSettings):
    """How fresh networks are trained, each on all samples but those that it judges."""

    folds: int = 4
    """Parts into which the samples are drawn; a probe for each is trained on the others. Used where the evidence is asked for."""


Score = Callable[[Evidence, Any, torch.Generator], Tensor]
"""score(evidence, settings, generator) -> (N,), HIGH = looks wrong."""


class Component(NamedTuple):
    """One part of a mixture over the scores, `clean` or `wrong`."""

    label: str
    weight: float
    mean: float
    sd: float

    def moved(self, start: float, scale: float) -> "Component":
        """Return the same part over start + scale * score."""
        return self._replace(mean=start + scale * self.mean, sd=scale * self.sd)


class Mixture(NamedTuple):
    """P(clean) (N,), and the components it comes from, clean first; none where nothing was fitted on the axis of the score."""

    clean: Tensor
    components: tuple[Component, ...]


Cut = Callable[[Tensor, Tensor, Any, torch.Generator], Mixture]
"""cut(score, given_labels, settings, generator) -> P(clean) (N,) in [0, 1], and the components behind it."""


def _nothing_more(settings: Any) -> frozenset[str]:
    return frozenset()


def _never(settings: Any) -> bool:
    return False


@dataclass(frozen=True)
class Detector:
    """A score, what it needs, and the cut that suits it where nobody names another."""

    score: Score
    settings: Any
    needs: frozenset[str]
    """Fields of Evidence without which it cannot work."""
    about: str
    cut: str
    """A key of CUTS."""
    signed: bool = False
    """Whether 0 divides its scores: above it, a label looks wrong by itself, whatever the others are."""
    unsigned_with: Callable[[Any], bool] = _never
    """Settings with which 0 divides nothing although it does with others."""
    optional: frozenset[str] = frozenset()
    """Fields of Evidence that it uses where they are there already; none is computed for it."""
    also_needs: Callable[[Any], frozenset[str]] = _nothing_more
    """What it needs beside, by its settings."""
    early: Score | None = None
    """A second score, of what looks wrong to a network that has memorised nothing yet. With it, what the first score calls clean is retained, and what of that
    the second calls wrong is forgotten too: memorised after all. Without it, what is not retained is forgotten."""
    floor: bool = True
    """Whether a class that would lose all its samples keeps some: a detector may err, the truth may not."""
    axis: str = "score of the detector"
    """What the score is called on a page."""

    def needs_with(self, settings: Any) -> frozenset[str]:
        """Return the fields of Evidence that are gathered for it under `settings`."""
        return self.needs | self.also_needs(settings)

    def signed_with(self, settings: Any) -> bool:
        """Return whether 0 divides its scores under `settings`."""
        return self.signed and not self.unsigned_with(settings)
