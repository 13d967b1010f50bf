"""Small pictures for a page: many on a sheet, and some in full."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fspmu.data.decoding import quiet_pillow, read_image
from fspmu.data.images import Images
from fspmu.data.stream import read_batches
from fspmu.results.store import replacing

TILE = 64
COLUMNS = 45
"""And as many rows: 2,025 tiles on a sheet, of at most 2,880 pixels a side."""
LARGEST = 512
MOST_LARGE = 200
QUALITY = 75
SMALL = 32
"""Tiles below this are kept without loss: lossy ones would run into each other, and they are few bytes."""

Picture = NDArray[np.uint8]


def tile_of(images: Images) -> int:
    """Return the side of a tile in pixels: that of the images where they are small."""
    height, width = images.pixels.shape[2:]
    return min(TILE, max(height, width))


def pictures_of(images: Images, rows: Sequence[int]) -> Iterator[Image.Image]:
    """Yield the images at `rows` in colour, as they go into the model; of streamed ones only these are read."""
    batches = torch.split(torch.tensor(rows, dtype=torch.int64), 64)
    for batch in read_batches(images.pixels, batches if len(rows) else ()):
        yield from (picture_of(pixels) for pixels in batch.cpu().numpy())


def picture_of(pixels: Picture) -> Image.Image:
    """Return an image (C, H, W) uint8 in colour: one channel as grey, four as colours over white, of other numbers the first as grey."""
    if len(pixels) == 4:
        picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    grey = len(pixels) != 3
    return Image.fromarray(np.ascontiguousarray(pixels[0] if grey else pixels.transpose(1, 2, 0))).convert("RGB")


def write_sheets(pictures: Iterable[Image.Image], tile: int, folder: Path) -> list[dict[str, Any]]:
    """Write pictures in their order as `thumbs-000.webp` and so on, row by row, each within a square of `tile` pixels; return what a page needs of each."""
    waiting = iter(pictures)
    sheets: list[dict[str, Any]] = []
    while part := list(islice(waiting, COLUMNS * COLUMNS)):
        columns = min(COLUMNS, len(part))
        sheet = Image.new("RGB", (columns * tile, -(-len(part) // columns) * tile), (128, 128, 128))
        for place, picture in enumerate(part):
            if max(picture.size) > tile:
                picture.thumbnail((tile, tile), Image.Resampling.BOX)
            left, top = ((tile - side) // 2 for side in picture.size)
            sheet.paste(picture, (place % columns * tile + left, place // columns * tile + top))
        name = f"thumbs-{len(sheets):03}.webp"
        save_picture(sheet, folder / name, lossless=tile < SMALL)
        sheets.append({"file": name, "width": sheet.width, "height": sheet.height, "tile": tile, "columns": columns, "count": len(part)})
    return sheets


def write_large(images: Images, rows: Sequence[int], tile: int, folder: Path, seconds: float) -> dict[str, str]:
    """Write larger pictures of the images at `rows`, where there is more to see than on a tile: from their files, else as they go into the model.

    Stops after `seconds`. Returns the names of files by place in `rows`.
    """
    started, written = perf_counter(), {}
    with quiet_pillow():
        for place, row in enumerate(rows[:MOST_LARGE]):
            if perf_counter() - started > seconds:
                break
            picture = _from_file(images.paths[row]) if images.paths is not None else None
            if picture is None:
                if max(images.pixels.shape[2:]) <= tile:
                    continue
                picture = next(pictures_of(images, [row]))
            if max(picture.size) > tile:
                picture.thumbnail((LARGEST, LARGEST))
                written[str(place)] = f"large-{place}.webp"
                save_picture(picture, folder / written[str(place)])
    return written


def _from_file(path: str) -> Image.Image | None:
    """Return the picture in a file; None where it cannot be read any more."""
    try:
        return read_image(Path(path), LARGEST)
    except Exception:  # decoders of damaged files raise nearly anything, and there is another way
        return None


def save_picture(picture: Image.Image, path: Path, *, lossless: bool = False) -> None:
    """Write a picture as WebP, whole or not at all."""
    with replacing(path) as temporary:
        picture.save(temporary, "WEBP", quality=QUALITY, lossless=lossless, method=2)
