"""Tables that people and other tools make of a data set: read as plain data, and matched with its samples."""

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from fspmu.data.listing import some
from fspmu.errors import InputError, suggestion
from fspmu.results.cells import unprefixed

PATH_COLUMNS = ("path", "file_name")
ROW_COLUMNS = ("", "Unnamed: 0", "index", "row")
"""Names under which an index comes back from a CSV file."""
TRUTHS = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}


@dataclass(frozen=True)
class Samples:
    """What a table is matched with: N unique ids, N paths where there are files, given labels (N,) int64 in [0, K), and K class names."""

    ids: Sequence[str]
    paths: Sequence[str] | None
    given_labels: Tensor
    class_names: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def place_of(self) -> dict[str, int]:
        """The place of a sample by its id."""
        return {identity: place for place, identity in enumerate(self.ids)}

    @cached_property
    def given(self) -> NDArray[np.int64]:
        """The given labels (N,)."""
        return self.given_labels.cpu().numpy()

    @cached_property
    def _place_of_path(self) -> dict[str, int]:
        return {path: place for place, path in enumerate(self.paths or ())}

    def find_path(self, path: str) -> int | None:
        """Return the place of the sample that lies at `path`: as it was listed, relative to the data set, or relative to the working folder."""
        for key in (path, os.path.abspath(path)):
            for places in (self._place_of_path, self.place_of):
                if key in places:
                    return places[key]
        return None


def read_table(path: Path) -> pd.DataFrame:
    """Return the table in a .csv file, every cell as text, or in a .parquet file.

    Raises InputError when it cannot be read, has no row of names, or rows of different lengths.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist" if not path.exists() else f"{path} is no file; give a table of issues or corrections")
    try:
        return _read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path, engine="pyarrow")
    except InputError:
        raise
    except Exception as error:  # readers of damaged or hostile files raise nearly anything
        raise InputError(f"{path} cannot be read: {next(iter(str(error).splitlines()), type(error).__name__)}") from error


def _read_csv(path: Path) -> pd.DataFrame:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [[unprefixed(cell) for cell in row] for row in csv.reader(file) if row]
    if not rows:
        raise InputError(f"{path} is empty; its first row should name its columns")
    header = [cell.strip() for cell in rows[0]]
    if repeated := [name for place, name in enumerate(header) if name in header[:place]]:
        raise InputError(f"{path} names the column {repeated[0]!r} more than once")
    for place, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(f"{path}: row {place} has {len(row)} columns, the first has {len(header)}")
    return pd.DataFrame(rows[1:], columns=pd.Index(header, dtype=object), dtype=object)


def places_of(table: pd.DataFrame, samples: Samples, name: str) -> NDArray[np.int64]:
    """Return which sample each of the M rows of `table` is about, (M,): by id, else by path, else by row number, else by order.

    Row numbers are a column of ROW_COLUMNS or an index other than 0..M-1. Raises InputError for a row that names no sample or one that
    another row names, and for an order of another length; `name` is what messages call the table.
    """
    if table.index.name in ("id", *PATH_COLUMNS) and table.index.name not in table.columns:
        table = table.reset_index()
    columns = table.columns
    paths = next((column for column in PATH_COLUMNS if column in columns and any(map(_text, table[column]))), None)
    numbers = next((column for column in ROW_COLUMNS if column in columns and _whole(table[column])), None)
    if "id" in columns:
        return _found(table["id"], "id", samples.place_of.get, samples, name)
    if paths is not None:
        return _found(table[paths], "path", samples.find_path, samples, name)
    if numbers is not None:
        return check_indices(np.array([int(value) for value in table[numbers]], dtype=np.int64), len(samples), name)
    index = table.index
    if index.dtype.kind in "iu" and not np.array_equal(index, np.arange(len(table))):
        return check_indices(index.to_numpy().astype(np.int64), len(samples), name)
    if len(table) != len(samples):
        raise InputError(
            f"{name} has {len(table):,} rows for {len(samples):,} samples; give it a column id or path, or a row for each sample in the data set's order"
        )
    return np.arange(len(samples), dtype=np.int64)


def check_indices(indices: NDArray[Any], count: int, name: str) -> NDArray[np.int64]:
    """Return indices (M,) as int64.

    Raises InputError unless each is in [0, count) and there once.
    """
    wrong = (indices < 0) | (indices >= count)
    if wrong.any():
        raise InputError(f"{name} has the index {indices[wrong.argmax()]}, but the {count:,} samples are counted from 0 to {count - 1}")
    values, counts = np.unique(indices, return_counts=True)
    if (counts > 1).any():
        both = "; a mask must be of true and false, not of 0 and 1" if len(indices) == count and len(values) == 2 and set(values.tolist()) == {0, 1} else ""
        raise InputError(f"{name} has the index {values[counts.argmax()]} {counts.max()} times; name each sample once{both}")
    return indices.astype(np.int64)


def _found(column: Iterable[Any], kind: str, find: Callable[[str], int | None], samples: Samples, name: str) -> NDArray[np.int64]:
    """Return the places of ids or paths (M,)."""
    places: list[int] = []
    seen: set[int] = set()
    for row, value in enumerate(column):
        place = find(_text(value))
        if place is None:
            known = f"this data set has {kind}s like {some([str(key) for key in (samples.paths if kind == 'path' and samples.paths else samples.ids)[:2]])}"
            raise InputError(f"{name}: row {row} (counted from 0) has the {kind} {_text(value)!r:.120}, which no sample has; {known}")
        if place in seen:
            raise InputError(f"{name} has more than one row for the {kind} {_text(value)!r:.120}; keep one")
        places.append(place)
        seen.add(place)
    return np.array(places, dtype=np.int64)


def find_ids(ids: Iterable[Any], samples: Samples, name: str) -> NDArray[np.int64]:
    """Return the places (M,) of `ids`.

    Raises InputError for an id that no sample has, and for one that is there twice.
    """
    return _found(ids, "id", samples.place_of.get, samples, name)


def _text(value: Any) -> str:
    return "" if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)) else str(value)


def _whole(column: Iterable[Any]) -> bool:
    return all(_text(value).strip().isdecimal() for value in column)


def read_truths(column: Sequence[Any], title: str, name: str) -> NDArray[np.bool_]:
    """Return a column of true and false, yes and no, or 1 and 0, as (M,) bool.

    Raises InputError for anything else.
    """
    truths = [TRUTHS.get(_text(value).strip().lower()) for value in column]
    if None in truths:
        row = truths.index(None)
        raise InputError(f"{name}: row {row} (counted from 0) has {_text(list(column)[row])!r:.60} under {title}, which is neither true nor false")
    return np.array(truths, dtype=np.bool_)


def read_shares(column: Sequence[Any], title: str, name: str, unjudged: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Return a column of fractions (M,), NaN where a cell is empty that may be: what nobody judged, `unjudged` (M,).

    Raises InputError for a cell that is no number from 0 to 1.
    """
    shares: NDArray[np.float64] = pd.to_numeric(pd.Series(list(column), dtype=object), errors="coerce").to_numpy(dtype=np.float64, copy=True)
    wrong = ~((shares >= 0) & (shares <= 1))
    if unjudged is not None:
        wrong &= ~(unjudged & np.array([not _text(value).strip() for value in column], dtype=np.bool_))
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(f"{name}: row {row} (counted from 0) has {_text(list(column)[row])!r:.60} under {title}; it must be a number from 0 to 1, low = bad")
    return shares


@dataclass(frozen=True)
class ClassReader:
    """How a table writes classes: by name, or by number."""

    by_number: bool
    class_names: Sequence[str]
    name: str

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {str(label): place for place, label in enumerate(range(len(self.class_names)) if self.by_number else self.class_names)}

    def find(self, value: Any) -> int | None:
        """Return the class that `value` means, if any."""
        text = _text(value)
        return self._places.get(text, self._places.get(text.removesuffix(".0")) if self.by_number else None)

    def read(self, value: Any, where: str) -> int:
        """Return the class that `value` means.

        Raises InputError that suggests the nearest name.
        """
        found = self.find(value)
        if found is None:
            raise InputError(f"{self.name}: {where} has the class {_text(value)!r:.120}; {_known(_text(value), self.class_names)}")
        return found


def _known(text: str, class_names: Sequence[str]) -> str:
    if len(class_names) <= 20:
        return suggestion(text, class_names)
    near = get_close_matches(text, class_names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {some(class_names)}"


def class_reader(table: pd.DataFrame, places: NDArray[np.int64], samples: Samples, name: str) -> ClassReader:
    """Return how `table`, whose rows are about the samples at `places` (M,), writes classes: the way in which its given labels are ours.

    Raises InputError when they are ours in neither way: the table was then made for other labels.
    """
    readers = [ClassReader(by_number, samples.class_names, name) for by_number in (False, True)]
    column = "given_label"
    if column not in table.columns:
        return readers[0]
    if table[column].dtype.kind in "iu":
        readers.reverse()
    values, ours = list(table[column]), samples.given[places]
    wrongs = [np.array([reader.find(value) != label for value, label in zip(values, ours.tolist(), strict=True)], dtype=np.bool_) for reader in readers]
    best = min((0, 1), key=lambda way: int(wrongs[way].sum()))
    wrong = wrongs[best]
    if wrong.any():
        row = int(wrong.argmax())
        readers[best].read(values[row], f"row {row} (counted from 0)")
        place = int(places[row])
        label = samples.class_names[int(ours[row])]
        raise InputError(
            f"{name} was made for other labels: {int(wrong.sum()):,} of {len(wrong):,} given labels differ, the first of {samples.ids[place]!r:.120},"
            f" {_text(values[row])!r:.60} there and {label!r:.60} here; make the table again from this data set, with classes by name"
        )
    return readers[best]


def as_mask(places: NDArray[np.int64], count: int) -> Tensor:
    """Return the mask (count,) that is set at `places`."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.from_numpy(places)] = True
    return mask
