"""Decisions of a person as a page sends them: checked, and written as review.json and corrections.csv."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fspmu.errors import InputError
from fspmu.results.cells import prefixed
from fspmu.results.store import write_json, write_text

Json = dict[str, Any]

SCHEMA = 1
DECISIONS = ("accept", "keep", "drop", "unsure")
COLUMNS = ("id", "path", "given_label", "new_label", "decision", "reviewer", "time")
LONGEST = 200
"""Characters of a reviewer's name, and of a time."""


def check_review(text: bytes, payload: Json) -> Json:
    """Return the review in `text`, with nothing in it but what it needs: decisions on items of the page, once each.

    Raises InputError for anything else.
    """
    try:
        found = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the review is no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("decisions"), list):
        raise InputError(f"the review has no schema {SCHEMA} or no list of decisions; save it by the page of this run")
    if found.get("key") != payload["key"]:
        raise InputError(f"the review is of the run {str(found.get('key'))!r:.60}, this is {payload['key']}; open the page of this run again")
    items, classes = payload["items"], payload["classes"]
    place_of = {identity: place for place, identity in enumerate(items["id"])}
    decisions: dict[str, Json] = {}
    for number, row in enumerate(found["decisions"]):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or row["id"] not in place_of:
            raise InputError(f"decision {number} is about no image of this page: {str(row)!r:.120}")
        if row["id"] in decisions:
            raise InputError(f"the image {row['id']!r:.120} is decided more than once")
        place = place_of[row["id"]]
        decisions[row["id"]] = _checked(row, number, items["path"][place], classes[items["given"][place]], classes)
    return {"schema": SCHEMA, "key": payload["key"], "decisions": list(decisions.values())}


def _checked(row: Json, number: int, path: str, given: str, classes: list[str]) -> Json:
    decision, new = row.get("decision"), row.get("new_label")
    if decision not in DECISIONS:
        raise InputError(f"decision {number} is {decision!r:.60}; known: {', '.join(DECISIONS)}")
    if row.get("given_label") != given:
        raise InputError(f"decision {number} was made for the label {str(row.get('given_label'))!r:.60}, which is {given!r:.60} now")
    if decision == "accept" and (new not in classes or new == given):
        raise InputError(f"decision {number} accepts {new!r:.60}, which is {'the given label' if new == given else 'no class of this run'}")
    told = {name: row.get(name) or "" for name in ("reviewer", "time")}
    if any(not isinstance(value, str) or len(value) > LONGEST for value in told.values()):
        raise InputError(f"decision {number} has a reviewer or time that is no text of up to {LONGEST} characters")
    kept = {"accept": new, "keep": given}.get(decision)
    return {"id": row["id"], "path": path, "given_label": given, "new_label": kept, "decision": decision, **told}


def saved_review(folder: Path, payload: Json) -> Json:
    """Return the review that an earlier one left in the folder, to go on with: the first decision writes it anew.

    Raises InputError where that would lose something: a review that cannot be read or is not of this page, and rows of `corrections.csv` that it lacks.
    """
    path, table = folder / "review.json", folder / "corrections.csv"
    found = {"schema": SCHEMA, "key": payload["key"], "decisions": []}
    if path.exists():
        try:
            found = check_review(path.read_bytes(), payload)
        except (InputError, OSError) as error:
            raise InputError(f"{path} would be overwritten and cannot be gone on with: {error}; mend it, or move it out of this folder") from None
    if table.exists():
        try:
            lost = _rows(table.read_text(encoding="utf-8-sig", errors="replace")) - _rows(corrections_csv(found["decisions"]))
        except (csv.Error, OSError) as error:
            raise InputError(f"{table} would be overwritten and cannot be read: {error}; move it out of this folder") from None
        if lost:
            told = f"{len(lost):,} {'row' if len(lost) == 1 else 'rows'}"
            raise InputError(
                f"{table} would be overwritten and has {told} that review.json beside it lacks; move it out of this folder,"
                " and if the page that made it still has them, export review.json there and merge it here under Downloads"
            )
    return found


def _rows(text: str) -> set[tuple[str, ...]]:
    return {tuple(row) for row in csv.reader(io.StringIO(text, newline="")) if row}


def write_review(folder: Path, review: Json) -> None:
    """Write `review.json`, and `corrections.csv` as the page exports it and `fspmu apply` reads it."""
    write_text(folder / "corrections.csv", corrections_csv(review["decisions"]))
    write_json(folder / "review.json", review)


def corrections_csv(decisions: Iterable[Json]) -> str:
    """Return the table of decisions, no cell of which a spreadsheet would compute."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)  # Python 3.11 quotes no lone carriage return by itself
    writer.writerow(COLUMNS)
    writer.writerows([prefixed(row[name] or "") for name in COLUMNS] for row in decisions)
    return text.getvalue()
