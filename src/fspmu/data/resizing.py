"""A picture to the size of a geometry, to the pixel as torchvision's Resize and CenterCrop make it, and timm's where the size is no square."""

from PIL import Image

from fspmu.errors import InputError, choose
from fspmu.preprocessing import INTERPOLATIONS, RESIZES, Geometry

MAX_RESIZED = 89_478_485
"""Pixels; a picture of 1 x 5,000 would otherwise fill the memory, resized by its shorter side."""
_FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}


def check_geometry(geometry: Geometry) -> None:
    """Raise InputError unless the fields of `geometry` are what they may be."""
    choose(RESIZES, geometry.resize, "resize")
    choose(_FILTERS, geometry.interpolation, "interpolation")
    if len(geometry.size) != 2 or min(geometry.size) < 1:
        raise InputError(f"the image size is {geometry.size}, but it is a height and a width of at least 1 pixel")
    if geometry.channels < 1 or geometry.shortest < 0:
        raise InputError(f"a geometry has at least 1 channel and no negative side, not channels={geometry.channels} and shortest={geometry.shortest}")


def fit(image: Image.Image, geometry: Geometry) -> Image.Image:
    """Return `image` at the size of `geometry`."""
    height, width = geometry.size
    sampling = _FILTERS[geometry.interpolation]
    if geometry.resize == "squash":
        if not geometry.shortest:
            return image.resize((width, height), sampling)
        return _middle(image.resize((geometry.shortest, geometry.shortest), sampling), height, width)
    scaled = _scaled(image.height, image.width, geometry)
    if scaled[0] * scaled[1] > MAX_RESIZED:
        raise ValueError(f"{image.height} x {image.width} pixels are too oblong to be resized by the shorter side")
    if scaled != (image.height, image.width):
        image = image.resize((scaled[1], scaled[0]), sampling)
    return _middle(image, height, width)


def is_fit(height: int, width: int, geometry: Geometry) -> bool:
    """Whether an image of that size stays as it is."""
    return (height, width) == geometry.size and geometry.shortest in (0, min(geometry.size))


def _scaled(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """Return the size before the middle is cut out."""
    if geometry.shortest == 0 and geometry.size[0] != geometry.size[1]:
        ratio = min(height / geometry.size[0], width / geometry.size[1])
        return round(height / ratio), round(width / ratio)
    shortest = geometry.shortest or geometry.size[0]
    return (int(shortest * height / width), shortest) if width <= height else (shortest, int(shortest * width / height))


def _middle(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return the middle of `image`, in black where it is too small."""
    left, top = _start(image.width, width), _start(image.height, height)
    return image.crop((left, top, left + width, top + height))


def _start(side: int, wanted: int) -> int:
    return round((side - wanted) / 2) if side >= wanted else -((wanted - side) // 2)
