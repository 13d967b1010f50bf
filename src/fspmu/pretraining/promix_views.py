"""What ProMix looks at in a step: each sample in a weak and in a strong view, and how trusted samples are mixed, by MixUp and by FMix.

Source: Harris et al., FMix: Enhancing Mixed Sample Data Augmentation, 2020, for the masks; docs/nll_methods.md, "ProMix".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fspmu.data.augment import apply_views, draw_views, normalise
from fspmu.data.batches import Batches, WholeBatch
from fspmu.data.images import Images
from fspmu.data.split import indices_of
from fspmu.data.strong_views import apply_strong_views, draw_strong_views
from fspmu.engine.run import Run


@dataclass(frozen=True)
class PairedViews(WholeBatch):
    """Samples, as in `Batch`, in a weak view; the same in a `strong` one (B, C, H, W); and what mixes those that a network trusts.

    The draws stand by network (2), mixing (M: one for each head, or one for both) and kind (MixUp, FMix): `orders` (2, M, 2, B) are permutations of
    all rows, `lams` (2, M, 2), on the CPU, the shares of the first partner, and `masks` (2, M, H, W) bool the places where FMix shows it.
    """

    strong: Tensor = torch.empty(0)
    orders: Tensor = torch.empty(0, dtype=torch.int64)
    lams: Tensor = torch.empty(0)
    masks: Tensor = torch.empty(0, dtype=torch.bool)


class Mixing(Protocol):
    """The settings of a pass; see `promix.Settings`."""

    @property
    def batch_size(self) -> int:
        """Samples per step."""

    @property
    def strong_ops(self) -> int:
        """Operations in a strong view."""

    @property
    def mixup(self) -> float:
        """Parameter of MixUp's Beta distribution."""

    @property
    def fmix(self) -> float:
        """Parameter of FMix's Beta distribution."""

    @property
    def fmix_decay(self) -> float:
        """How fast FMix's frequencies fade."""

    @property
    def isotropic_fmix(self) -> bool:
        """Whether they fade in all directions alike."""

    @property
    def shared_mixing(self) -> bool:
        """Whether both heads learn from the same mixed rows."""


class PairedBatches:
    """Shuffled batches of the samples where `chosen` (N,) bool is set, in two views each, all of one size.

    What is left over for a short last batch is dropped, other samples in each epoch; a short batch that is the only one is kept.
    """

    def __init__(self, images: Images, chosen: Tensor, settings: Mixing, run: Run, epoch: int) -> None:
        def draws(part: str) -> torch.Generator:
            return run.generator(run.stage, part, epoch)

        indices = indices_of(chosen)
        indices = indices[torch.randperm(len(indices), generator=draws("order"))]
        count, (height, width) = len(indices) - len(indices) % settings.batch_size or len(indices), images.pixels.shape[2:]
        self._images = images
        self._weak = Batches(images, indices[:count], settings.batch_size, draws("weak view"), shuffle=False)
        self._strong = draw_strong_views(count, height, width, draws("strong view"), settings.strong_ops)
        self._crops = draw_views(count, images.preprocessing, draws("strong crop"))
        self._mixing = draw_mixing(len(self._weak), min(count, settings.batch_size), height, width, settings, draws("mix"))

    def __len__(self) -> int:
        return len(self._weak)

    def __iter__(self) -> Iterator[PairedViews]:
        images, preprocessing, device = self._images, self._images.preprocessing, self._images.pixels.device
        strong, crops = self._strong.to(device), None if self._crops is None else self._crops.to(device)  # those of the whole pass go there at once
        orders, lams, masks = self._mixing
        orders, masks = orders.to(device), masks.to(device)
        start = 0
        for step, weak in enumerate(self._weak):
            rows = slice(start, start := start + len(weak))
            pixels = apply_strong_views(images.pixels[weak.index], strong[rows])
            if crops is not None:
                pixels = apply_views(pixels, crops[rows], preprocessing.padding)
            seen = normalise(pixels, preprocessing)
            yield PairedViews(weak.images, weak.given_labels, weak.index, None, None, seen, orders[step], lams[step], masks[step])


def draw_mixing(steps: int, rows: int, height: int, width: int, settings: Mixing, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw orders (steps, 2, M, 2, rows), lams (steps, 2, M, 2) and masks (steps, 2, M, height, width) of a pass; see `PairedViews`."""
    shape = (steps, 2, 1 if settings.shared_mixing else 2)
    orders = torch.rand(*shape, 2, rows, generator=generator).argsort(dim=-1)
    beta = np.random.default_rng(int(torch.randint(0, 2**62, (), generator=generator))).beta
    mixup, fmix = (torch.from_numpy(beta(parameter, parameter, shape)) for parameter in (settings.mixup, settings.fmix))
    masks = fmix_masks(fmix.flatten(), height, width, generator, decay=settings.fmix_decay, isotropic=settings.isotropic_fmix)
    return orders, torch.stack([torch.maximum(mixup, 1 - mixup), fmix], dim=-1), masks.view(*shape, height, width)


def fmix_masks(lam: Tensor, height: int, width: int, generator: torch.Generator, *, decay: float = 3.0, isotropic: bool = False) -> Tensor:
    """Return masks (S, height, width), True where a random field is highest: a share `lam` (S,) float64 of the places, up or down to a whole number.

    The field has Gaussian coefficients that fade with the frequency. As published they fade along the rows' axis alone: with frequencies v = 0 to height / 2
    and t = 0, 1, a_vt and b_vt from N(0, 1) and decay d, the coefficients are a_vt / max(v, 1)^d + i b_vt / (1 + v^2)^(d/2), and
    field(y, x) = Re G_0(y) + 2 Re G_1(y) exp(2 pi i x / width), G_t(y) = sum_v S_vt exp(2 pi i v y / height).
    `isotropic`: all frequencies, each faded by 1 / max(|f|, 1 / max(height, width))^d.
    """
    count = len(lam)
    if isotropic:
        along, across = torch.fft.fftfreq(height, dtype=torch.float64)[:, None], torch.fft.fftfreq(width, dtype=torch.float64)
        fade = torch.hypot(along, across).clamp(min=1 / max(height, width)) ** -decay
        drawn = torch.randn(2, count, *fade.shape, generator=generator, dtype=torch.float64)
        field = torch.fft.ifft2(torch.complex(drawn[0] * fade, drawn[1] * fade)).real  # of the half spectrum one axis would get twice the power
    else:
        v = torch.arange(height // 2 + 1, dtype=torch.float64)
        drawn = torch.randn(2, count, len(v), 2, generator=generator, dtype=torch.float64)
        faded = torch.complex(drawn[0] / v.clamp(min=1)[:, None] ** decay, drawn[1] / (1 + v**2)[:, None] ** (decay / 2))
        along, across = _wave(v[:, None] * torch.arange(height) / height), _wave(torch.arange(width, dtype=torch.float64) / width)
        still, moving = torch.einsum("svt,vy->tsy", faded, along)
        field = still.real[:, :, None] + 2 * (moving[:, :, None] * across).real
    places = lam * (height * width)
    up = torch.rand(count, generator=generator) < 0.5
    chosen = torch.where(up, places.ceil(), places.floor())
    rank = field.flatten(1).argsort(dim=1, descending=True).argsort(dim=1)
    masks: Tensor = rank < chosen[:, None]
    return masks.view(count, height, width)


def _wave(turns: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(turns), 2 * torch.pi * turns)


def partners(order: Tensor, rows: Tensor) -> Tensor:
    """Return a permutation of 0 to M - 1, as drawn as `order`, a permutation of (B,), for the M of its places that are `rows` (M,)."""
    return order[rows].argsort()
