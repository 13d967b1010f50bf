"""Corrected labels as tables: for people, for `datasets`, and for reading them again."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from fspmu.data.corrections import Correction
from fspmu.data.labelled import Labelled, files_of
from fspmu.errors import InputError
from fspmu.results.cells import prefixed
from fspmu.results.store import replacing


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]], out: Path) -> str:
    """Write a table in UTF-8, whole or not at all; return its name below `out`."""
    try:
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
    except UnicodeEncodeError as error:
        raise InputError(f"the name {error.object!r:.120} is no UTF-8 and cannot stand in a table; rename the file, or use --mode copy") from None
    return path.relative_to(out).as_posix()


def write_tables(found: Labelled, labels: Sequence[str | None], out: Path) -> list[str]:
    """Write the labels of all samples, and per part a table of the Hub's imagefolder, with names relative to the part."""
    rows = [(name, label) for name, label in zip(found.ids, labels, strict=True) if label is not None]
    if found.root is None:
        return [_write_rows(out / "labels_corrected.csv", ("id", "label"), rows, out)]
    written = [_write_rows(out / "labels_corrected.csv", ("file_name", "label"), rows, out)]
    files = files_of(found, labels)
    for part in sorted({file.part for file in files}):
        part_rows = [(file.name, file.label) for file in files if file.part == part]
        written.append(_write_rows(out / part / "metadata.csv", ("file_name", "label"), part_rows, out))
    return written


def write_changes(found: Labelled, changes: Sequence[Correction], out: Path) -> str:
    """Write what changed, in the form in which decisions are read, with cells that no spreadsheet takes for formulas; return its name below `out`."""
    rows = [
        (
            prefixed(change.id),
            prefixed(found.labels[change.row]),
            prefixed(change.new_label or ""),
            change.decision,
            "" if change.confidence is None else f"{change.confidence:.6g}",
        )
        for change in changes
    ]
    return _write_rows(out / "changes.csv", ("id", "given_label", "new_label", "decision", "confidence"), rows, out)
