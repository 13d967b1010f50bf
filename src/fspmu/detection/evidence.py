"""What a detector may see, and the seam between the two halves of one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """Per-sample evidence in dataset order; a field is filled only for a detector that declares it in `needs`.

    given_labels (N,) int64; logits (N, K); reference_losses (N,), the published loss pass; truth (N,) int64, for `known` alone.
    probe_losses (N,): the losses of a fresh network of the same kind, trained for a few epochs; reference_probe_losses (N,): the same as published.
    """

    given_labels: Tensor
    num_classes: int
    logits: Tensor | None = None
    reference_losses: Tensor | None = None
    probe_losses: Tensor | None = None
    reference_probe_losses: Tensor | None = None
    truth: Tensor | None = None

    def need(self, name: str) -> Tensor:
        """Return the field called `name`.

        Raises LookupError when it was not gathered.
        """
        value = getattr(self, name)
        if value is None:
            raise LookupError(f"this detector needs {name}, which was not gathered: declare it in `needs`")
        assert isinstance(value, Tensor)
        return value


Score = Callable[[Evidence, Any, torch.Generator], Tensor]
"""score(evidence, settings, generator) -> (N,), HIGH = looks wrong."""
Cut = Callable[[Tensor, Tensor, Any, torch.Generator], Tensor]
"""cut(score, given_labels, settings, generator) -> P(clean) (N,) in [0, 1]."""


class Component(NamedTuple):
    """One Gaussian over the scores, `clean` or `wrong`."""

    label: str
    weight: float
    mean: float
    sd: float

    def moved(self, start: float, scale: float) -> "Component":
        """Return the same Gaussian over start + scale * score."""
        return self._replace(mean=start + scale * self.mean, sd=scale * self.sd)


class Mixture(NamedTuple):
    """P(clean) (N,), and the components it comes from, clean first; none where nothing could be fitted."""

    clean: Tensor
    components: tuple[Component, ...]


Fit = Callable[[Tensor, Tensor, Any, torch.Generator], Mixture]
"""What a cut that fits a mixture found, asked as the cut is."""


@dataclass(frozen=True)
class Detector:
    """A score and a cut, chosen apart, with the settings of both."""

    score: Score
    cut: Cut
    settings: Any
    needs: frozenset[str]
    about: str
    early: Score | None = None
    """A second score, of what looks wrong to a network that has memorised nothing yet. With it, what the first score calls clean is retained, and what of that
    the second calls wrong is forgotten too: memorised after all. Without it, what is not retained is forgotten."""
    floor: bool = True
    """Whether a class that would lose all its samples keeps some: a detector may err, the truth may not."""
    mixture: Fit | None = None
    """The mixture behind the cut, where it fits one: asked in place of the cut, it gives the same P(clean)."""
    axis: str = "score of the detector"
    """What the score is called on a page."""
