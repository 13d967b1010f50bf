"""The data of a page, from the files of a run alone: same files, same bytes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fspmu.errors import InputError
from fspmu.report import items as shown
from fspmu.report.panels import audit, class_rows, curves, feature_map, matrix, scores, truth_of
from fspmu.report.run_files import RunFiles, read_run
from fspmu.report.verdicts import cautions, numbers, run_card, settings_of, verdict
from fspmu.results.store import read_json

Json = dict[str, Any]

SCHEMA = 1
GLOSSARY = (
    ("label score", "P(clean), the probability that the given label is right, from 0 to 1; LOW = bad."),
    ("noise probability", "1 - label score, from 0 to 1; HIGH = bad."),
    ("score", "What the detector measured, on the axis of the histogram; HIGH = looks wrong."),
    ("suspect", "An image whose label is not retained, or is forgotten: a label issue."),
    ("forget, retain, review", "What the repair did with a label: made the model forget it, went on learning it, or neither."),
    (
        "given, suggested",
        "The label as it came, and the likeliest other class in the eyes of the repaired model, or what a person chose. A suggestion may be wrong.",
    ),
    ("confidence", "The probability that the model gave to the class it predicted before the repair, from 0 to 1; HIGH = sure."),
    ("neighbours", "The training images nearest by cosine of their features before the repair. The share that carries the same label: LOW = bad."),
    ("threshold", "The score above which a label counts as wrong."),
    (
        "precision, recall",
        "Of the labels called wrong, the share that is; of the wrong ones, the share that was found. HIGH = good; known in experiments alone.",
    ),
    ("forgetting audit", "Agreement of the model with labels before and after. No proof of privacy."),
)
FILES = (
    ("label_issues.csv", "a row for each image: scores, suggestion, action"),
    ("record.json", "every figure of the run"),
    ("config.json", "what was asked for"),
    ("metrics.jsonl", "the figures of each epoch"),
    ("model.safetensors", "the weights of the model that is handed back"),
    ("model.json", "what these weights belong to"),
    ("README.md", "the model card"),
    ("split.safetensors", "forget and retain, P(clean) and score of each image"),
    ("predictions.safetensors", "logits and features before and after"),
    ("labels.safetensors", "given labels, and true ones where they are known"),
    ("unreadable.csv", "images that could not be read"),
    ("corrections.csv", "decisions of a review"),
    ("review.json", "the same, to go on with"),
)


def build_payload(folder: Path, compare: Sequence[Path] = (), *, base: Path | None = None) -> Json:
    """Return the data of the page on the repair in `folder`, beside the numbers of others; files are named as seen from `base`, by default from there.

    Raises InputError for a folder that holds no finished repair, or a damaged one.
    """
    files = read_run(folder)
    others = [read_run(other) for other in compare]
    try:
        return _payload(files, others, (base or files.folder).resolve())
    except (KeyError, IndexError, TypeError, AttributeError, FileNotFoundError) as error:
        raise InputError(f"{files.folder} is damaged: {type(error).__name__} {error} in its files; make it again") from None


def _payload(files: RunFiles, others: list[RunFiles], base: Path) -> Json:
    columns = shown.items(files)
    rows, apart, _ = shown.shown_rows(files)
    item_of = {row: item for item, (row, other) in enumerate(zip(rows.tolist(), apart.tolist(), strict=True)) if not other}
    payload: Json = {
        "schema": SCHEMA,
        "key": files.identity[:12],
        "run": run_card(files),
        "verdict": verdict(files),
        "warnings": cautions(files),
        "classes": files.classes,
        "known": truth_of(files) is not None,
        "by_class": class_rows(files),
        "matrix": matrix(files),
        "scores": scores(files),
        "items": columns,
        "map": feature_map(files, item_of),
        "flips": files.material.get("flips"),
        "curves": curves(files),
        "audit": audit(files),
        "settings": _settings(files),
        "glossary": [list(entry) for entry in GLOSSARY],
        "files": [[name, what, shown.address_of(files.folder / name, base)] for name, what in FILES if (files.folder / name).is_file()],
        "compare": [{"title": _title(run), "numbers": numbers(run)} for run in (files, *others)] if others else [],
        "reviewable": True,
        "review": read_review(files.folder),
    }
    spent = len(json.dumps(payload, separators=(",", ":")))
    payload["sheets"], payload["large"] = shown.pictures(files, spent, base)
    return payload


def _title(files: RunFiles) -> str:
    return f"{files.folder.parent.name}/{files.folder.name}"


def _settings(files: RunFiles) -> list[list[str]]:
    """Return name, value and meaning of whatever was set; without meanings where the run wrote none down."""
    if files.material.get("settings"):
        return [list(map(str, entry)) for entry in files.material["settings"]]
    return [[f"{name}.{key}", str(value), ""] for name, part in settings_of(files.config).items() for key, value in sorted(part.items())]


def read_review(folder: Path) -> Json | None:
    """Return the decisions that a review left in the folder; None where there are none, or they cannot be read."""
    path = folder / "review.json"
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except InputError:  # a page is worth more than decisions that nobody can read
        return None
    return found if found.get("schema") == 1 and isinstance(found.get("decisions"), list) else None
