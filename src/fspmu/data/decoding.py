"""Image files to one uint8 tensor: a damaged file is named and stops no other."""

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fspmu.errors import InputError

Picture = Path | bytes | NDArray[np.uint8]
"""An image file, its content, or pixels (H, W)."""
Size = tuple[int, int]
"""Height and width in pixels."""

Result = TypeVar("Result")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # a fixed list: some of Pillow's other readers start programs (EPS)
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of a decompression bomb; a warning would pass unseen
LARGEST_SIDE = 224
SMALL_SIDE = 128  # below it threads only wait for each other: measured on CIFAR, 2 cores, 1.5 times as slow as one
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
    """What could be read: pixels (M, 3, H, W) uint8, and which of the N pictures they are, (M,) ascending."""

    pixels: Tensor
    kept: Tensor
    notes: tuple[str, ...]


def decode(pictures: Callable[[int], Picture], names: Sequence[str], size: Size | None, *, skip_unreadable: bool) -> Decoded:
    """Read picture 0..N-1 as RGB, upright, at one size; `names` (N,) are what messages call them.

    Without `size`, pictures of one size keep it, others become squares of the most common short side, at most 224 pixels.
    Raises InputError when some cannot be read, unless `skip_unreadable`, and when none can.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which changes no pixel
        workers, reason = _worker_count(pictures, len(names)), ""
        if size is None:
            size, reason = _common_size(pictures, len(names), workers)
        _check_memory(len(names), size)
        pixels = np.empty((len(names), 3, *size), dtype=np.uint8)
        failures: dict[int, str] = {}
        resized = 0
        for failed, changed in _in_threads(lambda rows: _fill(pixels, pictures, names, rows), len(names), workers):
            failures |= failed
            resized += changed
    notes = _check_failures(failures, names, skip_unreadable)
    if resized:
        notes += (f"{resized:,} of {len(names):,} images resized to {size[0]} x {size[1]} pixels{reason}",)
    kept = torch.tensor([row for row in range(len(names)) if row not in failures], dtype=torch.int64)
    everything = torch.from_numpy(pixels)
    return Decoded(everything[kept] if failures else everything, kept, notes)


def _in_threads(work: Callable[[range], Result], count: int, workers: int) -> list[Result]:
    """Return work(rows) for consecutive ranges of 0..count-1; Pillow lets go of the interpreter's lock while it decodes."""
    if workers == 1:
        return [work(range(count))]
    step = max(1, count // (8 * workers))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, [range(start, min(start + step, count)) for start in range(0, count, step)]))


def _worker_count(pictures: Callable[[int], Picture], count: int) -> int:
    """Return how many threads are worth it, judged by the first picture."""
    first = _sizes(pictures, range(min(1, count)))
    return 1 if first and max(first[0]) < SMALL_SIDE else min(8, os.cpu_count() or 1)


def _fill(pixels: NDArray[np.uint8], pictures: Callable[[int], Picture], names: Sequence[str], rows: range) -> tuple[dict[int, str], int]:
    """Write the pictures of `rows` into `pixels` (N, 3, H, W); return what failed, by row, and how many were resized."""
    failures, resized = {}, 0
    size = (pixels.shape[2], pixels.shape[3])
    for row in rows:
        try:
            names[row].encode()
            with _open(pictures(row)) as image:
                rgb = _to_rgb(image)
                if (rgb.height, rgb.width) != size:
                    rgb = rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR)
                    resized += 1
                pixels[row] = np.asarray(rgb).transpose(2, 0, 1)
        except Exception as error:  # a damaged file can make Pillow's readers raise nearly anything
            failures[row] = _reason(error)
    return failures, resized


def _open(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    if isinstance(picture, Path) and not picture.is_file():  # reading a pipe would wait for ever
        raise FileNotFoundError
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


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` upright in 8-bit RGB; 16-bit grey is scaled, because Pillow's own conversion clips it to white."""
    turn = _UPRIGHT.get(_orientation(image))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    image.load()
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def _common_size(pictures: Callable[[int], Picture], count: int, workers: int) -> tuple[Size, str]:
    """Return the size for all pictures, and the words that explain it where they differ; only headers are read."""
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


def _sizes(pictures: Callable[[int], Picture], rows: range) -> list[Size]:
    found = []
    for row in rows:
        try:
            with _open(pictures(row)) as image:
                lying = _orientation(image) >= 5
                found.append((image.width, image.height) if lying else (image.height, image.width))
        except Exception:  # decoding reports it
            continue
    return found


def _check_memory(count: int, size: Size) -> None:
    """Raise InputError when the pixels alone would fill the machine's memory."""
    if not hasattr(os, "sysconf"):
        return
    needed, present = 3 * count * size[0] * size[1], os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise InputError(
            f"{count:,} images of {size[0]} x {size[1]} pixels need {needed / 2**30:.1f} GiB, and the machine has {present / 2**30:.1f}; give --size or --limit"
        )


def _reason(error: Exception) -> str:
    """Return a few words on why a picture cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnicodeEncodeError):
        return "the file name is not UTF-8"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    if isinstance(error, UnidentifiedImageError):
        return "no image of a known format"
    lines = str(error).splitlines()
    return lines[0][:80] if lines else type(error).__name__


def _check_failures(failures: dict[int, str], names: Sequence[str], skip_unreadable: bool) -> tuple[str, ...]:
    """Return the note on what was left out; raise InputError where that may not be."""
    if not failures:
        return ()
    rows = sorted(failures)
    first = "; ".join(f"{printable(names[row])} ({failures[row]})" for row in rows[:5])
    more = f"; and {len(rows) - 5:,} more" if len(rows) > 5 else ""
    told = f"{len(rows):,} of {len(names):,} images cannot be read: {first}{more}"
    if len(rows) == len(names):
        raise InputError(told)
    if not skip_unreadable:
        raise InputError(f"{told}; mend or remove them, or add --skip-unreadable to leave them out")
    listed = "; ".join(f"{printable(names[row])} ({reason})" for row, reason in zip(rows, map(failures.get, rows), strict=True))
    return (f"left out {len(rows):,} of {len(names):,} images that cannot be read: {listed}",)


def printable(name: str) -> str:
    """Return `name` with anything that is no UTF-8 spelt out."""
    return name.encode("utf-8", "backslashreplace").decode()
