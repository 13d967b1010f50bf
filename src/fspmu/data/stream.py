"""Pixels that stay on disk: decoded when a batch asks for them, a few batches ahead."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fspmu.data.decoding import Pictures, quiet_pillow, read_picture, worker_count
from fspmu.data.resizing import check_geometry
from fspmu.data.unreadable import printable, reason_for
from fspmu.errors import InputError
from fspmu.preprocessing import Geometry

LOOKAHEAD = 2
"""Batches that are decoded while one is in use."""

_Waiting = tuple[NDArray[np.uint8], list[Future[None]]]


class StreamedPixels:
    """N images (N, C, H, W) uint8 that stand where a tensor of them stands, and are decoded each time they are asked for.

    Row i is picture rows[i]; `names` says, by the same number, what messages call it. Every picture has been read once before, so one
    that cannot be read now has changed: InputError names it.
    """

    ndim = 4
    dtype = torch.uint8

    def __init__(self, pictures: Pictures, names: Sequence[str], geometry: Geometry, rows: Tensor | None = None, device: torch.device | None = None) -> None:
        check_geometry(geometry)
        self.geometry = geometry
        self.device = device or torch.device("cpu")
        self.digests: dict[str, str] = {}
        """Fingerprints of sets of these pixels, by what else is in them: each costs a pass over the files."""
        self._pictures, self._names = pictures, names
        self._rows = torch.arange(len(names)) if rows is None else rows
        self._workers = worker_count(pictures, len(names))

    @property
    def shape(self) -> torch.Size:
        """N, C, H, W."""
        return torch.Size((len(self._rows), self.geometry.channels, *self.geometry.size))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: Tensor | slice | int) -> Tensor:
        if isinstance(chosen, int):
            return self[torch.tensor([chosen])][0]
        index = torch.arange(len(self))[chosen] if isinstance(chosen, slice) else chosen
        with contextlib.closing(self.read([index])) as found:
            return next(found)

    def subset(self, indices: Tensor) -> "StreamedPixels":
        """Return the images at `indices` (M,), or where it is set (N,) bool; nothing is decoded."""
        return self._with(self._rows[indices.cpu()], self.device)

    def to(self, device: torch.device) -> "StreamedPixels":
        """Return the same images; what is read of them lies on `device`."""
        same = self._with(self._rows, device)
        same.digests = self.digests
        return same

    def _with(self, rows: Tensor, device: torch.device) -> "StreamedPixels":
        other = object.__new__(StreamedPixels)
        other.__dict__.update(self.__dict__, _rows=rows, device=device, digests={})
        return other

    def picture(self, row: int) -> NDArray[np.uint8]:
        """Return the pixels of image `row` (H, W, C), as a picture of another set."""
        return self._read(int(self._rows[row])).transpose(1, 2, 0)

    def read(self, batches: Iterable[Tensor], lookahead: int = LOOKAHEAD) -> Generator[Tensor, None, None]:
        """Yield the pixels at each of `batches` of indices, in their order; close it to stop what was begun.

        Threads decode up to `lookahead` batches while one is in use, and no more: memory holds lookahead + 1 of them.
        Raises InputError when a picture can no longer be read.
        """
        stopped = threading.Event()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="fspmu-read")
        waiting: deque[_Waiting] = deque()
        with quiet_pillow():
            try:
                for index in batches:
                    waiting.append(self._begin(pool, index, stopped))
                    if len(waiting) > lookahead:
                        yield self._finish(waiting.popleft())
                while waiting:
                    yield self._finish(waiting.popleft())
            finally:
                stopped.set()  # within a picture's time, whatever was begun
                pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, index: Tensor, stopped: threading.Event) -> _Waiting:
        """Start on a batch, a few parts for each thread."""
        rows = self._rows[index.cpu()].tolist()
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        step = max(1, -(-len(rows) // (2 * self._workers)))
        starts = range(0, len(rows), step)
        return pixels, [pool.submit(self._fill, pixels[start : start + step], rows[start : start + step], stopped.is_set) for start in starts]

    def _fill(self, pixels: NDArray[np.uint8], rows: list[int], stopped: Callable[[], bool]) -> None:
        for place, row in enumerate(rows):
            if stopped():
                return
            pixels[place] = self._read(row)

    def _read(self, row: int) -> NDArray[np.uint8]:
        try:
            return read_picture(self._pictures(row), self.geometry)
        except Exception as error:
            told = f"{printable(self._names[row])} changed or became unreadable since it was checked ({reason_for(error)})"
            raise InputError(f"{told}; put it back, or start again without it") from error

    def _finish(self, waiting: _Waiting) -> Tensor:
        pixels, parts = waiting
        for part in parts:
            part.result()
        return torch.from_numpy(pixels).to(self.device)


Pixels = Tensor | StreamedPixels
"""(N, C, H, W) uint8, in memory or on disk."""


def read_batches(pixels: Pixels, batches: Iterable[Tensor]) -> Generator[Tensor, None, None]:
    """Yield pixels[index] for each of `batches` of indices; what lies on disk is read ahead."""
    if isinstance(pixels, StreamedPixels):
        yield from pixels.read(batches)
        return
    for index in batches:
        yield pixels[index.to(pixels.device)]
