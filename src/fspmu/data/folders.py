"""Images in folders: a folder per class, or a `labels.csv` beside the images, with or without a test part."""

import csv
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from fspmu.data.decoding import printable
from fspmu.data.listing import Listing, some
from fspmu.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"})
TEST_PARTS = ("test", "val", "valid", "validation")
TABLE = "labels.csv"


def list_folder(root: Path) -> tuple[Listing, Listing | None]:
    """Return the training part and the test part, if there is one; ids are relative to `root`.

    Raises InputError when `root` holds no labelled images, or a class without any.
    """
    root = root.resolve()
    train = root / "train"
    if not _is_part(train):
        return _list_part(root, root), None
    tests = [name for name in TEST_PARTS if (root / name).is_dir()]
    listing = _list_part(train, root)
    if unused := [folder.name for folder in _class_folders(root) if folder.name not in ("train", *tests[:1])]:
        listing = replace(listing, notes=(*listing.notes, f"folders beside train that were passed over: {some(unused, 5)}"))
    return listing, _list_part(root / tests[0], root, empty_classes=True) if tests else None


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return every image file below `folder` and every other file, both sorted; hidden ones are passed over."""
    images: list[Path] = []
    others: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                path = Path(place, name)
                (images if path.suffix.lower() in SUFFIXES and path.is_file() else others).append(path)
    return sorted(images, key=Path.as_posix), sorted(others, key=Path.as_posix)


def _is_part(folder: Path) -> bool:
    """Whether `folder` holds classes or a table; a folder `train` that holds images itself is the class of that name."""
    return (folder / TABLE).is_file() or (folder.is_dir() and bool(_class_folders(folder)) and not _holds_images(folder))


def _class_folders(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")), key=lambda entry: entry.name)


def _holds_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") for entry in folder.iterdir())


def _list_part(part: Path, root: Path, *, empty_classes: bool = False) -> Listing:
    return _list_table(part, root) if (part / TABLE).is_file() else _list_classes(part, root, empty_classes)


def _list_classes(part: Path, root: Path, empty_classes: bool) -> Listing:
    """List a folder per class: classes sorted by name, images sorted by path."""
    folders = _class_folders(part)
    found = [find_images(folder) for folder in folders]
    if not any(images for images, _ in found):
        hint = f"; for a data set of the Hub's layout give hf:{part}" if any(part.rglob("*.parquet")) else ""
        raise InputError(f"{part} holds no folder with images for each class, and no {TABLE}{hint}")
    empty = [folder.name for folder, (images, _) in zip(folders, found, strict=True) if not images]
    if empty and not empty_classes:
        raise InputError(f"no image in {part} for the class {some(empty)}: remove the folder or fill it")
    others = [path for _, rest in found for path in rest] + [entry for entry in sorted(part.iterdir()) if entry.is_file() and entry.name[0] != "."]
    notes: tuple[str, ...] = ()
    if others:
        names = some([printable(path.relative_to(root).as_posix()) for path in others], 5)
        notes = (f"{len(others):,} files that are no image of a class were passed over: {names}",)
    images = [(path, label) for label, (paths, _) in enumerate(found) for path in paths]
    return _listing([path for path, _ in images], [label for _, label in images], tuple(folder.name for folder in folders), root, notes)


def _list_table(part: Path, root: Path) -> Listing:
    """List the rows of `labels.csv`, in its order; classes sorted as strings."""
    table = part / TABLE
    paths, labels = [], []
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"file_name", "label"} <= set(reader.fieldnames or ()):
                raise InputError(f"{table} needs the columns file_name and label, and has {some(reader.fieldnames or ['none'])}")
            for row in reader:
                name, label = row["file_name"], row["label"]
                if not name or not label:
                    raise InputError(f"{table}, line {reader.line_num}: a row needs a file name and a label")
                paths.append(_inside(part, name, f"{table}, line {reader.line_num}"))
                labels.append(label)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} is no CSV file in UTF-8: {error}") from None
    if not paths:
        raise InputError(f"{table} holds no row")
    if repeated := [path.name for path, count in Counter(paths).items() if count > 1]:
        raise InputError(f"{table} names {len(repeated)} files more than once ({some(repeated, 5)}): an image has one label")
    names = tuple(sorted(set(labels)))
    places = {name: place for place, name in enumerate(names)}
    return _listing(paths, [places[label] for label in labels], names, root, ())


def _inside(folder: Path, name: str, where: str) -> Path:
    """Return the file `name` of `folder`.

    Raises InputError when it leads out of the folder: a table from elsewhere must not reach other files.
    """
    try:
        leads_out = ".." in Path(name).parts or not (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, or a NUL
        raise InputError(f"{where}: {name!r} is no file name ({error})") from None
    if leads_out:
        raise InputError(f"{where}: {name!r} leads out of {folder}; file names are relative to the folder and stay in it")
    return folder / name


def _listing(paths: list[Path], labels: list[int], class_names: tuple[str, ...], root: Path, notes: tuple[str, ...]) -> Listing:
    ids = [path.relative_to(root).as_posix() for path in paths]
    return Listing(paths.__getitem__, torch.tensor(labels, dtype=torch.int64), class_names, ids, [str(path) for path in paths], notes)
