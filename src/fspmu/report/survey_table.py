"""The tables of surveys: detectors and their cuts below each other, columns of noise, a table for each figure; then the accuracies of the same grid.

Figures are rounded to four digits before anything is made of them, so that the tables of run folders and of committed records are the same.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from fspmu.report.result_table import MISSING, SHEETS, Cell, Figure, Layout, Result, Sheet, over_seeds, render, text_of, told_of_seeds, usual_seeds

Json = dict[str, Any]

FIGURES = {
    "auc": "AUC (%)",
    "average_precision": "Average precision (%)",
    "f1": "F1 (%)",
    "retain_purity": "Right labels in the retain set (%)",
    "clean_recall": "Right labels that are retained (%)",
    "flagged": "Labels that are flagged (%)",
    "seconds": "Seconds of a detector with all passes that it needs, and of its own cut",
}
"""What is shown of a survey, in this order; positive = wrong label."""

OF_DETECTORS = {"auc", "average_precision", "seconds"}
"""Figures of a detector, whatever its cut; those of gmm-probe, whose two scores meet in P(clean), are under its own."""

DIGITS = 4


def render_all(layout: Layout, results: Sequence[Result], wanted: Sequence[str], form: str) -> str:
    """Return the tables of the surveys among the results, if there are any, and those of the accuracies `wanted`: last before best."""
    accuracies = render(layout, results, wanted, form)
    surveys = [result for result in results if result.record.get("survey")]
    if not surveys:
        return accuracies
    if form == "csv":
        return "\n".join([accuracies, *(line for name in FIGURES for line in _csv_lines(layout, name, surveys))])
    return "\n\n".join([*(SHEETS[form](_sheet(layout, name, surveys)) for name in FIGURES), accuracies])


def rows_of(surveys: Sequence[Result], name: str) -> list[str]:
    """Return the names of the rows of a figure: detectors, or detectors with their cuts, those that are a detector's own with an asterisk."""
    found: dict[str, dict[str, None]] = {}
    for result in surveys:
        for row in result.record["survey"]["rows"]:
            found.setdefault(row["detector"], {})[_row_name(row, name)] = None
    return [row for of_detector in found.values() for row in of_detector]


def _row_name(row: Json, name: str) -> str:
    return row["detector"] if name in OF_DETECTORS else f"{row['detector']}, {row['cut']}{'*' if row['own'] else ''}"


def survey_figures(surveys: Sequence[Result], name: str) -> dict[Cell, Figure]:
    """Return mean and standard deviation of a figure by data, row and column; shares in percent.

    Raises InputError when a cell has two results for one seed that differ.
    """
    return over_seeds(value for result in surveys for value in _values(result, name))


def _values(result: Result, name: str) -> Iterator[tuple[Cell, int, float | None]]:
    data, _, column = result.cell
    survey = result.record["survey"]
    surveyed: set[str] = set()
    for row in sorted(survey["rows"], key=lambda row: not row["own"]):  # a detector has the figures that its own cut has
        if name in OF_DETECTORS and row["detector"] in surveyed:
            continue
        surveyed.add(row["detector"])
        value = row.get(name)
        if name == "seconds":
            value = round(row["seconds"], DIGITS) + round(survey["detectors"][row["detector"]]["seconds_with_passes"], DIGITS)
        elif value is not None:
            value = 100 * round(value, DIGITS)
        yield (data, _row_name(row, name), column), result.seed, value


def _sheet(layout: Layout, name: str, surveys: Sequence[Result]) -> Sheet:
    figures = survey_figures(surveys, name)
    usual, body = usual_seeds(figures), []
    for data in layout.data:
        label = data
        for row in rows_of(surveys, name):
            body.append([label, row, *(text_of(figures.get((data, row, column)), usual) for column in layout.columns)])
            label = ""
    notes = ["Positive = wrong label.", told_of_seeds(figures), *layout.notes]
    notes += ["*: the detector's own cut."] if name not in OF_DETECTORS else []
    notes += [f"{MISSING}: no figure."] if any(MISSING in row for row in body) else []
    return Sheet(layout.name, FIGURES[name], layout.columns, body, notes)


def _csv_lines(layout: Layout, name: str, surveys: Sequence[Result]) -> Iterator[str]:
    """Yield one line for each row and column, in the columns of the other tables; a missing figure is empty."""
    figures = survey_figures(surveys, name)
    for cell in ((data, row, column) for data in layout.data for row in rows_of(surveys, name) for column in layout.columns):
        ours = figures.get(cell)
        numbers = ["" if number is None else f"{number:.4f}" for number in ((ours.mean, ours.deviation) if ours else (None, None))]
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow([layout.name, *cell, name, *numbers, ours.count if ours else 0, "", ""])
        yield text.getvalue()
