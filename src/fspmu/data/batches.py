"""The one path from an image set to a training step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.data.augment import apply_views, draw_views, normalise
from fspmu.data.images import Images


@dataclass(frozen=True)
class Batch:
    """images (B, C, H, W) float, given_labels (B,), index (B,) places in the image set, all on one device.

    `weight` (B,) is set in joint batches alone: what each row counts for in the mean over the batch.
    """

    images: Tensor
    given_labels: Tensor
    index: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def parts(self, count: int) -> list["Batch"]:
        """Return the batch in at most `count` nearly equal parts, none of a single row: batch norm has no statistics of one sample."""
        count = max(1, min(count, len(self) // 2))
        bounds = [len(self) * i // count for i in range(count + 1)]
        return [self.rows(slice(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]

    def rows(self, rows: slice) -> "Batch":
        """Return some of the rows."""
        return Batch(self.images[rows], self.given_labels[rows], self.index[rows], None if self.weight is None else self.weight[rows])


def join(first: Batch, second: Batch, first_weight: float, second_weight: float) -> Batch:
    """Return one batch of both; a mean over its weighted rows is first_weight * mean(first) + second_weight * mean(second)."""
    count = len(first) + len(second)
    weight = torch.empty(count, device=first.images.device)
    weight[: len(first)] = first_weight * count / max(1, len(first))
    weight[len(first) :] = second_weight * count / max(1, len(second))
    return Batch(
        torch.cat([first.images, second.images]),
        torch.cat([first.given_labels, second.given_labels]),
        torch.cat([first.index, second.index]),
        weight,
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
        self._bounds = [*range(0, len(indices), size), len(indices)]
        if len(self._bounds) > 2 and self._bounds[-1] - self._bounds[-2] == 1:
            del self._bounds[-2]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @property
    def samples(self) -> int:
        """How many samples one pass visits."""
        return len(self._indices)

    def __iter__(self) -> Iterator[Batch]:
        source, preprocessing = self._images, self._images.preprocessing
        for start, stop in zip(self._bounds, self._bounds[1:], strict=False):
            index = self._indices[start:stop].to(source.pixels.device, non_blocking=True)
            pixels = source.pixels[index]
            if self._views is not None:
                pixels = apply_views(pixels, self._views[slice(start, stop)], preprocessing.padding)
            yield Batch(normalise(pixels, preprocessing), source.given_labels[index], index)
