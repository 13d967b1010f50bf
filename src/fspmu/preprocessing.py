"""How a model wants its images: chosen with the data, saved with the model."""

from dataclasses import dataclass

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
