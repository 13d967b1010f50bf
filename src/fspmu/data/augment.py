"""Random views of image batches, drawn PER IMAGE, and normalisation: free functions on tensors, on any device."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.preprocessing import Preprocessing


@dataclass(frozen=True)
class Views:
    """One random view per image: crop offsets in pixels and mirror flags, each (B,)."""

    top: Tensor
    left: Tensor
    flip: Tensor

    def __getitem__(self, chosen: slice) -> "Views":
        return Views(self.top[chosen], self.left[chosen], self.flip[chosen])

    def to(self, device: torch.device) -> "Views":
        """Return the same views on `device`."""
        return Views(*(part.to(device, non_blocking=True) for part in (self.top, self.left, self.flip)))


def draw_views(count: int, preprocessing: Preprocessing, generator: torch.Generator) -> Views | None:
    """Draw `count` views on the CPU, so that every device and every number of processes sees the same ones."""
    if preprocessing.augment == "none":
        return None
    offsets = torch.randint(0, 2 * preprocessing.padding + 1, (2, count), generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    return Views(offsets[0], offsets[1], flips & (preprocessing.augment == "crop-flip"))


def apply_views(pixels: Tensor, views: Views, padding: int) -> Tensor:
    """Return crops of the zero-padded `pixels` (B, C, H, W), some mirrored, in channels-last memory; `views` on the same device.

    The padding is black: it comes before normalisation (docs/method.md, "The model that memorised the noise").
    """
    count, _, height, width = pixels.shape
    top, left, flip = views.top, views.left, views.flip
    columns = torch.arange(width, device=pixels.device).expand(count, width)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    rows = top[:, None] + torch.arange(height, device=pixels.device)
    padded = F.pad(pixels, (padding,) * 4)
    samples = torch.arange(count, device=pixels.device)[:, None, None]
    return padded[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return float32 (B, C, H, W) in channels-last memory: (pixels / 255 - mean) / std."""
    scale, shift = _scale_and_shift(preprocessing, pixels.device)
    return pixels.to(torch.float32, memory_format=torch.channels_last).mul_(scale).sub_(shift)


@functools.lru_cache(maxsize=32)  # a copy to the device for every batch would make the host wait for it
def _scale_and_shift(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (1 / (255 * std)).to(device), (mean / std).to(device)
