"""A split: which samples to keep learning from, which to forget, and how sure that is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.errors import EmptySplit, InputError


@dataclass(frozen=True)
class Split:
    """Two masks (N,) bool and the P(clean) (N,) float in [0, 1] behind them, NaN of who was not judged, in dataset order.

    Two, not one: a sample may be in both (memorised after all: forget it, then learn it again) or in neither (unsure).
    """

    retain: Tensor
    forget: Tensor
    clean_probability: Tensor

    def __post_init__(self) -> None:
        shape = self.clean_probability.shape
        if not self.retain.shape == self.forget.shape == shape or self.retain.dtype != torch.bool or self.forget.dtype != torch.bool:
            raise InputError(f"a split is two bool masks and a probability of one length, not {self.retain.shape}, {self.forget.shape} and {shape}")

    @property
    def counts(self) -> dict[str, int]:
        """How many samples are retained and forgotten."""
        return {"retain": int(self.retain.sum()), "forget": int(self.forget.sum())}

    def check_retain(self) -> None:
        """Raise EmptySplit unless there are samples to keep learning from."""
        if int(self.retain.sum()) < 2:
            raise EmptySplit(f"{int(self.retain.sum())} of {len(self.retain)} samples are left to learn from; lower --threshold or choose another --detector")


def indices_of(mask: Tensor) -> Tensor:
    """Return the places (M,) where `mask` (N,) is set, ascending, on the CPU."""
    return mask.cpu().nonzero().squeeze(1)
