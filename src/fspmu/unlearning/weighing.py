"""Who takes part in the retain and the forget pass, and how much each sample counts there.

masks              the masks of the split, every sample counts the same: as published
clean-probability  forget: whom the split forgets, by 1 - P(clean); retain: whom it retains, and of those others with P(clean) above a level, by P(clean)
Weights are divided by their mean over the pass, so that the learning rate means the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.data.split import Split


@dataclass(frozen=True)
class Part:
    """The samples of one pass, (N,) bool, and what each counts for in a mean over it, (N,) float32 with mean 1 over `chosen`; None: 1 for each."""

    chosen: Tensor
    weights: Tensor | None = None

    def among(self, rows: Tensor) -> "Part":
        """Return the part of those at `rows` (M,) alone; their weights stay as they are."""
        some = torch.zeros_like(self.chosen)
        some[rows] = True
        return Part(self.chosen & some, self.weights)

    def weights_of(self, index: Tensor) -> Tensor | None:
        """Return the weights (B,) of the samples at `index` (B,), on its device."""
        return None if self.weights is None else self.weights[index]

    def to(self, device: torch.device) -> "Part":
        """Return the same part with its weights where batches are."""
        return Part(self.chosen, None if self.weights is None else self.weights.to(device))


def parts_of(split: Split, weighting: str, retain_above: float) -> tuple[Part, Part]:
    """Return who is retained and who is forgotten; with `weighting` "masks" what the split says.

    By clean probability what is forgotten may be retained as well. What is in neither mask stays out of both: it was left out on purpose. What the split
    retains is retained whatever its probability, and counts for no less than `retain_above`: so the floor under a class holds.
    """
    if weighting == "masks":
        return Part(split.retain), Part(split.forget)
    clean = torch.where(split.clean_probability.isnan(), split.retain.to(split.clean_probability.dtype), split.clean_probability).double()
    retain = split.retain | (split.forget & (clean > retain_above))
    return Part(retain, _scaled(clean.clamp(min=retain_above), retain)), Part(split.forget, _scaled(1 - clean, split.forget))


def _scaled(weights: Tensor, chosen: Tensor) -> Tensor:
    """Return the weights (N,) over their mean where `chosen` (N,) is set, float32; as they are where nobody is chosen or all weigh nothing."""
    mean = weights[chosen].mean() if bool(chosen.any()) else torch.ones(())
    return (weights / mean if float(mean) > 0 else weights).float()
