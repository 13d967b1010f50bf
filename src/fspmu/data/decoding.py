"""Image files to uint8 arrays of one geometry: a damaged file is named and stops no other.

A file shows what its readers usually show: upright by its EXIF, the first frame, without its transparency (unless the geometry has a fourth channel)
and without its colour profile.
"""

import contextlib
import io
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fspmu.data.resizing import check_geometry, fit, is_fit
from fspmu.data.storage import available_memory
from fspmu.data.unreadable import reason_for, tell_failures, what_is
from fspmu.errors import InputError
from fspmu.preprocessing import Geometry

Picture = Path | bytes | NDArray[np.uint8] | Image.Image
"""An image file, its content, pixels (H, W) or (H, W, C), or an image of Pillow's."""
Size = tuple[int, int]
"""Height and width in pixels."""
Pictures = Callable[[int], Picture]
"""A picture by row."""
Take = Callable[[int, NDArray[np.uint8]], None]
"""Takes row and pixels (C, H, W); called from several threads."""

Result = TypeVar("Result")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # a fixed list: some of Pillow's other readers start programs (EPS)
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of a decompression bomb; a warning would pass unseen
LARGEST_SIDE = 224
SMALL_SIDE = 128  # below it threads only wait for each other: measured on CIFAR, 2 cores, 1.5 times as slow as one
_MOST_AT_ONCE = 64  # rows a thread takes at a time: stopping waits for no more
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoded:
    """What could be read: pixels (M, C, H, W) uint8, and which of the N pictures they are, (M,) ascending."""

    pixels: Tensor
    kept: Tensor
    notes: tuple[str, ...]


def decode(pictures: Pictures, names: Sequence[str], geometry: Geometry | Size | None, *, skip_unreadable: bool) -> Decoded:
    """Read picture 0..N-1, upright, at one size; `names` (N,) are what messages call them. A size alone means RGB, squashed.

    Without any, pictures of one size keep it, others become squares of the most common short side, at most 224 pixels.
    Raises InputError when some cannot be read, unless `skip_unreadable`, and when none can.
    """
    reason = ""
    if geometry is None:
        geometry, reason = common_size(pictures, len(names))
    if not isinstance(geometry, Geometry):
        geometry = Geometry(geometry)
    check_memory(len(names), geometry)
    pixels = np.empty((len(names), geometry.channels, *geometry.size), dtype=np.uint8)

    def keep(row: int, read: NDArray[np.uint8]) -> None:
        pixels[row] = read

    failures, resized = visit(pictures, names, geometry, keep)
    notes = (*tell_failures(failures, names, skip_unreadable), *tell_resized(resized, len(names), geometry.size, reason))
    kept = torch.tensor([row for row in range(len(names)) if row not in failures], dtype=torch.int64)
    return Decoded(torch.from_numpy(close_gaps(pixels, kept)), kept, notes)


def close_gaps(pixels: NDArray[np.uint8], kept: Tensor) -> NDArray[np.uint8]:
    """Return the rows `kept` (M,) ascending of pixels (N, ...), moved forward in place: a copy of the rest would need the memory twice."""
    for place, row in enumerate(kept.tolist()):
        if place < row:
            pixels[place] = pixels[row]
    return pixels[: len(kept)]


def tell_resized(resized: int, count: int, size: Size, reason: str) -> tuple[str, ...]:
    """Return the note on pictures that had another size, if any had."""
    return (f"{resized:,} of {count:,} images resized to {size[0]} x {size[1]} pixels{reason}",) if resized else ()


def visit(
    pictures: Pictures, names: Sequence[str], geometry: Geometry, take: Take, advance: Callable[[int], object] | None = None
) -> tuple[dict[int, str], int]:
    """Hand the pixels of picture 0..N-1 to `take`, in no order; return what failed, by row, and how many were resized.

    `advance` is told after every few pictures how many more there are.
    Raises InputError when the geometry is none.
    """
    check_geometry(geometry)
    failures: dict[int, str] = {}
    resized = 0
    with quiet_pillow():
        for count, failed, changed in _in_threads(
            lambda rows: _visit_rows(pictures, names, geometry, take, rows), len(names), worker_count(pictures, len(names))
        ):
            failures |= failed
            resized += changed
            if advance is not None:
                advance(count)
    return failures, resized


def _visit_rows(pictures: Pictures, names: Sequence[str], geometry: Geometry, take: Take, rows: range) -> tuple[int, dict[int, str], int]:
    failures, resized = {}, 0
    for row in rows:
        try:
            names[row].encode()
            pixels, changed = _read(pictures(row), geometry)
            take(row, pixels)
            resized += changed
        except InputError:  # says what is wrong with the whole set, not with this picture
            raise
        except Exception as error:  # a damaged file can make Pillow's readers raise nearly anything
            failures[row] = reason_for(error)
    return len(rows), failures, resized


def read_picture(picture: Picture, geometry: Geometry) -> NDArray[np.uint8]:
    """Return pixels (C, H, W): the one place where a picture becomes them. Raises whatever its reader raises."""
    return _read(picture, geometry)[0]


def read_image(path: Path, largest: int) -> Image.Image:
    """Return a file in colour and in its own size; a larger JPEG may come smaller, with at least `largest` pixels a side. Raises whatever its reader raises."""
    with _open(path) as image:
        image.draft("RGB", (largest, largest))
        return _to_mode(image, "RGB")


def _read(picture: Picture, geometry: Geometry) -> tuple[NDArray[np.uint8], bool]:
    """Return pixels (C, H, W), and whether they had another size."""
    if isinstance(picture, np.ndarray) and picture.ndim == 3 and is_fit(picture.shape[0], picture.shape[1], geometry) and picture.shape[2] == geometry.channels:
        return picture.transpose(2, 0, 1), False
    if geometry.channels not in _MODES:
        raise ValueError(f"{geometry.channels} channels are wanted, and there is no way to make them")
    with _open(picture) as image:
        seen = _to_mode(image, _MODES[geometry.channels])
        changed = not is_fit(seen.height, seen.width, geometry)
        pixels = np.asarray(fit(seen, geometry) if changed else seen)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), changed


def _in_threads(work: Callable[[range], Result], count: int, workers: int) -> Iterator[Result]:
    """Yield work(rows) for consecutive ranges of 0..count-1; Pillow lets go of the interpreter's lock while it decodes."""
    step = max(1, min(count // (8 * workers), _MOST_AT_ONCE))
    parts = [range(start, min(start + step, count)) for start in range(0, count, step)]
    if workers == 1:
        yield from map(work, parts)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(work, parts)


def worker_count(pictures: Pictures, count: int) -> int:
    """Return how many threads are worth it, judged by the first picture."""
    first = _sizes(pictures, range(min(1, count)))
    return 1 if first and max(first[0]) < SMALL_SIDE else min(8, os.cpu_count() or 1)


_quiet_lock = threading.Lock()
_quiet_depth = 0


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's remarks on odd metadata, which changes no pixel; unlike `catch_warnings`, from any thread, and nothing else's."""
    global _quiet_depth
    with _quiet_lock:
        _quiet_depth += 1
        if _quiet_depth == 1:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _quiet_filter[:] = warnings.filters[:1]
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and _quiet_filter[0] in warnings.filters:  # someone else's `catch_warnings` may have taken it away
                warnings.filters.remove(_quiet_filter[0])  # type: ignore[attr-defined]


_quiet_filter: list[object] = []


def _open(picture: Picture) -> contextlib.AbstractContextManager[Image.Image]:
    if isinstance(picture, Image.Image):
        return contextlib.nullcontext(picture)  # its owner's: to be read again
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture[:, :, 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture)
    if isinstance(picture, Path) and not picture.is_file():  # reading a pipe would wait for ever
        raise ValueError(what_is(picture))
    if picture == b"" or (isinstance(picture, Path) and not picture.stat().st_size):
        raise ValueError("the file is empty")
    image = Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels are too many")
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata says nothing about the pixels
        return 1


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return `image` upright in 8 bits; 16-bit grey is scaled, because Pillow's own conversion clips it to white."""
    image.load()
    turn = _UPRIGHT.get(_orientation(image))  # read now, because Pillow turns a TIFF itself when it is loaded
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    seen = image if image.mode == mode else image.convert(mode)
    return seen if turn is None else seen.transpose(turn)


def common_size(pictures: Pictures, count: int) -> tuple[Size, str]:
    """Return the size for all pictures, and the words that explain it where they differ; only headers are read."""
    with quiet_pillow():
        workers = worker_count(pictures, count)
        sizes = Counter(size for part in _in_threads(lambda rows: _sizes(pictures, rows), count, workers) for size in part)
    if not sizes:
        return (1, 1), ""  # nothing can be read: decoding names the files
    if len(sizes) == 1:
        return next(iter(sizes)), ""
    shorts: Counter[int] = Counter()
    for size, count in sizes.items():
        shorts[min(size)] += count
    common = max(shorts, key=lambda side: (shorts[side], side))
    side = min(common, LARGEST_SIDE)
    capped = f", capped at {LARGEST_SIDE}" if side < common else ""
    return (side, side), f": they differ in size (short sides of {min(shorts)} to {max(shorts)} pixels), the most common short side is {common}{capped}"


def _sizes(pictures: Pictures, rows: range) -> list[Size]:
    found = []
    for row in rows:
        try:
            picture = pictures(row)
            if isinstance(picture, np.ndarray):
                found.append((picture.shape[0], picture.shape[1]))
                continue
            with _open(picture) as image:
                lying = _orientation(image) >= 5
                if lying and image.format == "TIFF":  # Pillow turns it itself: its size when it is opened (from 11 on) or loaded
                    image.load()
                    lying = False
                found.append((image.width, image.height) if lying else (image.height, image.width))
        except InputError:
            raise
        except Exception:  # decoding reports it
            continue
    return found


def check_memory(count: int, geometry: Geometry) -> None:
    """Raise InputError when the pixels alone would fill the memory that is free."""
    height, width = geometry.size
    needed, free = geometry.channels * count * height * width, available_memory()
    if free is not None and needed > free:
        told = f"{count:,} images of {height} x {width} pixels need {needed / 2**30:.3g} GiB of memory, and {free / 2**30:.3g} GiB are free"
        raise InputError(f"{told}; give fewer images, or where the command has them --limit or a smaller --size")
