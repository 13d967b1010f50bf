"""Images of one's own from anywhere, as a repair takes them in: files of every kind, arrays, tensors, other people's data sets."""

import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from fspmu.data.decoding import Picture, Pictures, Take, check_memory, close_gaps, common_size, tell_resized, visit
from fspmu.data.hub import list_splits
from fspmu.data.images import Images
from fspmu.data.listing import Listing, align, some
from fspmu.data.objects import ArrayPictures, list_dataset, list_pair
from fspmu.data.sources import NAMES, DataOptions, known_size, list_parts, preprocess
from fspmu.data.statistics import Survey, content_hash, statistics_of
from fspmu.data.storage import choose_storage
from fspmu.data.stream import Pixels, StreamedPixels, read_batches
from fspmu.data.unreadable import printable, tell_failures
from fspmu.errors import InputError, launched
from fspmu.preprocessing import Geometry, Preprocessing


@dataclass(frozen=True)
class Loaded:
    """Images as they were found, with a test part where the data set has one.

    unreadable: (id, reason) of everything that looks like an image and is none. train_hashes, test_hashes (N,) int64: equal where the decoded
    pixels are equal. The images themselves say how they are normalised: by their own mean and deviation, unless something else was asked for.
    """

    name: str
    train: Images
    test: Images | None
    unreadable: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    train_hashes: Tensor
    test_hashes: Tensor | None


@dataclass(frozen=True)
class _Parts:
    """What was found before anything is decoded; geometry: that of all images, where it is known."""

    name: str
    train: Listing
    test: Listing | None = None
    geometry: Geometry | None = None
    known: str = ""


def evenly(count: int, wanted: int) -> Tensor:
    """Return `wanted` places (M,) of `count`, evenly spaced, or all where there are fewer."""
    wanted = min(count, wanted)
    return torch.arange(wanted) * count // max(1, wanted)


def load_images(
    source: Any,
    *,
    geometry: Geometry | None = None,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    data_dir: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    skip_unreadable: bool = True,
    storage: str = "auto",
) -> Loaded:
    """Return labelled images from `source`, every one of them read once.

    source: a path or name as `load_source` takes it, a CSV file of paths and labels, `Images`, a pair (pixels, labels), a `datasets.Dataset` or
    DatasetDict, or anything that has a length and gives (image, label) by number.
    limit: at most so many images of the training part, evenly spaced, so that a folder per class keeps its classes.
    geometry None: the images' own, where they differ a common one; arrays keep their channels, files become RGB.
    storage: a key of STORAGES; what is streamed from disk is decoded again in each pass. Where nothing says otherwise, arrays count classes from 0.
    Raises InputError when there is no such data set, nothing of it can be read, or something cannot and `skip_unreadable` is off.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}, but it must be at least 1")
    if isinstance(source, Images) and _fits(source, geometry):
        images = source if limit is None or limit >= len(source) else source.subset(evenly(len(source), limit))
        images = images if preprocessing is None else images.prepared_as(preprocessing)
        return Loaded("images", images, None, (), (), hash_images(images.pixels), None)
    parts = _list(source, DataOptions(data_dir=data_dir, image_column=image_column, label_column=label_column))
    train, test = parts.train, None if parts.test is None else align(parts.test, parts.train.class_names)
    if len(train.class_names) < 2:
        raise InputError(f"{parts.name} has {len(train.class_names)} class ({some(train.class_names)}); a classifier needs at least 2")
    train = train.subset(evenly(len(train), limit or len(train)))
    reason = ""
    geometry = geometry or parts.geometry
    if geometry is None:
        size, reason = (known_size(parts.known), "") if parts.known and known_size(parts.known) else common_size(train.picture, len(train))
        assert size is not None
        geometry = Geometry(size)
    where, notes = choose_storage(len(train) + (0 if test is None else len(test)), geometry, storage)
    read = _read(train, geometry, where, reason, skip_unreadable, count_values=preprocessing is None)
    if preprocessing is None:
        preprocessing = preprocess(geometry.size, parts.known, lambda: statistics_of(read.survey.counts))
    seen = _read(test, geometry, where, "", skip_unreadable, count_values=False) if test is not None and len(test) else None
    images = read.images(preprocessing)
    if gone := [name for name, count in zip(images.class_names, images.class_counts, strict=True) if not count]:
        notes += (f"no image of the class {some(gone)}",)
    notes = (*train.notes, *notes, *(f"training part: {note}" for note in read.notes))
    if test is None or seen is None:
        return Loaded(parts.name, images, None, read.unreadable, notes, read.hashes, None)
    notes += (*test.notes, *(f"test part: {note}" for note in seen.notes))
    return Loaded(parts.name, images, seen.images(preprocessing), read.unreadable + seen.unreadable, notes, read.hashes, seen.hashes)


def duplicates_between(train_hashes: Tensor, test_hashes: Tensor) -> list[tuple[int, int]]:
    """Return (training row, test row) for every test image that is a training image too; of several equal training images, the first."""
    first: dict[int, int] = {}
    for row, content in enumerate(train_hashes.tolist()):
        first.setdefault(content, row)
    return [(first[content], row) for row, content in enumerate(test_hashes.tolist()) if content in first]


def hash_images(pixels: Pixels) -> Tensor:
    """Return (N,) int64, equal where the pixels (N, C, H, W) are."""
    hashes = [content_hash(image) for part in read_batches(pixels, torch.split(torch.arange(len(pixels)), 64)) for image in part.cpu().numpy()]
    return torch.tensor(hashes, dtype=torch.int64)


def _fits(images: Images, geometry: Geometry | None) -> bool:
    return geometry is None or tuple(images.pixels.shape[1:]) == (geometry.channels, *geometry.size)


def _list(source: Any, options: DataOptions) -> _Parts:
    """Return what `source` has, whatever it is."""
    if isinstance(source, str | Path):  # a Path is a place, whatever it is called
        return _list_named(source if isinstance(source, str) else str(source.expanduser().absolute()), options)
    if isinstance(source, Images):
        pixels = source.pixels
        picture = pixels.picture if isinstance(pixels, StreamedPixels) else ArrayPictures(pixels)
        return _Parts("images", Listing(picture, source.given_labels.cpu(), source.class_names, source.ids, source.paths))
    if (splits := _hub_splits(source)) is not None:
        return _Parts("data set", *list_splits("the data set", splits, options.image_column, options.label_column))
    if tensors := getattr(source, "tensors", None):
        source = tuple(tensors)
    if isinstance(source, tuple) and len(source) == 2:
        listing, geometry = list_pair(*source)
        return _Parts("arrays", listing, geometry=geometry)
    if isinstance(source, Tensor | np.ndarray):
        raise InputError("pixels alone have no labels: give a pair (pixels, labels)")
    if isinstance(source, Mapping) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        hint = "; of a DataLoader give its .dataset" if hasattr(source, "dataset") else ""
        raise InputError(f"a {type(source).__name__} is no set of labelled images; give a path, (pixels, labels), or a data set with a length{hint}")
    listing, geometry = list_dataset(source)
    return _Parts(type(source).__name__, listing, geometry=geometry)


def _hub_splits(source: Any) -> Mapping[str, Any] | None:
    """Return the splits of an object of `datasets`; None for any other."""
    library = sys.modules.get("datasets")  # who has such an object has imported it
    if library is None:
        return None
    if isinstance(source, library.IterableDataset | library.IterableDatasetDict):
        raise InputError("a streaming data set has no length; load it with streaming=False")
    if isinstance(source, library.DatasetDict):
        return dict(source)
    return {"train": source} if isinstance(source, library.Dataset) else None


class _Scratch:
    """A folder of temporary files that goes when this object does, at the latest with the process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fspmu-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _list_named(name: str, options: DataOptions) -> _Parts:
    known = name if name in NAMES else ""
    if not known and not name.startswith("hf:"):
        return _Parts(*list_parts(name, options, Path("unused"), any_table=True))
    scratch = _Scratch()
    try:
        title, train, test = list_parts(name, options, scratch.path)
    except BaseException:
        scratch.remove()
        raise
    return _Parts(title, _holding(train, scratch), None if test is None else _holding(test, scratch), known=known)


def _holding(listing: Listing, scratch: _Scratch) -> Listing:
    """Return `listing` with pictures that keep the files they come from."""
    return replace(listing, picture=partial(_read_from, scratch, listing.picture))


def _read_from(scratch: _Scratch, picture: Pictures, row: int) -> Picture:
    return picture(row)


@dataclass(frozen=True)
class _Read:
    """One part after all of it was read once."""

    listing: Listing
    """Of what could be read."""
    pixels: Pixels
    hashes: Tensor
    survey: Survey
    unreadable: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def images(self, preprocessing: Preprocessing) -> Images:
        """Return the part as images."""
        return Images(self.pixels, self.listing.labels, self.listing.class_names, self.listing.ids, self.listing.paths, preprocessing)


def _read(listing: Listing, geometry: Geometry, where: str, reason: str, skip_unreadable: bool, *, count_values: bool) -> _Read:
    """Read every picture once: into memory, or to find what cannot be read."""
    count = len(listing)
    survey = Survey(count, geometry.channels if count_values else 0)
    everything = None
    if where == "memory":
        check_memory(count, geometry)
        everything = np.empty((count, geometry.channels, *geometry.size), np.uint8)
    with tqdm(total=count, desc="reading images", unit="image", leave=False, disable=None if launched()[0] == 0 else True) as bar:
        failures, resized = visit(listing.picture, listing.ids, geometry, _taker(survey, everything), bar.update)
    if failures:
        tell_failures(failures, listing.ids, True)  # ends here when there is nothing else
    unreadable = tuple((printable(identity), reason) for identity, reason in (*listing.odd, *((listing.ids[row], failures[row]) for row in sorted(failures))))
    told = "; ".join(f"{identity} ({why})" for identity, why in unreadable[:5]) + (f"; and {len(unreadable) - 5:,} more" if len(unreadable) > 5 else "")
    if unreadable and not skip_unreadable:
        raise InputError(f"{len(unreadable):,} images cannot be read: {told}; mend or remove them, or let them be left out (skip_unreadable)")
    notes: tuple[str, ...] = (f"left out {len(unreadable):,} images that cannot be read: {told}",) if unreadable else ()
    notes += tell_resized(resized, count, geometry.size, reason)
    kept = torch.tensor([row for row in range(count) if row not in failures], dtype=torch.int64) if failures else torch.arange(count)
    if everything is None:
        pixels: Pixels = StreamedPixels(listing.picture, listing.paths or listing.ids, geometry, kept)
    else:
        pixels = torch.from_numpy(close_gaps(everything, kept))
    return _Read(listing.subset(kept), pixels, survey.hashes[kept], survey, unreadable, notes)


def _taker(survey: Survey, everything: NDArray[np.uint8] | None) -> Take:
    def take(row: int, pixels: NDArray[np.uint8]) -> None:
        survey.take(row, pixels)
        if everything is not None:
            everything[row] = pixels

    return take
