"""Labels in a CSV table beside the images they belong to."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from fspmu.data.listing import Listing, some
from fspmu.data.paths import RootedPaths
from fspmu.errors import InputError

FILE_COLUMNS = ("file_name", "path", "image")
LABEL_COLUMN = "label"


def list_table(table: Path, root: Path) -> Listing:
    """List the rows of `table`, in its order; file names are relative to its folder, ids to `root`, classes sorted as strings.

    Raises InputError when a column or a cell is missing, a file comes twice or lies outside the folder.
    """
    folder = table.parent
    prefix = "" if folder == root else folder.relative_to(root).as_posix() + "/"
    inside = _Inside(folder)
    ids, labels = [], []
    for line, name, label in _rows(table):
        ids.append(prefix + inside(name, f"{table}, line {line}"))
        labels.append(label)
    if not ids:
        raise InputError(f"{table} holds no row")
    if len(set(ids)) < len(ids):
        repeated = [identity.rpartition("/")[2] for identity, count in Counter(ids).items() if count > 1]
        raise InputError(f"{table} names {len(repeated)} files more than once ({some(repeated, 5)}): an image has one label")
    names = tuple(sorted(set(labels)))
    places = {name: place for place, name in enumerate(names)}
    return list_files(ids, torch.tensor([places[label] for label in labels]), names, root, ())


def list_files(ids: list[str], labels: torch.Tensor, class_names: tuple[str, ...], root: Path, notes: tuple[str, ...]) -> Listing:
    """List files below `root`; a path is put together when it is asked for."""
    paths = RootedPaths(str(root), ids)
    return Listing(lambda row: Path(paths[row]), labels, class_names, ids, paths, notes)


def is_table(path: Path) -> bool:
    """Whether `path` is a CSV file with files and labels."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return LABEL_COLUMN in header and not set(FILE_COLUMNS).isdisjoint(header)


def _rows(table: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, file name and label."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            column = next((name for name in FILE_COLUMNS if name in header), None)
            if column is None or LABEL_COLUMN not in header:
                raise InputError(f"{table} needs the columns {FILE_COLUMNS[0]} and {LABEL_COLUMN}, and has {some(header or ['none'])}")
            known: dict[str, str] = {}  # one string for each label, however many rows carry it
            for row in reader:
                name, label = row[column], row[LABEL_COLUMN]
                if not name or not label:
                    raise InputError(f"{table}, line {reader.line_num}: a row needs a file name and a label")
                yield reader.line_num, name, known.setdefault(label, label)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} is no CSV file in UTF-8: {error}") from None
    except OSError as error:
        raise InputError(f"{table} cannot be read: {error.strerror}") from None


class _Inside:
    """Checks that files lie in a folder: a table from elsewhere must not reach others."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._home = folder, folder.resolve()
        self._places: dict[str, bool] = {}

    def __call__(self, name: str, where: str) -> str:
        """Return the name relative to the folder, with single slashes.

        Raises InputError when it leads out, through a link too.
        """
        path = Path(name)
        try:
            if "\0" in name:
                raise ValueError("it holds a NUL")
            full = self._folder / path
            parent = os.fspath(full.parent)
            if parent not in self._places:
                self._places[parent] = self._holds(full.parent)
            leads_out = ".." in path.parts or not self._places[parent] or (full.is_symlink() and not self._holds(full))
            if not leads_out:
                return full.relative_to(self._folder).as_posix()
        except (OSError, RuntimeError, ValueError) as error:  # a NUL, or links in a circle
            raise InputError(f"{where}: {name!r} is no file name ({error})") from None
        raise InputError(f"{where}: {name!r} leads out of {self._folder}; file names are relative to the folder and stay in it")

    def _holds(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._home)
