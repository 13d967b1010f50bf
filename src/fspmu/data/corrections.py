"""What is to happen to labels: decisions of a person, or the suggestions of a model that are sure enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from fspmu.data.issue_tables import Samples, class_reader, places_of, read_shares, read_table
from fspmu.data.listing import some
from fspmu.errors import InputError, suggestion
from fspmu.results.cells import APART

DECISIONS = {
    "accept": "the given label is wrong, new_label is right",
    "keep": "the given label is right",
    "drop": "the sample is to be left out",
    "unsure": "nothing is changed",
}
CONFIDENCES = ("confidence", "suggested_confidence")
ACTIONS = ("forget", "retain", "review")


@dataclass(frozen=True)
class Correction:
    """What is decided of one sample: its id, the name of its new class where the decision is `accept`, and one of DECISIONS."""

    id: str
    new_label: str | None
    decision: str
    row: int
    """Its place in the data set."""
    confidence: float | None = None
    """How sure a model was of the new label, where that is known."""
    by_model: bool = False
    """Whether a model decided and nobody has looked."""


def read_corrections(
    path: Path, class_names: Sequence[str], ids: Sequence[str], given_labels: Tensor, *, paths: Sequence[str] | None = None, min_confidence: float = 0.9
) -> list[Correction]:
    """Return what a .csv or .parquet file decides of the samples with these ids (N,) and given labels (N,) int64, in its order.

    Two kinds are known: a person's, with a column decision, and a table of label issues as this package writes it. Of the latter, issues
    whose suggestion is at least as sure as `min_confidence` are accepted, others are unsure; what its column `decided` says of a person is a person's.
    Raises InputError for rows without a sample, classes without a name, and given labels that have changed since.
    """
    samples, table, name = Samples(ids, paths, given_labels, class_names), read_table(path), str(path)
    columns = [str(column) for column in table.columns]
    if "decision" in columns:
        return read_decisions(table, samples, name)
    if {"action", "suggested_label", "suggested_confidence"} <= set(columns):
        return _read_suggestions(table, samples, name, min_confidence)
    raise InputError(f"{name} needs the columns decision and new_label, or those of a label_issues.csv, and has {some(columns) or 'none'}")


def read_decisions(table: pd.DataFrame, samples: Samples, name: str) -> list[Correction]:
    """Return the decisions of a person; one that is left empty is `unsure`. What a page says of an image apart from the samples is left out.

    Raises InputError for a decision of another name, and for an accepted label that is missing, unknown, or the given one.
    """
    if "id" in table.columns:
        known = set(samples.ids)
        table = table[[identity in known or not str(identity).startswith(APART) for identity in table["id"]]].reset_index(drop=True)
    places = places_of(table, samples, name)
    reader = class_reader(table, places, samples, name)
    news = list(table["new_label"]) if "new_label" in table.columns else [None] * len(table)
    confidences = _confidences(table, name)
    corrections = []
    for row, (place, said) in enumerate(zip(places.tolist(), table["decision"], strict=True)):
        where = f"row {row} (counted from 0)"
        decision = "unsure" if _empty(said) else str(said).strip().lower()
        if decision not in DECISIONS:
            raise InputError(f"{name}: {where} has the decision {said!r:.60}; {suggestion(decision, DECISIONS)}")
        new = None
        if decision == "accept":
            if _empty(news[row]):
                raise InputError(f"{name}: {where} accepts no new_label; write one, or decide keep, drop or unsure")
            label = reader.read(news[row], where)
            new = samples.class_names[label]
            if label == samples.given[place]:
                raise InputError(f"{name}: {where} accepts {new!r:.60}, which {samples.ids[place]!r:.120} has already; decide keep, or name another class")
        corrections.append(Correction(samples.ids[place], new, decision, place, confidences[row]))
    return corrections


def _read_suggestions(table: pd.DataFrame, samples: Samples, name: str, min_confidence: float) -> list[Correction]:
    """Return what a model suggests for the labels that it would forget or have reviewed."""
    places = places_of(table, samples, name)
    reader = class_reader(table, places, samples, name)
    confidences = read_shares(list(table["suggested_confidence"]), "suggested_confidence", name)
    corrections = []
    decided = list(table["decided"]) if "decided" in table.columns else [None] * len(table)
    for row, (place, action, suggested) in enumerate(zip(places.tolist(), table["action"], table["suggested_label"], strict=True)):
        where = f"row {row} (counted from 0)"
        if action not in ACTIONS:
            raise InputError(f"{name}: {where} has the action {action!r:.60}; {suggestion(str(action), ACTIONS)}")
        label = reader.read(suggested, where)
        if not _empty(decided[row]):
            if (word := str(decided[row])) not in DECISIONS:
                raise InputError(f"{name}: {where} was decided {word!r:.60}; {suggestion(word, DECISIONS)}")
            corrections.append(Correction(samples.ids[place], samples.class_names[label] if word == "accept" else None, word, place))
            continue
        if action == "retain" or label == samples.given[place]:
            continue
        sure = bool(confidences[row] >= min_confidence)
        new = samples.class_names[label] if sure else None
        corrections.append(Correction(samples.ids[place], new, "accept" if sure else "unsure", place, float(confidences[row]), by_model=True))
    return corrections


def _confidences(table: pd.DataFrame, name: str) -> list[float | None]:
    """Return the confidences of a table (M,), None where there is none."""
    column = next((column for column in CONFIDENCES if column in table.columns), None)
    if column is None:
        return [None] * len(table)
    known = np.array([not _empty(value) for value in table[column]], dtype=np.bool_)
    shares = iter(read_shares([value for value, there in zip(table[column], known, strict=True) if there], column, name).tolist())
    return [next(shares) if there else None for there in known.tolist()]


def _empty(value: object) -> bool:
    return value is None or value is pd.NA or value != value or not str(value).strip()
