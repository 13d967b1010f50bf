"""The one path from an image set to a training step."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fspmu.data.augment import Views, apply_views, draw_views, normalise
from fspmu.data.images import Images
from fspmu.data.stream import StreamedPixels, read_batches
from fspmu.errors import InputError
from fspmu.preprocessing import Preprocessing


def bounds_of(size: int, count: int) -> list[int]:
    """Return where `size` rows are cut into at most `count` nearly equal parts, none of a single row: batch norm has no statistics of one sample."""
    count = max(1, min(count, size // 2))
    return [size * i // count for i in range(count + 1)]


@dataclass(frozen=True)
class Batch:
    """images (B, C, H, W) float, given_labels (B,), index (B,) places in the image set, all on one device.

    `weight` (B,) is set in joint batches alone: what each row counts for in the mean over the batch.
    `size` counts the rows of the batch over all processes, of which this one may hold a share, or none; None: it holds all.
    """

    images: Tensor
    given_labels: Tensor
    index: Tensor
    weight: Tensor | None = None
    size: int | None = None

    @property
    def total(self) -> int:
        """How many rows the batch has over all processes."""
        return len(self) if self.size is None else self.size

    def __len__(self) -> int:
        return len(self.images)

    def parts(self, count: int) -> list["Batch"]:
        """Return the rows in at most `count` nearly equal parts, none of a single row."""
        bounds = bounds_of(len(self), count)
        return [self.rows(slice(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]

    def rows(self, rows: slice) -> "Batch":
        """Return some of the rows."""
        return Batch(self.images[rows], self.given_labels[rows], self.index[rows], None if self.weight is None else self.weight[rows], self.size)


@dataclass(frozen=True)
class WholeBatch(Batch):
    """A batch that cannot be cut: its rows are mixed or compared with each other, and its batch norm sees them all."""

    kind: ClassVar[str] = "samples"
    """What its rows are called."""

    def parts(self, count: int) -> list[Batch]:
        """Return the batch whole.

        Raises InputError when more parts are wanted, because the memory did not hold it.
        """
        if count > 1:
            raise InputError(f"the device's memory does not hold a step of {len(self)} {self.kind}, and this method cannot cut it; lower --batch-size")
        return [self]


def join(first: Batch, second: Batch, first_weight: float, second_weight: float) -> Batch:
    """Return one batch of both; a mean over its weighted rows, of all processes, is first_weight * mean(first) + second_weight * mean(second)."""
    count = first.total + second.total
    weight = torch.empty(len(first) + len(second), device=first.images.device)
    weight[: len(first)] = first_weight * count / max(1, first.total)
    weight[len(first) :] = second_weight * count / max(1, second.total)
    return Batch(
        torch.cat([first.images, second.images]),
        torch.cat([first.given_labels, second.given_labels]),
        torch.cat([first.index, second.index]),
        weight,
        count,
    )


class Batches:
    """Batches of the samples at `indices` (M,), once each.

    With a generator: shuffled, one random view per sample. Without: dataset order, plain images. The short last batch is kept;
    a last batch of a single sample joins the one before it, because batch statistics of one sample do not exist.
    """

    def __init__(self, images: Images, indices: Tensor, size: int, generator: torch.Generator | None = None, *, shuffle: bool = True) -> None:
        self._images, self._size = images, size
        self._views = None
        if generator is not None:
            if shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            self._views = draw_views(len(indices), images.preprocessing, generator)
        self._indices = indices
        bounds = [*range(0, len(indices), size), len(indices)]
        if len(bounds) > 2 and bounds[-1] - bounds[-2] == 1:
            del bounds[-2]
        self._spans = [(start, stop, stop - start) for start, stop in zip(bounds, bounds[1:], strict=False)]

    def __len__(self) -> int:
        return len(self._spans)

    def share(self, rank: int, count: int) -> "Batches":
        """Return the same batches, of each the rows that fall to process `rank` of `count`: none where the batch is too short for all."""
        shares = copy.copy(self)
        shares._spans = []
        for start, _, size in self._spans:
            bounds = [start + bound for bound in bounds_of(size, count)] + [start + size] * count
            shares._spans.append((bounds[rank], bounds[rank + 1], size))
        return shares

    def dealt(self, rank: int, count: int) -> "Batches":
        """Return every `count`-th batch, whole, from number `rank` on."""
        dealt = copy.copy(self)
        dealt._spans = self._spans[rank::count]
        return dealt

    @property
    def places(self) -> Tensor:
        """Where in the whole pass the rows of these batches stand, (M,)."""
        return torch.cat([torch.arange(start, stop) for start, stop, _ in self._spans] or [torch.arange(0)])

    @property
    def samples(self) -> int:
        """How many samples one pass visits, over all processes."""
        return len(self._indices)

    def __iter__(self) -> Iterator[Batch]:
        source, preprocessing = self._images, self._images.preprocessing
        device = source.pixels.device  # order and views of the whole pass go there at once
        indices, views = self._indices.to(device), None if self._views is None else self._views.to(device)
        order = self._indices if isinstance(source.pixels, StreamedPixels) else indices
        with contextlib.closing(read_batches(source.pixels, [order[start:stop] for start, stop, _ in self._spans])) as read:
            for start, stop, size in self._spans:
                index = indices[start:stop]
                yield Batch(_seen(next(read), views, slice(start, stop), preprocessing), source.given_labels[index], index, size=size)


def _seen(pixels: Tensor, views: Views | None, rows: slice, preprocessing: Preprocessing) -> Tensor:
    """Return `pixels` as a network sees them; the caller keeps none, so that the memory is for those that are read ahead."""
    if views is not None:
        pixels = apply_views(pixels, views[rows], preprocessing.padding)
    return normalise(pixels, preprocessing)
