"""Labelled images as Python objects: arrays, tensors, lists, and data sets that give an image and a label by number."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fspmu.data.decoding import Picture
from fspmu.data.listing import Listing, some
from fspmu.data.paths import RootedPaths
from fspmu.data.unreadable import reason_for
from fspmu.errors import InputError
from fspmu.preprocessing import Geometry

MOST_CLASSES = 100_000
_TRIED = 4
"""Items that are read twice before all are: to find out whether a data set says the same twice."""


def list_pair(pixels: Any, labels: Any, part: str = "train") -> tuple[Listing, Geometry | None]:
    """List pixels (N, H, W), (N, H, W, C) or (N, C, H, W), or N images, files or arrays, with N labels; beside it the geometry that all have, if known.

    Raises InputError when the pixels have no known range or the labels do not fit.
    """
    geometry = None
    picture: Callable[[int], Picture]
    if isinstance(pixels, Tensor | np.ndarray):
        picture = ArrayPictures(pixels)
        geometry = picture.geometry
        count = len(pixels)
    elif isinstance(pixels, Sequence) and not isinstance(pixels, str):
        count, images = len(pixels), pixels

        def picture(row: int) -> Picture:
            return as_picture(images[row])

    else:
        raise InputError(f"images must be an array, a tensor or a list beside their labels, not {type(pixels).__name__}")
    found, names = read_labels(labels, count)
    return Listing(picture, found, names, [f"{part}/{row}" for row in range(count)]), geometry


class ArrayPictures:
    """Pixels (N, H, W), (N, H, W, C) or (N, C, H, W) by row."""

    def __init__(self, pixels: Tensor | NDArray[Any]) -> None:
        first = isinstance(pixels, Tensor)
        array: NDArray[Any] = _to_numpy(pixels)
        if array.ndim not in (3, 4) or not array.size:
            raise InputError(f"pixels must be (N, H, W), (N, H, W, C) or (N, C, H, W), none of them 0, not {array.shape}")
        self._pixels = array if array.ndim == 3 else _channels_last(array, first)
        if array.dtype != np.uint8:
            for start in range(0, len(array), 1024):
                _check_range(array[start : start + 1024], "divide by 255, or give uint8")
        height, width, channels = (*self._pixels.shape[1:], 1)[:3]
        self.geometry = Geometry((height, width), channels)

    def __call__(self, row: int) -> Picture:
        """Return the pixels (H, W, C) of `row`."""
        pixels = _to_bytes(self._pixels[row])
        return pixels if pixels.ndim == 3 else pixels[:, :, None]


def as_picture(item: Any) -> Picture:
    """Return a picture for an image of Pillow's, a file, its content, or pixels (H, W), (H, W, C) or (C, H, W).

    Raises InputError for pixels of no known range, because that is true of the whole set, and ValueError for anything else.
    """
    if isinstance(item, Image.Image | Path | bytes):
        return item
    if isinstance(item, str):
        return Path(item).expanduser()
    if not isinstance(item, Tensor | np.ndarray):
        raise ValueError(f"{type(item).__name__} is no image")
    array = _to_numpy(item)
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"pixels of shape {array.shape} are no image")
    if array.dtype != np.uint8:
        _check_range(array, "drop Normalize from the data set's transform, and give uint8 or floats from 0 to 1")
    pixels = _to_bytes(array)
    return pixels[:, :, None] if pixels.ndim == 2 else _channels_last(pixels[None], isinstance(item, Tensor))[0]


def _to_numpy(pixels: Tensor | NDArray[Any]) -> NDArray[Any]:
    if isinstance(pixels, np.ndarray):
        return pixels
    pixels = pixels.detach().cpu()
    return (pixels.float() if pixels.dtype == torch.bfloat16 else pixels).numpy()


def _channels_last(pixels: NDArray[Any], tensor: bool) -> NDArray[Any]:
    """Return pixels (N, H, W, C) of (N, C, H, W) or (N, H, W, C); where both could be meant, tensors have their channels first and arrays last."""
    first, last = pixels.shape[1] in (1, 3, 4), pixels.shape[3] in (1, 3, 4)
    if not first and not last:  # several bands: fewer than pixels on a side
        first, last = pixels.shape[1] < min(pixels.shape[2:]), pixels.shape[3] < min(pixels.shape[1:3])
        if first == last:
            raise InputError(f"pixels of shape {pixels.shape} do not say which dimension is their channels; give (N, H, W, C) with C of 1, 3 or 4")
    return pixels.transpose(0, 2, 3, 1) if first and (tensor or not last) else pixels


def _check_range(pixels: NDArray[Any], advice: str) -> None:
    """Raise InputError unless `pixels` are floats from 0 to 1 or whole numbers from 0 to 255."""
    kind = pixels.dtype.kind
    if kind not in "fiub":
        raise InputError(f"pixels must be numbers, not {pixels.dtype}")
    low, high = pixels.min(), pixels.max()
    most = 1 if kind in "fb" else 255
    if not (low >= 0 and high <= most):  # NaN fails too
        what = "floats" if kind == "f" else "whole numbers"
        raise InputError(f"pixels are {what} from {float(low):.4g} to {float(high):.4g}, but {what} must lie from 0 to {most}: {advice}")


def _to_bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    return np.rint(pixels * np.float32(255)).astype(np.uint8) if pixels.dtype.kind in "fb" else pixels.astype(np.uint8)


def read_labels(labels: Any, count: int, class_names: Sequence[str] | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels (N,) int64 and the class names: whole numbers count classes from 0, names are sorted as strings.

    Raises InputError when there are not `count`, or one is neither, or is no class.
    """
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim != 1 or len(values) != count:
        raise InputError(f"{count:,} images need {count:,} labels, a number or a name each, not {values.shape}")
    if values.dtype.kind in "iub":
        return _read_numbers(torch.from_numpy(values.astype(np.int64)), class_names)
    if not count or values.dtype.kind not in "UO" or not all(isinstance(value, str) for value in values):
        odd = next((repr(value) for value in values.tolist() if not isinstance(value, str | int)), "a mixture of both")
        raise InputError(f"labels must be whole numbers or names, not {odd}")
    found = values.tolist()
    names = tuple(class_names) if class_names is not None else tuple(sorted(set(found)))
    places = {name: place for place, name in enumerate(names)}
    if unknown := sorted(set(found) - set(places)):
        raise InputError(f"the labels {some(unknown)} are none of the classes {some(names)}")
    return torch.tensor([places[name] for name in found]), names


def _read_numbers(labels: Tensor, class_names: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    most = MOST_CLASSES if class_names is None else len(class_names)
    if low < 0 or high >= most:
        named = "" if class_names is None else f", because there are {most} class names"
        raise InputError(f"labels run from {low} to {high}, but they count classes from 0 to {most - 1}{named}")
    return labels, tuple(class_names) if class_names is not None else tuple(str(label) for label in range(high + 1))


class DatasetPictures:
    """The images of a data set by row. One at a time: nobody promises that a data set can be asked from several threads."""

    def __init__(self, dataset: Any, rows: Sequence[int]) -> None:
        self._dataset, self._rows, self._lock = dataset, rows, Lock()

    def __call__(self, row: int) -> Picture:
        """Return the image of `row`."""
        return as_picture(self.item(self._rows[row])[0])

    def item(self, row: int) -> tuple[Any, Any]:
        """Return image and label.

        Raises InputError when the data set gives anything else.
        """
        with self._lock:
            item = self._dataset[row]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"item {row} of the {type(self._dataset).__name__} is no pair of an image and its label but {type(item).__name__}")
        return item[0], item[1]


def list_dataset(dataset: Any, part: str = "train") -> tuple[Listing, Geometry | None]:
    """List a data set that has a length and gives (image, label) by number; beside it the geometry of its first image where that is an array.

    Its transform is applied: it must say the same twice, and leave pixel values from 0 to 255 or from 0 to 1.
    Raises InputError when it does not, or its labels do not fit.
    """
    count = len(dataset)
    if not count:
        raise InputError(f"the {type(dataset).__name__} is empty")
    tried = DatasetPictures(dataset, range(count))
    labels, geometry = _try(tried, count, dataset)
    known = known_labels(dataset)
    rows: Sequence[int] = range(count)
    failures: dict[int, str] = {}
    if known is None or not all(_plain(known[row]) == label for row, label in labels.items()):
        known, failures = _read_all_labels(tried, count, labels)
        rows = [row for row in range(count) if row not in failures]
        known = [known[row] for row in rows] if failures else known
    found, names = read_labels(known, len(rows), class_names_of(dataset))
    everything, paths = _ids_and_paths(dataset, count, part)
    odd = tuple((everything[row], reason) for row, reason in failures.items())
    if failures:
        everything, paths = [everything[row] for row in rows], None if paths is None else paths.subset(rows)
    return Listing(DatasetPictures(dataset, rows), found, names, everything, paths, odd=odd), geometry


def _try(pictures: DatasetPictures, count: int, dataset: Any) -> tuple[dict[int, Any], Geometry | None]:
    """Return the labels of the first items that can be read, and the geometry of the first image where it is an array."""
    labels: dict[int, Any] = {}
    geometry = None
    for row in range(min(count, _TRIED)):
        try:
            (first, label), (again, _) = pictures.item(row), pictures.item(row)
            picture, other = as_picture(first), as_picture(again)
        except InputError:
            raise
        except Exception:  # reading them all reports it
            continue
        if not (picture == other if isinstance(picture, Path | bytes) else np.array_equal(np.asarray(picture), np.asarray(other))):
            raise InputError(f"item {row} of the {type(dataset).__name__} differs each time it is read; drop what is random from its transform")
        labels[row] = _plain(label)
        if geometry is None and isinstance(picture, np.ndarray):
            geometry = Geometry((picture.shape[0], picture.shape[1]), picture.shape[2])
    return labels, geometry


def _read_all_labels(pictures: DatasetPictures, count: int, known: Mapping[int, Any]) -> tuple[list[Any], dict[int, str]]:
    """Return the label of every item, None where it cannot be read, and why it cannot."""
    labels: list[Any] = []
    failures: dict[int, str] = {}
    for row in range(count):
        try:
            labels.append(known[row] if row in known else _plain(pictures.item(row)[1]))
        except InputError:
            raise
        except Exception as error:  # whatever a data set of someone else's raises
            labels.append(None)
            failures[row] = reason_for(error)
    if len(failures) == count:
        raise InputError(f"no item of the data set can be read: {failures[0]}")
    return labels, failures


def _plain(label: Any) -> Any:
    """Return a label as Python's own number or string."""
    return label.item() if isinstance(label, Tensor | np.generic | np.ndarray) and label.ndim == 0 else label


def known_labels(dataset: Any) -> Any:
    """Return the labels that a data set says without reading its images; None where it does not."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if isinstance(dataset, torch.utils.data.Subset):
        inner = known_labels(dataset.dataset)
        return None if inner is None else [inner[row] for row in dataset.indices]
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if isinstance(found, Tensor | np.ndarray | list | tuple) and len(found) == len(dataset):
            return found
    return None


def class_names_of(dataset: Any) -> tuple[str, ...] | None:
    """Return the names that a data set gives its classes, made different where they repeat; None without any."""
    if isinstance(dataset, torch.utils.data.Subset):
        return class_names_of(dataset.dataset)
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, list | tuple) or not classes:
        return None
    names = [", ".join(map(str, name)) if isinstance(name, list | tuple) else str(name) for name in classes]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return tuple(f"{name} ({place})" if name in repeated else name for place, name in enumerate(names))


def _ids_and_paths(dataset: Any, count: int, part: str) -> tuple[list[str], RootedPaths | None]:
    """Return N ids, and N paths where the data set lists the files below one folder."""
    samples, root = getattr(dataset, "samples", None), getattr(dataset, "root", None)
    if isinstance(samples, list) and len(samples) == count and isinstance(root, str | Path):
        folder = Path(root).absolute()
        prefix = f"{folder.as_posix()}/"
        files = [Path(sample[0]).absolute().as_posix() for sample in islice(samples, count) if isinstance(sample, list | tuple) and isinstance(sample[0], str)]
        if len(set(files)) == count and all(file.startswith(prefix) for file in files):
            ids = [file.removeprefix(prefix) for file in files]
            return ids, RootedPaths(str(folder), ids)
    return [f"{part}/{row}" for row in range(count)], None
