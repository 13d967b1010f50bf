"""Image data sets of the Hugging Face Hub's kind: through `datasets`, or straight from the parquet files of a local copy."""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from fspmu.data.decoding import Picture
from fspmu.data.listing import Listing, some
from fspmu.errors import InputError, suggestion

TEST_SPLITS = ("test", "validation", "valid", "val")


class ParquetPictures:
    """The image column of some parquet files by row; a row group is read when one of its rows is asked for."""

    def __init__(self, files: Sequence[Path], column: str) -> None:
        import pyarrow.parquet as pq

        self._column, self._lock = column, Lock()
        self._groups: list[tuple[Path, int]] = []
        self._starts: list[int] = [0]
        self._read: dict[int, list[Any]] = {}
        for file in files:
            metadata = pq.read_metadata(file)
            for group in range(metadata.num_row_groups):
                self._groups.append((file, group))
                self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)

    def __call__(self, row: int) -> Picture:
        """Return the content of the image file in `row`."""
        import pyarrow.parquet as pq

        group = bisect_right(self._starts, row) - 1
        with self._lock:
            if group not in self._read:
                file, number = self._groups[group]
                self._read[group] = pq.ParquetFile(file).read_row_group(number, columns=[self._column])[self._column].to_pylist()
        return _content(self._read[group][row - self._starts[group]])


class HubPictures:
    """The image column of a split, undecoded, by row."""

    def __init__(self, split: Any, column: str) -> None:
        import datasets

        self._split, self._column = split.select_columns([column]).cast_column(column, datasets.Image(decode=False)), column

    def __call__(self, row: int) -> Picture:
        """Return the image file of `row`, or its content."""
        return _content(self._split[row][self._column])


def _content(cell: Any) -> Picture:
    """Return the bytes of an image cell, else the file it names."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or (Path(cell["path"]) if cell.get("path") else None)
    if not isinstance(cell, bytes | Path):
        raise ValueError("no image in this row")
    return cell


def list_parquet(folder: Path, label_column: str) -> tuple[Listing, Listing]:
    """Return the train and test part of a local copy in the Hub's layout, `train-*.parquet` and `test-*.parquet`, in row order.

    Raises InputError when files or columns are missing.
    """
    return _list_files(folder, "train", label_column), _list_files(folder, "test", label_column)


def _list_files(folder: Path, part: str, label_column: str) -> Listing:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.glob(f"{part}-*.parquet"))
    if not files:
        raise InputError(f"{folder} holds no {part}-*.parquet")
    try:
        schema = pq.read_schema(files[0])
        if not {"img", label_column} <= set(schema.names):
            raise InputError(f"{files[0]} needs the columns img and {label_column}, and has {some(schema.names)}")
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get(label_column, {}).get("names")
        if not names:
            raise InputError(f"{files[0]} does not say the names of its classes")
        labels = [label for file in files for label in pq.read_table(file, columns=[label_column])[label_column].to_pylist()]
        pictures = ParquetPictures(files, "img")
    except (pa.ArrowException, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} cannot be read: {error}") from None
    return Listing(pictures, _class_ids(labels, len(names), f"{part} of {folder}"), tuple(names), _ids(part, len(labels)))


def _ids(part: str, count: int) -> list[str]:
    return [f"{part}/{row}" for row in range(count)]


def _class_ids(labels: Sequence[Any], count: int, where: str) -> torch.Tensor:
    """Return ClassLabel values as (N,) int64.

    Raises InputError for a row without a label.
    """
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < count:
            raise InputError(f"{where}: row {row} has the label {label}, which is none of the {count} classes")
    return torch.tensor(labels, dtype=torch.int64)


def list_hub(name: str, scratch: Path, image_column: str | None, label_column: str | None) -> tuple[Listing, Listing | None]:
    """Return the train part and the test part, if any, of what `datasets.load_dataset(name)` finds.

    A local path is prepared below `scratch`, so that nothing of it stays anywhere else.
    Raises InputError when it cannot be loaded or its columns are not clear.
    """
    return list_splits(name, load_splits(name, scratch), image_column, label_column)


def list_splits(name: str, splits: Mapping[str, Any], image_column: str | None, label_column: str | None) -> tuple[Listing, Listing | None]:
    """Return the train part and the test part, if any, of splits of the kind that `datasets` makes; messages call them `name`.

    Raises InputError when there is nothing to train on or the columns are not clear.
    """
    splits = {part: split.with_format(None) for part, split in splits.items()}  # whatever its owner wanted to see
    train_name = "train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None
    if train_name is None:
        raise InputError(f"{name} has no split named train; its splits: {some(sorted(splits))}")
    train = splits[train_name]
    image = _image_column(name, train.features, image_column)
    label = _label_column(name, train.features, label_column, image)
    listing = _list_split(train, "train", image, label)
    for test_name in TEST_SPLITS:
        if test_name != train_name and test_name in splits:
            if image not in splits[test_name].features or not _labelled(splits[test_name], label):
                note = f"split {test_name} has rows without a label and was passed over"
                listing = replace(listing, notes=(*listing.notes, note))
                continue
            return listing, _list_split(splits[test_name], "test", image, label)
    return listing, None


def load_splits(name: str, scratch: Path) -> Mapping[str, Any]:
    """Return the splits of `name`, a parquet file, a folder or a data set of the Hub; what is prepared lies below `scratch` for local ones.

    Raises InputError when it cannot be loaded.
    """
    import datasets

    path = Path(name).expanduser()
    try:
        if path.is_file() and path.suffix.lower() == ".parquet":
            return dict(datasets.load_dataset("parquet", data_files={"train": str(path)}, cache_dir=str(scratch)))
        if path.exists():
            return dict(datasets.load_dataset(str(path.resolve()), cache_dir=str(scratch)))
        return dict(datasets.load_dataset(name))
    except Exception as error:  # the library passes on what networks, parsers and file systems raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"cannot load the data set {name}: {reason}") from error


def _image_column(name: str, features: Mapping[str, Any], given: str | None) -> str:
    import datasets

    if given is not None:
        if given not in features:
            raise InputError(f"{name} has no column {given!r} (--image-column); {suggestion(given, features)}")
        return given
    found = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    found = found or [column for column, feature in features.items() if isinstance(feature, dict) and {"bytes", "path"} <= set(feature)]
    if len(found) != 1:
        raise InputError(f"{name} has {len(found) or 'no'} image columns; name one with --image-column. Its columns: {some(list(features))}")
    return found[0]


def _label_column(name: str, features: Mapping[str, Any], given: str | None, image: str) -> str:
    import datasets

    if given is not None:
        if given not in features:
            raise InputError(f"{name} has no column {given!r} (--label-column); {suggestion(given, features)}")
        return given
    found = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    found = found or [column for column, feature in features.items() if column != image and is_plain(feature)]
    if len(found) > 1:
        found = [column for column in found if column in ("label", "labels")]
    if len(found) != 1:
        raise InputError(f"the label column of {name} is not clear; name it with --label-column. Its columns: {some(list(features))}")
    return found[0]


def is_plain(feature: Any) -> bool:
    """Whether a column holds whole numbers or strings."""
    kind = str(getattr(feature, "dtype", ""))
    return kind.lstrip("u").startswith("int") or kind in ("string", "large_string", "bool")


def _labelled(split: Any, label: str) -> bool:
    """Whether every row has a label: the Hub marks a hidden class with -1."""
    import datasets

    if label not in split.features:
        return False
    hidden = (None, -1) if isinstance(split.features[label], datasets.ClassLabel) else (None,)
    return not any(value in hidden for value in _column(split, label))


def _column(split: Any, name: str) -> list[Any]:
    values: list[Any] = split.select_columns([name])[:][name]
    return values


def _list_split(split: Any, part: str, image: str, label: str) -> Listing:
    """List a split; a class that no row carries is left out, because nobody can remove it from another's data set."""
    import datasets

    values, feature = _column(split, label), split.features[label]
    if isinstance(feature, datasets.ClassLabel):
        ids = _class_ids(values, feature.num_classes, f"split {part}")
        counts = torch.bincount(ids, minlength=feature.num_classes).tolist()
        present = [label_id for label_id, count in enumerate(counts) if count]
        names = tuple(feature.names[label_id] for label_id in present)
        unused = [name for name, count in zip(feature.names, counts, strict=True) if not count]
    else:
        if not is_plain(feature) or any(value is None for value in values):
            raise InputError(f"column {label!r} must hold a whole number, a string or a class in every row to be the label")
        present, unused = sorted(set(values)), []
        names = tuple(str(value) for value in present)
    places = {value: place for place, value in enumerate(present)}
    labels = torch.tensor([places[value] for value in values], dtype=torch.int64)
    notes = (f"classes without an image, left out: {some(unused)}",) if unused and part == "train" else ()
    return Listing(HubPictures(split, image), labels, names, _ids(part, len(values)), notes=notes)
