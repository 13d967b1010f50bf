"""Where images and their labels come from: bundled digits, CIFAR, the Hub, a folder of one's own."""

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fspmu.data.decoding import Decoded, Size, decode
from fspmu.data.folders import find_images, list_folder
from fspmu.data.hub import list_hub, list_parquet
from fspmu.data.images import Images
from fspmu.data.listing import Listing, align, some
from fspmu.data.paths import RootedPaths
from fspmu.data.statistics import channel_statistics
from fspmu.data.tables import list_table
from fspmu.errors import InputError, suggestion
from fspmu.preprocessing import Geometry, Preprocessing

DATA_DIR = "FSPMU_DATA_DIR"
NAMES = ("digits", "cifar10", "cifar100")
LABEL_COLUMNS = {"cifar10": "label", "cifar100": "fine_label"}
NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
}
SPLIT_SEED = 0  # fixed: a run's seed must not move what it is evaluated on


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read."""

    data_dir: Path | None = None
    """Folder that holds cifar10/ and cifar100/; default: the environment variable FSPMU_DATA_DIR."""
    limit: int | None = None
    """Only the first so many training images."""
    test_limit: int | None = None
    """At most so many test images, evenly spaced over the test part."""
    test_share: float = 0.2
    """Share of each class held out for evaluation when the data set has no test part, in [0, 1); 0: no evaluation."""
    size: int | None = None
    """Side in pixels to which images are resized; default: their own, or one for all where they differ."""
    image_column: str | None = None
    """Image column of an hf: data set; found when not given."""
    label_column: str | None = None
    """Label column of an hf: data set; found when not given."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, and list them, instead of stopping."""


@dataclass(frozen=True)
class Source:
    """A data set as it came.

    train_total counts the training images before any was left out (--limit, unreadable); rows (N,) int64 says which of
    them are in `train`, None: the first N. held_out: whether the test images were taken from the training part, which had no test part beside it.
    """

    name: str
    train: Images
    test: Images | None
    train_total: int
    notes: tuple[str, ...] = ()
    rows: Tensor | None = None
    held_out: bool = False

    @property
    def evaluation(self) -> str | None:
        """Where the test images come from: `given`, or `held out` of the training part; None: there are none."""
        return None if self.test is None else "held out" if self.held_out else "given"


def check_outside(out: Path, dataset: object) -> None:
    """Raise InputError when what is to be written lies among the images of a folder `dataset`, where it would be taken for a class the next time."""
    known = not isinstance(dataset, str | Path) or str(dataset) in NAMES
    root = None if known else Path(str(dataset).removeprefix("hf:")).expanduser()
    if root is not None and root.is_dir() and out.expanduser().resolve().is_relative_to(root.resolve()):
        raise InputError(f"--out {out} lies inside the data set {dataset}, which is not to be changed; give a folder beside it")


def load_source(dataset: str, options: DataOptions) -> Source:
    """Return the data set `dataset`: digits, cifar10, cifar100, hf:NAME_OR_PATH, or a folder.

    Raises InputError when it is unknown, damaged, or has nothing to learn from.
    """
    _check_options(options)
    with tempfile.TemporaryDirectory(prefix="fspmu-", ignore_cleanup_errors=True) as scratch:
        name, train, test = list_parts(dataset, options, Path(scratch))
        return _read_parts(name, train, test, options, known=dataset if dataset in NAMES else "")


def load_unlabelled(path: Path, size: Size | Geometry, skip_unreadable: bool) -> tuple[Tensor, list[str]]:
    """Return every image below a folder, or of one file, as pixels (N, C, H, W) uint8 of that size (H, W), and their absolute paths.

    Raises InputError when there is none or one cannot be read; with `skip_unreadable` a UserWarning names what was left out.
    """
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise InputError(f"{path} does not exist")
    files = RootedPaths(str(path), find_images(path).images) if path.is_dir() else RootedPaths(str(path.parent), [path.name])
    if not files:
        raise InputError(f"{path} holds no image")
    decoded = decode(lambda row: Path(files[row]), files, size, skip_unreadable=skip_unreadable)
    if len(decoded.kept) < len(files):
        warnings.warn(decoded.notes[0], stacklevel=2)
    return decoded.pixels, list(files.subset(decoded.kept.tolist()))


def _check_options(options: DataOptions) -> None:
    for name in ("limit", "test_limit", "size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}, but it must be at least 1")
    if not 0 <= options.test_share < 1:
        raise InputError(f"--test-share is {options.test_share}, but it is a fraction: give a number from 0 to below 1")


def list_parts(dataset: str, options: DataOptions, scratch: Path, *, any_table: bool = False) -> tuple[str, Listing, Listing | None]:
    """Return a name, the training part and the test part, if the data set has one; nothing is decoded.

    `any_table`: a CSV file is a data set too, and a Hub's `metadata.csv` counts in a folder.
    Raises InputError when there is no such data set.
    """
    if dataset == "digits":
        return dataset, _list_digits(), None
    if dataset in NAMES:
        return dataset, *_list_cifar(dataset, options.data_dir, scratch)
    if dataset.startswith("hf:"):
        return dataset, *list_hub(dataset.removeprefix("hf:"), scratch, options.image_column, options.label_column)
    path = Path(dataset).expanduser()
    if path.is_dir():
        return path.resolve().name, *list_folder(path, hub_table=any_table)
    if any_table and path.is_file() and path.suffix.lower() == ".csv":
        path = path.resolve()
        return path.stem, list_table(path, path.parent), None
    if path.exists():
        raise InputError(f"{dataset} is a file; give the folder that holds the images, or hf:PATH for a .parquet file")
    raise InputError(f"no folder and no data set is named {dataset!r}; {suggestion(dataset, [*NAMES, 'hf:NAME_OR_PATH'])}, or a folder")


def _list_digits() -> Listing:
    """List scikit-learn's digits, (8, 8) with values 0 to 16."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    pictures = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    ids = [f"train/{row}" for row in range(len(labels))]
    return Listing(lambda row: pictures[row], torch.from_numpy(labels.astype(np.int64)), tuple("0123456789"), ids)


def _list_cifar(dataset: str, data_dir: Path | None, scratch: Path) -> tuple[Listing, Listing | None]:
    """List CIFAR from a local folder in the Hub's layout, else from the Hub."""
    place = data_dir or (Path(os.environ[DATA_DIR]) if os.environ.get(DATA_DIR) else None)
    folder = place.expanduser() / dataset / "data" if place else None
    test: Listing | None
    if data_dir is not None and folder is not None and not folder.is_dir():
        raise InputError(f"{folder} does not exist; --data-dir names the folder that holds {dataset}/data/*.parquet")
    if folder is not None and folder.is_dir():
        train, test = list_parquet(folder, LABEL_COLUMNS[dataset])
    else:
        looked = f"{folder} does not exist, and" if folder else f"no folder is given with --data-dir or {DATA_DIR}, and"
        try:
            train, test = list_hub(f"uoft-cs/{dataset}", scratch, None, LABEL_COLUMNS[dataset])
        except InputError as error:
            raise InputError(f"{looked} {error}; put {dataset}/data/*.parquet into a folder and name it with --data-dir or {DATA_DIR}") from error
    return _spelt(train), _spelt(test) if test else None


def _spelt(listing: Listing) -> Listing:
    """Return `listing` with the Hub's misspelt CIFAR-100 class put right."""
    return replace(listing, class_names=tuple("crab" if name == "cra" else name for name in listing.class_names))


def _read_parts(name: str, train: Listing, test: Listing | None, options: DataOptions, *, known: str) -> Source:
    """Choose the rows, decode them, and put both parts together; `known` is one of NAMES, empty for a set of one's own, whatever it is called."""
    names = train.class_names
    if len(names) < 2:
        raise InputError(f"{name} has {len(names)} class ({some(names)}); a classifier needs at least 2")
    notes, held_out = list(train.notes), test is None
    if test is None:
        train_rows, test_rows = hold_out(train.labels, options.test_share)
        test = replace(train, ids=[identity.replace("train/", "test/", 1) for identity in train.ids] if train.paths is None else train.ids)
        if len(test_rows):
            notes.append(f"no test part: {len(test_rows):,} of {len(train):,} images held out for evaluation, {options.test_share:.0%} of each class")
        else:
            notes.append("no test part and none held out: nothing is evaluated")
    else:
        test = align(test, names)
        train_rows, test_rows = torch.arange(len(train)), torch.arange(len(test))
        notes += test.notes
    total = len(train_rows)
    _check_classes(train.labels[train_rows], names)
    check_limit(train.labels[train_rows], options.limit, names)
    train_rows = train_rows[: options.limit]
    if options.test_limit is not None and options.test_limit < len(test_rows):
        test_rows = test_rows[torch.arange(options.test_limit) * len(test_rows) // options.test_limit]

    decoded = _decode(train, train_rows, (options.size, options.size) if options.size else known_size(known), options.skip_unreadable)
    images = _images(train, train_rows[decoded.kept], decoded.pixels, Preprocessing())
    if missing := [names[label] for label, count in enumerate(images.class_counts) if not count]:
        raise InputError(f"no readable image for the class {some(missing)}: mend its images or remove the class")
    images = replace(images, preprocessing=preprocess(images.pixels.shape[2:], known, lambda: channel_statistics(decoded.pixels)))
    notes += [f"training part: {note}" for note in decoded.notes]
    test_images = None
    if len(test_rows):
        seen = _decode(test, test_rows, (images.pixels.shape[2], images.pixels.shape[3]), options.skip_unreadable)
        test_images = _images(test, test_rows[seen.kept], seen.pixels, images.preprocessing)
        notes += [f"test part: {note}" for note in seen.notes]
    return Source(name, images, test_images, total, tuple(notes), decoded.kept, held_out)


def hold_out(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return training rows and test rows, both ascending, of labels (N,): `share` of each class is held out, never its last sample."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        count = max(0, min(int(share * len(members) + 0.5), len(members) - 1))
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def _check_classes(labels: Tensor, names: Sequence[str]) -> None:
    """Raise InputError when the labels (N,) lack a class."""
    if absent := [names[label] for label, count in enumerate(torch.bincount(labels, minlength=len(names)).tolist()) if not count]:
        raise InputError(f"no image for the class {some(absent)}: remove the class")


def check_limit(labels: Tensor, limit: int | None, names: Sequence[str]) -> None:
    """Raise InputError when the first `limit` of the labels (N,) lack a class that the others have."""
    if limit is None or limit >= len(labels):
        return
    first = torch.full((len(names),), len(labels)).scatter_reduce(0, labels, torch.arange(len(labels)), "amin")
    present = first < len(labels)
    enough = int(first[present].max()) + 1
    if limit < enough:
        missing = [names[label] for label in (present & (first >= limit)).nonzero().flatten().tolist()]
        raise InputError(f"the first {limit:,} training images have none of the class {some(missing)}; raise --limit to at least {enough:,}, or leave it out")


def _decode(listing: Listing, rows: Tensor, size: Size | None, skip_unreadable: bool) -> Decoded:
    listing = listing.subset(rows)
    return decode(listing.picture, listing.ids, size, skip_unreadable=skip_unreadable)


def _images(listing: Listing, rows: Tensor, pixels: Tensor, preprocessing: Preprocessing) -> Images:
    listing = listing.subset(rows)
    return Images(pixels, listing.labels, listing.class_names, listing.ids, listing.paths, preprocessing)


def known_size(known: str) -> Size | None:
    """Return the size of the images of a data set in NAMES that has one."""
    return (32, 32) if known in LABEL_COLUMNS else None


def preprocess(size: Sequence[int], known: str, statistics: Callable[[], tuple[tuple[float, ...], tuple[float, ...]]]) -> Preprocessing:
    """Return how a model is to see training images of `size` (H, W): published values for CIFAR, else their own mean and deviation."""
    mean, std = NORMALISATION[known] if known in NORMALISATION else statistics()
    return Preprocessing(mean, std, "crop" if known == "digits" else "crop-flip", min(size) // 8)
