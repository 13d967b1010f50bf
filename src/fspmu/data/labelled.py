"""The labels of a whole data set by name, with both its parts, before any image is decoded."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fspmu.data.corrected_folder import File
from fspmu.data.folders import TRAIN_PARTS
from fspmu.data.listing import Listing
from fspmu.data.sources import NAMES, DataOptions, list_parts


@dataclass(frozen=True)
class Labelled:
    """Every sample of a data set by the name of its class: the training part, `train` of them, and then the test part as far as there is one."""

    ids: list[str]
    labels: list[str]
    paths: list[str] | None
    train: int
    class_names: tuple[str, ...]
    root: Path | None
    """The folder of a data set in a folder; ids are relative to it."""
    notes: tuple[str, ...] = ()


def list_labelled(dataset: str, options: DataOptions) -> Labelled:
    """Return the samples of `dataset`: whatever `list_parts` lists, a CSV file, or a .parquet file with or without its `hf:`.

    Raises InputError when it is unknown or damaged.
    """
    path = Path(dataset.removeprefix("hf:")).expanduser()
    if dataset not in NAMES and path.suffix.lower() == ".parquet" and path.is_file():
        dataset = f"hf:{path}"
    with tempfile.TemporaryDirectory(prefix="fspmu-", ignore_cleanup_errors=True) as scratch:
        _, train, test = list_parts(dataset, options, Path(scratch), any_table=True)
    if dataset in NAMES or dataset.startswith("hf:"):
        return _join(train, test, None)
    return _join(train, test, path.resolve() if path.is_dir() else path.resolve().parent)


def _join(train: Listing, test: Listing | None, root: Path | None) -> Labelled:
    parts = [train] if test is None else [train, test]
    labels = [part.class_names[label] for part in parts for label in part.labels.tolist()]
    names = (*train.class_names, *(name for name in parts[-1].class_names if name not in train.class_names))
    paths = [path for part in parts for path in part.paths or ()] if root is not None else None
    return Labelled([name for part in parts for name in part.ids], labels, paths, len(train), names, root, tuple(note for part in parts for note in part.notes))


def files_of(found: Labelled, labels: Sequence[str | None]) -> list[File]:
    """Return the files that stay, with their parts: where all of a part lie in a folder of that name, it is one."""
    files = []
    for rows in (range(found.train), range(found.train, len(found.ids))):
        part = _part_of([found.ids[row] for row in rows], TRAIN_PARTS if rows.start == 0 else ())
        for row in rows:
            label, name = labels[row], found.ids[row]
            if label is not None and found.paths is not None:
                files.append(File(found.paths[row], part, name.removeprefix(f"{part}/") if part else name, found.labels[row], label))
    return files


def _part_of(ids: Sequence[str], known: Sequence[str]) -> str:
    """Return the folder that all ids begin with, one of `known` in any case if any are given; empty: there is none."""
    first = {name.split("/")[0] if "/" in name else "" for name in ids}
    part = first.pop() if len(first) == 1 else ""
    return part if not known or part.lower() in known else ""
