"""Images in folders: a folder per class, or a table beside the images, with or without a test part.

Links are followed to the files and class folders they name, wherever these lie, as other loaders do; a table's files must lie in its folder.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from fspmu.data.listing import Listing, some
from fspmu.data.tables import is_table, list_files, list_table
from fspmu.data.unreadable import printable, what_is
from fspmu.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"})
TEST_PARTS = ("test", "val", "valid", "validation")
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
    Raises InputError when `root` holds no labelled images, or a class without any.
    """
    root = root.resolve()
    train = root / "train"
    if not _is_part(train, hub_table):
        return _list_part(root, root, hub_table), None
    tests = [name for name in TEST_PARTS if (root / name).is_dir()]
    listing = _list_part(train, root, hub_table)
    if unused := [folder.name for folder in _class_folders(root) if folder.name not in ("train", *tests[:1])]:
        listing = replace(listing, notes=(*listing.notes, f"folders beside train that were passed over: {some(unused, 5)}"))
    return listing, _list_part(root / tests[0], root, hub_table, empty_classes=True) if tests else None


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
