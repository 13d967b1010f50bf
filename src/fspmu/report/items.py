"""The images that a page shows, suspects first: what is known of each, and where its picture lies."""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from fspmu.report.panels import rounded, truth_of
from fspmu.report.run_files import RunFiles
from fspmu.results.cells import APART

Json = dict[str, Any]

MOST_SUSPECTS = 5_000
TOP = 5
SURE = 0.9
"""Probability from which a model counts as sure of another class."""
INLINE = 7_000_000
"""Bytes that may be inlined beside the page itself; pictures that would need more stay files beside it."""


def shown_rows(files: RunFiles) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
    """Return which images are items (I,), whether each is counted among the evaluation images (I,), and how many of them are suspects."""
    if files.material:
        return files.tensors["rows"].astype(np.int64), files.tensors["evaluation"].astype(bool), int(files.material["suspects"])
    places = np.flatnonzero(files.issues["is_label_issue"].to_numpy(dtype=bool))
    order = np.argsort(files.issues["label_score"].to_numpy(dtype=float)[places], kind="stable")
    rows = places[order][:MOST_SUSPECTS]
    return rows, np.zeros(len(rows), dtype=bool), len(rows)


def items(files: RunFiles) -> Json:
    """Return the columns of all items; what only the images could tell is empty for a run without material."""
    rows, apart, suspects = shown_rows(files)
    train = rows[~apart]
    table = files.issues.iloc[train]
    before, after = (_opinions(files, name, train) for name in ("before", "after"))
    given = np.concatenate([files.codes("given_label")[train], files.tensors.get("evaluation_given", np.zeros(0, np.int64))])
    predicted = [row[0][0] if row else int(code) for row, code in zip(before, _padded(files.codes("predicted_label")[train], len(rows)), strict=True)]
    sides = [row[0][0] if row else int(label) for row, label in zip(after, given, strict=True)]
    none = [None] * (len(rows) - len(train))
    held = files.labels.get("held_out", np.zeros(len(files.issues), dtype=bool))[train].astype(bool)
    evaluation = held if files.config.get("command") == "repair" else np.zeros_like(held)  # elsewhere the training of the model held them out
    truth = truth_of(files)
    scores = files.split.get("score", np.full(len(files.issues), np.nan))[train]
    columns: Json = {
        "suspects": suspects,
        "suspects_total": int(files.material.get("suspects_total", files.issues["is_label_issue"].sum())),
        "id": table["id"].tolist() + _apart_ids(files),
        "path": table["path"].tolist() + [""] * len(none),
        "given": given.tolist(),
        "predicted": predicted,
        "suggested": files.codes("suggested_label")[train].tolist() + sides[len(train) :],
        "confidence": [row[0][1] if row else None for row in before],
        "noise": [rounded(value) for value in table["noise_probability"]] + none,
        "score": [rounded(value) for value in scores] + none,
        "action": np.where(evaluation, "", table["action"]).tolist() + [""] * len(none),
        "true": None if truth is None else truth[train].tolist() + given[len(train) :].tolist(),
        "before": before,
        "after": after,
        "evaluation": evaluation.tolist() + [True] * len(none),
        "aside": (held & ~evaluation).tolist() + [False] * len(none),
        "map": _places_on_map(files, rows, apart),
        "tile": _tiles(files, len(rows)),
    }
    columns |= _neighbours(files, len(rows), suspects)
    return columns | {"reasons": _reasons(files, columns, table, scores)}


def _padded(values: NDArray[np.int64], count: int) -> list[int]:
    return [*values.tolist(), *[0] * (count - len(values))]


def _apart_ids(files: RunFiles) -> list[str]:
    """Return the ids of evaluation images, told apart from those of training images: whoever reads decisions leaves these aside."""
    return [f"{APART}{identity}" for identity in files.material.get("evaluation_ids", [])]


def _opinions(files: RunFiles, name: str, train: NDArray[np.int64]) -> list[list[list[Any]]]:
    """Return the likeliest classes with their probabilities, (I, up to TOP); empty where no logits are stored."""
    logits = files.predictions.get(f"logits_{name}")
    own = np.zeros((len(train), 0)) if logits is None or len(logits) != len(files.issues) else logits[train]
    parts = [own, files.tensors.get(f"evaluation_logits_{name}", np.zeros((0, 0)))]
    found: list[list[list[Any]]] = []
    for values in parts:
        if not values.shape[1]:
            found += [[] for _ in range(len(values))]
            continue
        chances = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        top = np.argsort(-chances, axis=1, kind="stable")[:, :TOP]
        found += [[[int(k), round(float(line[k]), 4)] for k in order] for line, order in zip(chances, top, strict=True)]
    return found


def _places_on_map(files: RunFiles, rows: NDArray[np.int64], apart: NDArray[np.bool_]) -> list[int]:
    place = {row: at for at, row in enumerate(files.tensors["map_rows"].tolist())} if "map_rows" in files.tensors else {}
    return [-1 if other else place.get(row, -1) for row, other in zip(rows.tolist(), apart.tolist(), strict=True)]


def _tiles(files: RunFiles, count: int) -> list[list[int] | None]:
    found: list[list[int] | None] = []
    for number, sheet in enumerate(files.material.get("sheets", [])):
        side, columns = sheet["tile"], sheet["columns"]
        found += [[number, at % columns * side, at // columns * side] for at in range(sheet["count"])]
    return (found + [None] * count)[:count]


def _neighbours(files: RunFiles, count: int, suspects: int) -> Json:
    near, same = files.tensors.get("near"), files.tensors.get("near_same")
    if near is None or same is None:
        return {"near": [[] for _ in range(count)], "near_same": [None] * count}
    rest = count - suspects
    lines = [[item for item in line if item >= 0] for line in near.tolist()]
    return {"near": lines + [[] for _ in range(rest)], "near_same": [rounded(value) for value in same] + [None] * rest}


def _reasons(files: RunFiles, columns: Json, table: Any, scores: NDArray[Any]) -> list[list[str]]:
    """Return why each suspect looks wrong, in short; nothing for others."""
    said = table["decided"].tolist() if "decided" in table else [""] * len(table)
    threshold = (files.record["detection"].get("mixture") or {}).get("threshold")
    found: list[list[str]] = []
    for item in range(len(columns["id"])):
        if item >= columns["suspects"]:
            found.append([])
            continue
        same, before = columns["near_same"][item], columns["before"][item]
        other = bool(before) and before[0][0] != columns["given"][item]
        marks = {
            f"decided by a person: {said[item]}": bool(said[item]),
            "score above the threshold": threshold is not None and bool(scores[item] > threshold),
            "the model predicts another class": other,
            "the model is sure of another class": other and before[0][1] >= SURE,
            "neighbours have other labels": same is not None and same < 0.5,
            "held out of the repair": columns["evaluation"][item] or columns["aside"][item],
        }
        found.append([words for words, there in marks.items() if there])
    return found


def pictures(files: RunFiles, spent: int, base: Path) -> tuple[list[Json], Json]:
    """Return sheets and larger pictures: in the page itself, where `spent` bytes are already, as long as it stays small; else as files seen from `base`."""
    folder = files.folder / "page"
    sheets, large = files.material.get("sheets", []), files.material.get("large", {})
    inline_sheets = spent + _size(folder, [sheet["file"] for sheet in sheets]) <= INLINE
    spent += _size(folder, [sheet["file"] for sheet in sheets]) if inline_sheets else 0
    inline_large = spent + _size(folder, list(large.values())) <= INLINE
    described = [
        {name: sheet[name] for name in ("width", "height", "tile", "columns")} | {"src": _source(folder / sheet["file"], inline_sheets, base)}
        for sheet in sheets
    ]
    return described, {item: _source(folder / name, inline_large, base) for item, name in sorted(large.items(), key=lambda entry: int(entry[0]))}


def _size(folder: Path, names: Sequence[str]) -> int:
    return sum((folder / name).stat().st_size * 4 // 3 for name in names)


def _source(path: Path, inline: bool, base: Path) -> str:
    return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}" if inline else address_of(path, base)


def address_of(path: Path, base: Path) -> str:
    """Return the relative address of a file for a page in the folder `base`."""
    return quote(os.fsencode(Path(os.path.relpath(path, base)).as_posix()))
