"""The panels of a page that need numbers alone: classes, matrix, scores, curves, audit, map."""

import base64
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fspmu.report.run_files import RunFiles

Json = dict[str, Any]

MOST_BINS = 512
OTHER = ("lr", "seconds", "learning_rate")
"""Figures of an epoch that are neither accuracy nor part of a loss."""
POLARITY = "high = looks wrong"


def rounded(value: Any) -> float | None:
    """Return a number to 6 significant digits, whatever its scale; None for what is none or not finite."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")


def class_rows(files: RunFiles) -> list[Json]:
    """Return how many labels of each class look wrong, where they should go and come from, and how much is predicted right on evaluation images."""
    given, suggested = files.codes("given_label"), files.codes("suggested_label")
    issue = _issue(files)
    classes = len(files.classes)
    flow = np.zeros((classes, classes), np.int64)
    np.add.at(flow, (given[issue], suggested[issue]), 1)
    np.fill_diagonal(flow, 0)
    counts, issues = np.bincount(given, minlength=classes), np.bincount(given[issue], minlength=classes)
    shares = {name: _accuracy(files, name, classes) for name in ("before", "after")}
    rows = []
    for k in range(classes):
        row: Json = {"count": int(counts[k]), "issues": int(issues[k]), "out": _largest(flow[k]), "in": _largest(flow[:, k])}
        rows.append(row | {name: rounded(values[k]) for name, values in shares.items()})
    return rows


def _largest(flow: NDArray[np.int64]) -> list[list[int]]:
    order = np.argsort(-flow, kind="stable")[:3]
    return [[int(k), int(flow[k])] for k in order if flow[k]]


def _accuracy(files: RunFiles, name: str, classes: int) -> NDArray[np.float64]:
    """Return the share (K,) of the evaluation images of each class that are predicted right; NaN where nobody can tell."""
    total, right = (files.tensors.get(f"class_{part}") for part in ("total", f"right_{name}"))
    if total is None or right is None:
        return np.full(classes, np.nan)
    share: NDArray[np.float64] = np.where(total > 0, right / np.maximum(total, 1), np.nan)
    return share


def matrix(files: RunFiles) -> list[list[int]]:
    """Return [given, suggested, how many] of the issues, those that are there."""
    issue, classes = _issue(files), len(files.classes)
    pairs = files.codes("given_label")[issue] * classes + files.codes("suggested_label")[issue]
    cells, counts = np.unique(pairs, return_counts=True)
    return [[int(cell) // classes, int(cell) % classes, int(count)] for cell, count in zip(cells, counts, strict=True)]


def _issue(files: RunFiles) -> NDArray[np.bool_]:
    issue: NDArray[np.bool_] = files.issues["is_label_issue"].to_numpy(dtype=bool)
    return issue


def truth_of(files: RunFiles) -> NDArray[np.int64] | None:
    """Return the true labels (N,) where an experiment knows them."""
    return files.labels.get("true")


def scores(files: RunFiles) -> Json:
    """Return the histogram of the scores with the mixture that was fitted to them, and the threshold between clean and suspect."""
    score = files.split.get("score", np.zeros(0)).astype(np.float64)
    noise = 1 - files.split.get("clean_probability", np.zeros(0)).astype(np.float64)
    fitted = files.record["detection"].get("mixture") or {}
    seen = np.isfinite(score) & np.isfinite(noise)
    axis = fitted.get("axis") or f"score of the detector {files.record['detection']['detector']}"
    empty: Json = {"polarity": POLARITY, "axis": axis, "edges": [], "counts": [], "wrong": None, "curves": [], "threshold": 0.0, "noise_at": [], "total": 0}
    if not seen.any():
        return empty
    edges, place = bins_of(score[seen])
    counts = np.bincount(place, minlength=len(edges) - 1)
    truth = truth_of(files)
    wrong = None if truth is None else np.bincount(place[(truth != files.labels["given"])[seen]], minlength=len(counts)).tolist()
    threshold = fitted.get("threshold")
    if threshold is None:
        threshold = threshold_between(score[seen], _issue(files)[seen])
    curves = [{**part, **{name: rounded(part[name]) for name in ("weight", "mean", "sd")}} for part in fitted.get("components", [])]
    return empty | {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "wrong": wrong,
        "curves": curves,
        "threshold": rounded(threshold),
        "noise_at": [rounded(value) for value in noise_at(edges, score[seen], noise[seen])],
        "total": int(seen.sum()),
    }


def bins_of(score: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the edges (B + 1,) of at most MOST_BINS bins of one width, ascending to 6 digits, and the bin (N,) of each finite score: none falls outside."""
    low, high = float(score.min()), float(score.max())
    count = int(np.clip(2 * np.sqrt(len(score)), 1, MOST_BINS))
    if high - low <= max(1e-30, 1e-5 * max(abs(low), abs(high))):
        middle = (low + high) / 2
        return np.array([middle - 0.5, middle + 0.5]), np.zeros(len(score), dtype=np.int64)
    edges = np.linspace(low, high, count + 1)
    digits = 6 - int(np.floor(np.log10(high - low)))
    edges = np.unique(np.round(edges, digits))
    place = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, len(edges) - 2)
    return edges, place.astype(np.int64)


def noise_at(edges: NDArray[np.float64], score: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the noise probability in the middle of each bin, between those of the nearest samples (N,)."""
    order = np.argsort(score, kind="stable")
    middle = (edges[1:] + edges[:-1]) / 2
    return np.asarray(np.interp(middle, score[order], noise[order]), dtype=np.float64)


def threshold_between(score: NDArray[np.float64], issue: NDArray[np.bool_]) -> float:
    """Return the score above which most samples are issues (N,): the one that disagrees with the fewest of them."""
    order = np.argsort(score, kind="stable")
    below = np.concatenate([[0], np.cumsum(issue[order])])
    above = np.concatenate([np.cumsum((~issue[order])[::-1])[::-1], [0]])
    cut = int((below + above).argmin())
    ranked = score[order]
    if cut == 0:  # everything is an issue: a little below all of it
        return float(ranked[0] - 1e-3 * (ranked[-1] - ranked[0] or abs(ranked[0]) or 1.0))
    return float(ranked[cut - 1 : cut + 1].mean())


def curves(files: RunFiles) -> list[Json]:
    """Return the charts of what the stages logged by epoch: losses, each kind by itself as their scales differ, and accuracies in percent."""
    found: dict[tuple[str, str], dict[str, tuple[list[int], list[float]]]] = defaultdict(dict)
    for line in files.metrics:
        stage = str(line.get("stage", ""))
        for name, value in line.items():
            if name in ("stage", "epoch", *OTHER) or isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                continue
            told, accuracy = name.replace("_", " "), "accuracy" in name or "agreement" in name
            title = f"Accuracy by epoch of {stage}" if accuracy else f"Loss of {stage}: {told}"
            x, y = found["accuracy" if accuracy else "loss", title].setdefault(told, ([], []))
            x.append(int(line.get("epoch", 0)))
            y.append(round(100 * float(value), 2) if accuracy else float(f"{value:.6g}"))
    return [
        {
            "panel": panel,
            "title": title,
            "unit": "%" if panel == "accuracy" else "",
            "series": [{"label": n, "x": x, "y": y} for n, (x, y) in sorted(drawn.items())],
        }
        for (panel, title), drawn in sorted(found.items(), key=lambda entry: entry[0][0] != "loss")
    ]


def audit(files: RunFiles) -> list[Json]:
    """Return what the model says of the forgotten and of the retained labels, before and after."""
    figures = (files.record.get("unlearning") or {}).get("audit")
    if not figures:
        return []
    meanings = (
        ("forget_given", "Agreement with the labels to forget", "falls"),
        ("forget_true", "Agreement with the true labels of what was forgotten", "rises"),
        ("retain_given", "Agreement with the retained labels", "stays"),
    )
    return [
        {"label": label, "before": rounded(figures["before"].get(key)), "after": rounded(figures["after"].get(key)), "hope": hope}
        for key, label, hope in meanings
        if figures["before"].get(key) is not None
    ]


def feature_map(files: RunFiles, item_of: dict[int, int]) -> Json | None:
    """Return the map of the features as the page draws it; `item_of` says which rows are shown as items."""
    rows = files.tensors.get("map_rows")
    if rows is None:
        return None
    flags = _issue(files) * 1 + files.issues["forget"].to_numpy(dtype=bool) * 2 + files.issues["retain"].to_numpy(dtype=bool) * 4
    truth = truth_of(files)
    if truth is not None:
        flags = flags + (truth != files.labels["given"]) * 8
    noise = files.issues["noise_probability"].to_numpy(dtype=float)
    flags = flags + np.isnan(noise) * 16  # nobody judged these, so their noise below says nothing
    noise = np.nan_to_num(noise).clip(0, 1) * 255
    return {
        "n": len(rows),
        "method": files.material["map"],
        "before": _packed(files.tensors["map_before"], "<u2"),
        "after": _packed(files.tensors["map_after"], "<u2"),
        "item": _packed(np.array([item_of.get(row, -1) for row in rows.tolist()]), "<i4"),
        "given": _packed(files.codes("given_label")[rows], "<u2"),
        "suggested": _packed(files.codes("suggested_label")[rows], "<u2"),
        "flags": _packed(flags[rows], "u1"),
        "noise": _packed(np.rint(noise)[rows], "u1"),
    }


def _packed(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode("ascii")
