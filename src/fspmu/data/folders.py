"""Images in folders: a folder per class, or a table beside the images, with or without a test part.

A table says what belongs to its folder: where there is one at the root, the folders of its rows say the parts.
Links are followed to the files and class folders they name, wherever these lie, as other loaders do; a table's files must lie in its folder.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from fspmu.data.listing import Listing, some
from fspmu.data.tables import FILE_COLUMNS, LABEL_COLUMN, is_table, list_files, list_table
from fspmu.data.unreadable import printable, what_is
from fspmu.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"})
TRAIN_PARTS = ("train", "training")
TEST_PARTS = ("test", "testing", "val", "valid", "validation")
"""Names of the parts, in upper case too; of several the first is taken."""
TABLE = "labels.csv"
HUB_TABLE = "metadata.csv"


@dataclass(frozen=True)
class Found:
    """Files below a folder, by their names relative to it, sorted; odd ones are named like images and are none that could be opened."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)


def list_folder(root: Path, *, hub_table: bool = False) -> tuple[Listing, Listing | None]:
    """Return the training part and the test part, if there is one; ids are relative to `root`.

    With `hub_table` a `metadata.csv` that has labels counts like a `labels.csv`.
    Raises InputError when `root` holds no labelled images, a class without any, or a table that contradicts its folders.
    """
    root = root.resolve()
    folders = [folder.name for folder in _class_folders(root)]
    train, table = _training_folder(root, folders, hub_table), _table_in(root, hub_table)
    notes: tuple[str, ...] = ()
    if table is not None and train is not None and not is_table(table):  # such as a list of the classes
        notes, table = (f"{table.name} lacks the column {FILE_COLUMNS[0]} or {LABEL_COLUMN} and was passed over",), None
    if table is not None:
        listing = list_table(table, root)
        if not _names_parts(listing, table, train, hub_table):
            return listing, None
        listing, test = _split(listing)
        notes = (f"the rows of {table.name} below {_top(test.ids[0])} are the test part",) if test is not None else ()
    elif train is not None:
        listing, test = _list_part(root / train, root, hub_table), None
    else:
        return _list_classes(root, root, empty_classes=False), None
    unlabelled: list[str] = []
    for name in _of_names(folders, TEST_PARTS) if test is None else ():
        if _is_labelled(root / name, hub_table):
            test = _list_part(root / name, root, hub_table, empty_classes=True)
            break
        unlabelled.append(name)
        notes += (f"folder {name} holds no labelled images and was passed over",)
    used = {_top(name) for part in (listing, test) if part is not None for name in part.ids}
    if unused := [name for name in folders if name not in used and name not in unlabelled]:
        notes += (f"folders beside {_top(listing.ids[0])} that were passed over: {some(unused, 5)}",)
    return replace(listing, notes=(*listing.notes, *notes)), test


def is_training_name(name: str, beside: Collection[str]) -> bool:
    """Whether a folder `name` of folders is the training part: spelt otherwise than `train` only beside a test part, or alone; else it is a class."""
    return name == "train" or (name.lower() in TRAIN_PARTS and (not beside or bool(_of_names(beside, TEST_PARTS))))


def _training_folder(root: Path, folders: Collection[str], hub_table: bool) -> str | None:
    for name in _of_names(folders, TRAIN_PARTS):
        if is_training_name(name, [other for other in folders if other != name]) and _is_part(root / name, hub_table):
            return name
    return None


def _of_names(names: Iterable[str], known: tuple[str, ...]) -> list[str]:
    """Return those of `names` that are known in any case, in the order of `known`."""
    return sorted((name for name in names if name.lower() in known), key=lambda name: (known.index(name.lower()), name != name.lower(), name))


def _top(name: str) -> str:
    """Return the folder with which an id begins, or the id of a file that lies in none."""
    return name.split("/", 1)[0]


def _names_parts(listing: Listing, table: Path, train: str | None, hub_table: bool) -> bool:
    """Whether every row of a table at the root lies in the folder of a part, one of them in that of the training part.

    Raises InputError when the folders have labels that the table neither replaces nor leaves alone.
    """
    tops = {_top(name) for name in listing.ids}
    parts = {*_of_names(tops, TRAIN_PARTS), *_of_names(tops, TEST_PARTS)}
    if parts == tops and _of_names(tops, TRAIN_PARTS):
        if inner := [found for name in sorted(tops) if (found := _table_in(table.parent / name, hub_table)) is not None]:
            raise InputError(f"{table} and {inner[0]} both hold labels of the same images; remove or rename one of them")
        return True
    if train is not None:
        beyond = some(sorted(tops - {train}), 5)
        raise InputError(f"{table} names images of {beyond}, and {table.parent / train} is a training part with its own labels; remove or rename one of them")
    return False


def _split(listing: Listing) -> tuple[Listing, Listing | None]:
    """Return the rows that lie in the folder of a training part, and those of the first test part."""
    tops = [_top(name) for name in listing.ids]
    tests = _of_names(set(tops), TEST_PARTS)
    train = _only(listing, [row for row, top in enumerate(tops) if top.lower() in TRAIN_PARTS])
    return train, _only(listing, [row for row, top in enumerate(tops) if top == tests[0]]) if tests else None


def _only(listing: Listing, rows: list[int]) -> Listing:
    """Return the pictures at `rows`, with the classes that are left."""
    part = listing.subset(torch.tensor(rows, dtype=torch.int64))
    present = torch.bincount(part.labels).nonzero().flatten()
    return replace(part, labels=torch.searchsorted(present, part.labels), class_names=tuple(listing.class_names[label] for label in present.tolist()))


def find_images(folder: Path) -> Found:
    """Return what lies below `folder`; hidden files and folders are passed over, and links to folders are not entered."""
    images: list[str] = []
    others: list[str] = []
    odd: list[tuple[str, str]] = []
    named_like_images: list[str] = []
    start = len(os.path.join(folder, ""))

    def note_closed(error: OSError) -> None:
        odd.append((os.fspath(error.filename)[start:], (error.strerror or "cannot be entered").lower()))

    for place, folders, files in os.walk(folder, onerror=note_closed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = os.path.join(place, "")[start:].replace(os.sep, "/")
        named_like_images += [prefix + name for name in folders if _is_image_name(name)]
        for name in files:
            if name.startswith("."):
                continue
            if _is_image_name(name) and os.path.isfile(os.path.join(place, name)):
                images.append(prefix + name)
                continue
            others.append(prefix + name)
            if _is_image_name(name):
                odd.append((prefix + name, what_is(Path(place, name))))
    odd += [(name, "a folder") for name in named_like_images if not any(image.startswith(f"{name}/") for image in images)]
    return Found(sorted(images), sorted(others), sorted(odd))


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_part(folder: Path, hub_table: bool) -> bool:
    """Whether `folder` holds classes or a table; a folder `train` that holds images itself is the class of that name."""
    return _table_in(folder, hub_table) is not None or (folder.is_dir() and bool(_class_folders(folder)) and not _holds_images(folder))


def _is_labelled(folder: Path, hub_table: bool) -> bool:
    return _table_in(folder, hub_table) is not None or any(find_images(each).images for each in _class_folders(folder))


def _table_in(folder: Path, hub_table: bool) -> Path | None:
    if (folder / TABLE).is_file():
        return folder / TABLE
    return folder / HUB_TABLE if hub_table and is_table(folder / HUB_TABLE) else None


def _class_folders(folder: Path) -> list[Path]:
    """Return the folders in `folder`; a link to where it lies itself would be a class of everything."""
    folders = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return sorted((entry for entry in folders if not (entry.is_symlink() and folder.is_relative_to(entry.resolve()))), key=lambda entry: entry.name)


def _holds_images(folder: Path) -> bool:
    return any(_is_image_name(entry.name) and not entry.name.startswith(".") for entry in folder.iterdir())


def _list_part(part: Path, root: Path, hub_table: bool, *, empty_classes: bool = False) -> Listing:
    table = _table_in(part, hub_table)
    return _list_classes(part, root, empty_classes) if table is None else list_table(table, root)


def _list_classes(part: Path, root: Path, empty_classes: bool) -> Listing:
    """List a folder per class: classes sorted by name, images sorted by path."""
    folders = _class_folders(part)
    found = [find_images(folder) for folder in folders]
    if not any(each.images for each in found):
        hint = f"; for a data set of the Hub's layout give hf:{part}" if any(part.rglob("*.parquet")) else ""
        raise InputError(f"{part} holds no folder with images for each class, and no {TABLE}{hint}")
    empty = [folder.name for folder, each in zip(folders, found, strict=True) if not each.images]
    if empty and not empty_classes:
        raise InputError(f"no image in {part} for the class {some(empty)}: remove the folder or fill it")
    prefixes = [folder.relative_to(root).as_posix() + "/" for folder in folders]
    others = [prefix + name for prefix, each in zip(prefixes, found, strict=True) for name in each.others]
    others += [entry.relative_to(root).as_posix() for entry in sorted(part.iterdir()) if entry.is_file() and entry.name[0] != "."]
    notes: tuple[str, ...] = ()
    if others:
        notes = (f"{len(others):,} files that are no image of a class were passed over: {some([printable(name) for name in others], 5)}",)
    ids = [prefix + name for prefix, each in zip(prefixes, found, strict=True) for name in each.images]
    labels = torch.repeat_interleave(torch.arange(len(folders)), torch.tensor([len(each.images) for each in found]))
    listing = list_files(ids, labels, tuple(folder.name for folder in folders), root, notes)
    return replace(listing, odd=tuple((prefix + name, reason) for prefix, each in zip(prefixes, found, strict=True) for name, reason in each.odd))
