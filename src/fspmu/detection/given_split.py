"""A forget set that a person or another tool gives: a mask, indices, ids, or a table of issues."""

import csv
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from fspmu.data.corrections import read_decisions
from fspmu.data.issue_tables import (
    TRUTHS,
    Samples,
    as_mask,
    check_indices,
    class_reader,
    find_ids,
    places_of,
    read_shares,
    read_table,
    read_truths,
)
from fspmu.data.listing import some
from fspmu.data.split import Split
from fspmu.errors import DetectionWarning, InputError
from fspmu.results.cells import unprefixed

QUALITIES = ("label_score", "label_quality")
"""Columns with P(clean), in [0, 1], low = bad: Datalab's and ours, and CleanLearning's."""
MARKS = ("forget", "is_label_issue")
LISTS = ("index", "indices", "row", "rows", "mask")
SUFFIXES = (".csv", ".json", ".npy", ".parquet")


def read_forget_set(source: Any, ids: Sequence[str], paths: Sequence[str] | None, given_labels: Tensor, class_names: Sequence[str]) -> Split:
    """Return the split in which the samples that `source` names are forgotten and all others retained; P(clean) is its quality score, else 1 or 0.

    source: a table (DataFrame) of cleanlab's or ours, a mask (N,) bool, indices or ids (M,), or a .csv, .json, .npy or .parquet file with
    one of these. The rows of a table are matched by `id`, else `path`, else index, else order; its given labels have to be ours.
    Warns when nothing is forgotten, or all of a class. Raises InputError for what does not fit these samples, and when nobody is left.
    """
    samples = Samples(ids, paths, given_labels, class_names)
    name = "the forget set"
    if isinstance(source, str | Path):
        name = f"forget set {source}"
        source = _read_file(Path(source).expanduser(), name)
    if isinstance(source, pd.Series) and pd.api.types.is_bool_dtype(source):
        source = source.to_frame("is_label_issue")
    split = _split_by_table(source, samples, name) if isinstance(source, pd.DataFrame) else _split_by_list(source, samples, name)
    _check(split, samples, name)
    return split


def _read_file(path: Path, name: str) -> Any:
    """Return what a file holds: a table, or a list."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{name} has the suffix {suffix or 'none'}; known: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{name} {'is no file' if path.exists() else 'does not exist'}")
    if suffix in (".csv", ".parquet"):
        column = _lone_column(path) if suffix == ".csv" else None
        return read_table(path) if column is None else column
    try:
        if suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8-sig"))
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # readers of damaged or hostile files raise nearly anything
        raise InputError(f"{name} cannot be read: {next(iter(str(error).splitlines()), type(error).__name__)}") from error


def _lone_column(path: Path) -> list[Any] | None:
    """Return the values of a .csv file with one column of row numbers, or of true and false; None: it is a table."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"forget set {path} is no CSV file in UTF-8: {error}") from None
    cells = [row[0].strip() for row in rows]
    if not rows or any(len(row) != 1 for row in rows) or cells[0] in ("id", *MARKS):
        return None
    if cells[0].lower() in LISTS:
        del cells[0]
    if all(cell.isdecimal() for cell in cells):
        return [int(cell) for cell in cells]
    if all(cell.lower() in TRUTHS for cell in cells):
        return [TRUTHS[cell.lower()] for cell in cells]
    odd = next(cell for cell in cells if not cell.isdecimal())
    raise InputError(f"forget set {path} has the one column of {unprefixed(odd)!r:.60}; needed are row numbers, true and false, or ids under the name id")


def _split_by_list(source: Any, samples: Samples, name: str) -> Split:
    """Return the split of a mask (N,) bool, of indices (M,), or of ids (M,)."""
    values = _as_array(source, name)
    if values.ndim != 1:
        raise InputError(f"{name} has the shape {values.shape}; needed is a mask ({len(samples)},) or a list of indices or ids")
    if values.dtype.kind == "b":
        if len(values) != len(samples):
            raise InputError(f"{name} is a mask of {len(values):,} for {len(samples):,} samples; give one entry for each, or indices or ids")
        forget = torch.from_numpy(values.copy())
    elif not len(values):
        forget = torch.zeros(len(samples), dtype=torch.bool)
    elif values.dtype.kind in "iu":
        forget = as_mask(check_indices(values, len(samples), name), len(samples))
    elif values.dtype.kind == "U":
        forget = as_mask(find_ids(values.tolist(), samples, name), len(samples))
    else:
        raise InputError(f"{name} holds {values.dtype} values; needed are true and false, whole numbers or ids")
    return Split(~forget, forget, (~forget).double())


def _as_array(source: Any, name: str) -> NDArray[Any]:
    """Return a list of one kind as an array."""
    if isinstance(source, Tensor):
        return source.detach().cpu().numpy()
    if isinstance(source, np.ndarray) and source.dtype.kind != "O":
        return source
    if not isinstance(source, list | tuple | set | frozenset | range | np.ndarray | pd.Series | pd.Index):
        raise InputError(f"{name} is of type {type(source).__name__}; give a table, a mask, a list of indices or ids, or a file with one of these")
    items = list(source)
    for kinds, dtype in (((bool, np.bool_), np.bool_), ((int, np.integer), np.int64), ((str,), np.str_)):
        if items and all(isinstance(item, kinds) and isinstance(item, bool | np.bool_) == (dtype is np.bool_) for item in items):
            try:
                return np.array(items, dtype=dtype)
            except OverflowError:
                raise InputError(f"{name} has the index {max(items, key=abs)}, which no data set reaches") from None
    if items:
        kinds_found = some(sorted({type(item).__name__ for item in items}))
        raise InputError(f"{name} is a list of {kinds_found}; needed are only true and false, only whole numbers, or only ids")
    return np.array([], dtype=np.int64)


def _split_by_table(table: pd.DataFrame, samples: Samples, name: str) -> Split:
    """Return the split of a table: what it does not name is retained."""
    columns = [str(column) for column in table.columns]
    if "decision" in columns:
        return _split_by_decisions(table, samples, name)
    mark = next((column for column in MARKS if column in columns), None)
    if mark is None and columns != ["id"]:
        raise InputError(f"{name} needs a column {' or '.join(MARKS)}, a column decision, or the column id alone, and has {some(columns) or 'none'}")
    places = places_of(table, samples, name)
    marked = np.ones(len(table), dtype=np.bool_) if mark is None else read_truths(list(table[mark]), mark, name)
    class_reader(table, places, samples, name)  # for its check of the given labels
    forget = as_mask(places[marked], len(samples))
    retain = ~forget
    if mark == "forget" and "retain" in columns:  # ours, where a sample may be in both or in neither
        retain = ~as_mask(places[~read_truths(list(table["retain"]), "retain", name)], len(samples))
    clean = (~forget).double()
    quality = next((column for column in QUALITIES if column in columns), None)
    if quality is not None:
        neither = (~forget & ~retain)[torch.from_numpy(places)].numpy()
        clean[torch.from_numpy(places)] = torch.from_numpy(read_shares(list(table[quality]), quality, name, unjudged=neither))
    return Split(retain, forget, clean)


def _split_by_decisions(table: pd.DataFrame, samples: Samples, name: str) -> Split:
    """Return the split of a person's decisions: what was wrong or is dropped is forgotten, what stayed unsure is neither forgotten nor retained."""
    decisions = {correction.row: correction.decision for correction in read_decisions(table, samples, name)}
    forget = as_mask(np.array([row for row, said in decisions.items() if said in ("accept", "drop")], dtype=np.int64), len(samples))
    unsure = as_mask(np.array([row for row, said in decisions.items() if said == "unsure"], dtype=np.int64), len(samples))
    clean = (~forget).double()
    clean[unsure] = 0.5
    return Split(~forget & ~unsure, forget, clean)


def _check(split: Split, samples: Samples, name: str) -> None:
    """Raise InputError when nobody is left to learn from; warn of a class without anybody, and of nothing to forget."""
    if int(split.retain.sum()) < 2:
        raise InputError(f"{name} leaves {int(split.retain.sum())} of {len(samples):,} samples to learn from; a repair needs labels to keep")
    if not bool(split.forget.any()):
        warnings.warn(f"{name} is empty: nothing will be forgotten", DetectionWarning, stacklevel=3)
        return
    given = samples.given_labels.cpu()
    before, after = torch.bincount(given, minlength=1), torch.bincount(given[split.retain], minlength=int(given.max()) + 1)
    if lost := [samples.class_names[label] for label in ((before > 0) & (after == 0)).nonzero().flatten().tolist()]:
        warnings.warn(f"{name} leaves no sample of the class {some(lost)}: the network will unlearn the class itself", DetectionWarning, stacklevel=3)
