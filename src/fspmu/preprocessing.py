"""How a model wants its images: chosen with the data, saved with the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

AUGMENTATIONS = {
    "none": "the images as they are",
    "crop": "a random crop",
    "crop-flip": "a random crop and a horizontal flip",
}


@dataclass(frozen=True)
class Preprocessing:
    """Normalisation and the random view of training, in pixel values from 0 to 1 and pixels of padding."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel."""
    augment: str = "none"
    """A key of AUGMENTATIONS."""
    padding: int = 0
    """Black pixels added on each side before a random crop."""

    def viewed(self, augment: str, sides: Sequence[int]) -> "Preprocessing":
        """Return the same with the random view called `augment`; images of these `sides` are padded by an eighth before a crop where nobody said how far."""
        return self if augment == "none" == self.augment else replace(self, augment=augment, padding=max(self.padding, min(sides) // 8, 1))


RESIZES = {
    "squash": "to the size, or to a square of `shortest` and then the middle, whatever the shape",
    "shortest": "the shorter side to `shortest`, then the middle",
}
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Geometry:
    """How image files become pixels of one size: chosen with the model or the data, saved with the model."""

    size: tuple[int, int]
    """Height and width in pixels."""
    channels: int = 3
    """1 grey, 3 RGB, 4 RGB and alpha; any other number for arrays alone, which must have it."""
    resize: str = "squash"
    """A key of RESIZES."""
    shortest: int = 0
    """Pixels to which the shorter side is resized, or with `squash` both; 0: so that the size is just covered."""
    interpolation: str = "bilinear"
    """One of INTERPOLATIONS."""
