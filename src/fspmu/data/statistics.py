"""What a reading of all pixels tells: how often each value comes in each channel, and a mark of every image's content."""

from hashlib import blake2b
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SMALLEST_STD = 1e-3


class Survey:
    """Counts pixel values and marks contents, image by image, from any thread; `channels` 0 counts nothing."""

    def __init__(self, count: int, channels: int) -> None:
        self.hashes = torch.zeros(count, dtype=torch.int64)
        """(N,): equal where pixels are equal; 0 where nothing was seen."""
        self.counts = torch.zeros(channels, 256, dtype=torch.int64)
        """(C, 256): how often each value came."""
        self._lock = Lock()

    def take(self, row: int, pixels: NDArray[np.uint8]) -> None:
        """See the pixels (C, H, W) of image `row`."""
        self.hashes[row] = content_hash(pixels)
        if len(self.counts):
            counts = torch.from_numpy(np.stack([np.bincount(channel.ravel(), minlength=256) for channel in pixels]))
            with self._lock:
                self.counts += counts


def content_hash(pixels: NDArray[np.uint8]) -> int:
    """Return 8 bytes that stand for the content of `pixels`, as an int64."""
    return int.from_bytes(blake2b(np.ascontiguousarray(pixels).data, digest_size=8).digest(), "little", signed=True)


def channel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of pixels (N, C, H, W) uint8 in [0, 1], the deviation never 0.

    Counted by value, so that it is exact and no float copy of the set is made.
    """
    counts = torch.zeros(pixels.shape[1], 256, dtype=torch.int64)
    for part in torch.split(pixels, 1024):
        counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in part.unbind(1)])
    return statistics_of(counts)


def statistics_of(counts: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, in [0, 1], of values that came `counts` (C, 256) times; the deviation is never 0."""
    share, value = counts.double() / counts.double().sum(dim=1, keepdim=True), torch.arange(256) / 255
    mean = share @ value.double()
    std = (share @ value.double().square() - mean.square()).clamp(min=0).sqrt().clamp(min=SMALLEST_STD)
    return tuple(round(number, 6) for number in mean.tolist()), tuple(round(number, 6) for number in std.tolist())
