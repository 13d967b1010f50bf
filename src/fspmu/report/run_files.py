"""The files of a run as a page needs them: read as plain data, what is missing told apart from what is damaged."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fspmu.errors import InputError
from fspmu.results.cells import unprefixed
from fspmu.results.record import check_schema
from fspmu.results.store import read_json, read_lines

Json = dict[str, Any]
Tensors = Mapping[str, NDArray[Any]]

TEXT = ("given_label", "predicted_label", "suggested_label", "action", "path", "id", "decided")


@dataclass(frozen=True)
class RunFiles:
    """What lies in the folder of a repair. `material` and `tensors` are of its folder `page`; empty where a run has none."""

    folder: Path
    identity: str
    config: Json
    record: Json
    issues: pd.DataFrame
    split: Tensors
    labels: Tensors
    predictions: Tensors
    metrics: list[Json]
    material: Json
    tensors: Tensors

    @property
    def classes(self) -> list[str]:
        """The K class names."""
        return list(self.record["data"]["classes"])

    def codes(self, column: str) -> NDArray[np.int64]:
        """Return a column of class names as places among the classes, (N,)."""
        places = {name: place for place, name in enumerate(self.classes)}
        found = self.issues[column].map(places)
        if found.isna().any():
            odd = self.issues[column][found.isna()].iloc[0]
            raise InputError(f"{self.folder / 'label_issues.csv'} has {odd!r:.60} under {column}, which is no class of this run; repair it again")
        codes: NDArray[np.int64] = found.to_numpy(dtype=np.int64)
        return codes


def read_run(folder: Path) -> RunFiles:
    """Return the files of a finished repair.

    Raises InputError for a folder that holds none, is not finished, or is damaged.
    """
    folder = folder.expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no run folder (no config.json); give one of `fspmu unlearn`, `fspmu repair` or `fspmu demo`")
    stored = read_json(folder / "config.json")
    check_schema(stored, folder / "config.json")
    if not (folder / "done").exists():
        raise InputError(f"{folder} is not finished; run the command that made it again with --resume")
    if not (folder / "label_issues.csv").is_file() or not (folder / "record.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/label_issues.csv"))
        hint = f"; it holds repairs in {', '.join(inside)}: give one of these" if inside else "; give the folder of `fspmu unlearn` or `fspmu repair`"
        raise InputError(f"{folder} holds no repair (no label_issues.csv){hint}")
    record = read_json(folder / "record.json")
    check_schema(record, folder / "record.json")
    try:
        material = read_json(folder / "page" / "material.json") if (folder / "page" / "material.json").exists() else {}
        found = RunFiles(
            folder,
            str(stored["hash"]),
            stored["config"],
            record,
            read_issues(folder / "label_issues.csv"),
            _tensors(folder / "split.safetensors"),
            _tensors(folder / "labels.safetensors"),
            _tensors(folder / "predictions.safetensors"),
            read_lines(folder / "metrics.jsonl"),
            material,
            _tensors(folder / "page" / "material.safetensors") if material else {},
        )
        if len(found.issues) != record["data"]["train"]:
            raise InputError(f"{folder} is damaged: label_issues.csv has {len(found.issues):,} rows for {record['data']['train']:,} images; repair it again")
        return found
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} is damaged: {type(error).__name__} {error} in its files; make it again") from None


def read_issues(path: Path) -> pd.DataFrame:
    """Read the table that `write_issues` wrote: names and ids as text, whatever they look like.

    Raises InputError when it is no such table.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            there = next(csv.reader(file), [])
        read = {"keep_default_na": False, "na_values": {"label_score": [""], "noise_probability": [""]}}
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), **read)
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {next(iter(str(error).splitlines()), '')}") from None
    for name in TEXT:
        if name in there:
            table[name] = [unprefixed(cell) for cell in table[name]]
    return table


def _tensors(path: Path) -> Tensors:
    if not path.exists():
        return {}
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is no safetensors file: {error}") from None
