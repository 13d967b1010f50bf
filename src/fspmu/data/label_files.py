"""Labels from files that other people made: numbers or class names, one for each image, and never code."""

import csv
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from fspmu.data.listing import some
from fspmu.errors import InputError, suggestion

ALIASES = {
    "aggre": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worse": "worse_label",
    "noisy": "noisy_label",
}
TRUTH = "clean_label"
"""The key under which CIFAR-N files repeat the true labels."""


def read_label_file(path: Path, key: str | None, class_names: Sequence[str]) -> Tensor:
    """Return the labels (M,) int64 in a .npy, .npz, .csv, .json or .pt file.

    Whole numbers are class ids. Strings are all class names, or else all class ids: where classes are named by numbers and every label can be
    both, it is a name. `key` names one of several arrays or columns; CIFAR-N's short names (aggre, random1, worse, noisy) are known.
    Raises InputError when the file cannot be read, holds anything but plain data, names and ids mixed, or a label of no class.
    """
    return _to_labels(_pick(_read_arrays(path), key, path), class_names, path)


def read_stored_truth(path: Path, class_names: Sequence[str]) -> Tensor | None:
    """Return the true labels (M,) that a CIFAR-N file carries along, if it does: they tell in which order it was made."""
    arrays = _read_arrays(path)
    return _to_labels(arrays[TRUTH], class_names, path) if TRUTH in arrays else None


def _read_arrays(path: Path) -> Mapping[str, Any]:
    """Return what a file holds by key; the key of a lone array is empty."""
    if not path.is_file():
        raise InputError(f"label file {path} does not exist")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"label file {path} has the suffix {path.suffix or 'none'}; known: {', '.join(READERS)}")
    try:
        return reader(path)
    except InputError:
        raise
    except Exception as error:  # readers of damaged or hostile files raise nearly anything
        raise InputError(f"label file {path} cannot be read: {next(iter(str(error).splitlines()), type(error).__name__)}") from error


def _by_key(content: Any) -> Mapping[str, Any]:
    return {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else {"": content}


def _read_npy(path: Path) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        return {"": np.lib.format.read_array(file, allow_pickle=False)}


def _read_npz(path: Path) -> Mapping[str, Any]:
    if not zipfile.is_zipfile(path):
        raise InputError(f"label file {path} is no .npz archive")
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _read_json(path: Path) -> Mapping[str, Any]:
    return _by_key(json.loads(path.read_text(encoding="utf-8-sig")))


def _read_csv(path: Path) -> Mapping[str, Any]:
    """Return the columns of a table with a header, or the one column of a list with or without the header `label`."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if not rows:
        return {"": []}
    width = len(rows[0])
    if uneven := next((place for place, row in enumerate(rows) if len(row) != width), None):
        raise InputError(f"label file {path}: row {uneven} has {len(rows[uneven])} columns, the first has {width}")
    if width == 1:
        cells = [row[0].strip() for row in rows]
        return {"": cells[1:] if cells[0].lower() in ("label", "labels") else cells}
    header = [cell.strip() for cell in rows[0]]
    return {name: [row[place].strip() for row in rows[1:]] for place, name in enumerate(header)}


def _read_pt(path: Path) -> Mapping[str, Any]:
    """Read what `torch.save` wrote, if it is tensors, numpy arrays and plain containers: no other name in the file is looked up."""
    # Two spellings of numpy's own module, because files written by numpy 1 name the older one.
    rebuild: Any = np.empty(0).__reduce__()[0]
    scalar: Any = np.int64(0).__reduce__()[0]
    homes = ("numpy.core.multiarray", "numpy._core.multiarray")
    functions = [(function, f"{home}.{name}") for home in homes for function, name in ((rebuild, "_reconstruct"), (scalar, "scalar"))]
    kinds = sorted({type(np.dtype(code)) for code in "?bBhHiIlLqQfdUO"}, key=repr)
    try:
        with torch.serialization.safe_globals([*functions, np.ndarray, np.dtype, *kinds]):
            return _by_key(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(f"label file {path} was not read: it asks for {refused[1]}, and only arrays are allowed in it") from None
        raise


READERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".json": _read_json,
    ".pt": _read_pt,
    ".pth": _read_pt,
}


def _pick(arrays: Mapping[str, Any], key: str | None, path: Path) -> Any:
    """Return the array under `key`, or the one that is clear without it."""
    if list(arrays) == [""]:
        if key is not None:
            raise InputError(f"label file {path} holds one list without keys; leave --label-key out")
        return arrays[""]
    if key is None:
        if "label" in arrays:
            return arrays["label"]
        if len(arrays) == 1:
            return next(iter(arrays.values()))
        raise InputError(f"label file {path} holds several keys; name one with --label-key: {some(list(arrays))}")
    for name in (key, ALIASES.get(key, key)):
        if name in arrays:
            return arrays[name]
    raise InputError(f"label file {path} has no key {key!r}; {suggestion(key, arrays)}")


def _to_labels(values: Any, class_names: Sequence[str], path: Path) -> Tensor:
    """Return values as class ids (M,) int64."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # a ragged list, or a tensor that is no plain array
        raise InputError(f"label file {path}: the labels are no list") from None
    if array.ndim != 1 or not len(array):
        raise InputError(f"label file {path}: the labels have the shape {array.shape}; needed is one for each image, (N,)")
    if array.dtype.kind in "biu":
        wrong = (array < 0) | (array >= len(class_names))
        if wrong.any():
            _refuse(array[wrong.argmax()], int(wrong.argmax()), class_names, path)
        return torch.from_numpy(array.astype(np.int64))
    values = array.tolist()
    places = {name: place for place, name in enumerate(class_names)}
    names = [places.get(value) if isinstance(value, str) else None for value in values]
    ids = [_whole(value, len(class_names)) for value in values]
    for reading in (names, ids):
        if None not in reading:
            return torch.tensor(reading, dtype=torch.int64)
    for row, meanings in enumerate(zip(names, ids, strict=True)):
        if meanings == (None, None):
            _refuse(values[row], row, class_names, path)
    number, name = names.index(None), ids.index(None)
    mixed = f"{values[number]!s:.60} in row {number} is a class id and {values[name]:.60} in row {name} a class name (counted from 0)"
    raise InputError(f"label file {path}: {mixed}; write all labels as names, or all as ids")


def _whole(value: Any, count: int) -> int | None:
    """Return a whole number below `count`, however it is written."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() and 0 <= number < count else None


def _refuse(value: Any, row: int, class_names: Sequence[str], path: Path) -> NoReturn:
    known = f"ids run from 0 to {len(class_names) - 1}, names are {some(class_names)}"
    raise InputError(f"label file {path}: {value!s:.60} in row {row} (counted from 0) is no class; {known}")
