"""The tables of docs/detection.md and docs/recovering.md, from the committed records of the grids.

    python benchmarks/detectors.py            # write them again, between the marks of each page
    python benchmarks/detectors.py --check    # exit code 1 when a page says anything else

A mark is `<!-- measured: NAME -->`, and what is written ends with `<!-- end -->`. The records are filled by
`fspmu grid NAME --records benchmarks/records/NAME.jsonl`.
"""

import argparse
import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fspmu.experiments.grids import GRIDS
from fspmu.report.result_table import MISSING, Cell, Figure, Result, figures_of, over_seeds, render, text_of
from fspmu.report.slim_records import load_results
from fspmu.report.survey_table import rows_of, survey_figures

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("detection.md", "recovering.md")
MARK = re.compile(r"(<!-- measured: (?P<name>[a-z0-9 -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
FOUND = {
    "auc": "AUC",
    "average_precision": "average precision",
    "f1": "F1",
    "retain_purity": "purity",
    "clean_recall": "clean recall",
    "flagged": "flagged",
    "seconds": "seconds",
}
"""Figures of a survey and what they are called above a column."""
CUT_APART = ("gmm", "feature-margin", "noise-transition", "knn")
"""Detectors of which every cut is shown."""
DEFAULT = "FSPMU tuned-soft, noise-transition"
"""The row of what happens when nothing is asked for."""


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = 0
    for page in (ROOT / "docs" / name for name in PAGES):
        former = page.read_text(encoding="utf-8")
        made = written(former)
        if made != former:
            stale = 1
            print(f"{page.name} {'differs from the records' if options.check else 'written'}")
            if not options.check:
                page.write_text(made, encoding="utf-8")
    return stale if options.check else 0


def written(page: str) -> str:
    """Return a page with all tables between its marks made again."""
    return MARK.sub(lambda mark: f"{mark[1]}{TABLES[mark['name']]()}\n{mark[3]}", page)


@functools.cache
def results_of(grid: str) -> list[Result]:
    """Return what was measured of a grid; nothing where nothing was yet."""
    path = ROOT / "benchmarks" / "records" / f"{grid}.jsonl"
    return load_results([path], GRIDS[grid].layout) if path.exists() else []


def pipes(rows: Iterable[Sequence[str]]) -> str:
    """Return a table of a page; its first row is the head, all columns but the first are numbers."""
    head, *body = rows
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def found_of(grid: str, column: str, names: Sequence[str] = tuple(FOUND), later: str = "") -> str:
    """Return what each detector with its own cut found on the networks of one column, and what on those of a `later` one; means, AUC with its deviation."""
    surveys = [result for result in results_of(grid) if result.record.get("survey")]
    measured = any(result.cell[2] == later for result in surveys)
    wanted = [(name, column) for name in names] + [(name, later) for name in ("auc", "f1", "flagged") if measured and name in names]
    figures = {name: survey_figures(surveys, name) for name in names}
    rows = [["detector, its own cut", *(FOUND[name] + (f", {where.partition(', ')[2]}" if where == later else "") for name, where in wanted)]]
    for row in rows_of(surveys, "f1"):
        if row.endswith("*"):
            ours = [_of_row(figures[name], row, where) for name, where in wanted]
            if any(ours):
                told = [_told(figure, with_spread=name == "auc") for figure, (name, _) in zip(ours, wanted, strict=True)]
                rows.append([f"`{row.rstrip('*')}`".replace(", ", "`, `"), *told])
    return pipes(rows)


def _of_row(figures: Mapping[Cell, Figure], row: str, column: str) -> Figure | None:
    """Return a figure of a detector with a cut, or of a detector where the figure has nothing to do with cuts."""
    return figures.get(("cifar10", row, column)) or figures.get(("cifar10", row.rpartition(", ")[0], column))


def _told(figure: Figure | None, *, with_spread: bool) -> str:
    """Return a mean, and its deviation where it is wanted."""
    if figure is None:
        return MISSING
    return f"{figure.mean:.1f}" + (f" ± {figure.deviation:.1f}" if with_spread and figure.deviation is not None else "")


def found_by_cuts(grid: str, columns: Sequence[str]) -> str:
    """Return F1 of each cut for some detectors, and without noise the share that is flagged."""
    surveys = [result for result in results_of(grid) if result.record.get("survey")]
    rows = [["detector and cut", *(f"{'flagged' if column.startswith('none') else 'F1'}, {column.partition(',')[0]}" for column in columns)]]
    figures = {name: survey_figures(surveys, name) for name in ("f1", "flagged")}
    for row in rows_of(surveys, "f1"):
        if row.rpartition(", ")[0] in CUT_APART:
            ours = [figures["flagged" if column.startswith("none") else "f1"].get(("cifar10", row, column)) for column in columns]
            rows.append([row.replace("*", r" \*"), *(_told(figure, with_spread=False) for figure in ours)])
    return pipes(rows)


def accuracies(grid: str) -> str:
    """Return the table of a grid's accuracies after the last epoch: the rows that were measured, and the columns in which something was repaired."""
    kept = [result for result in results_of(grid) if not result.record.get("survey")]
    layout = GRIDS[grid].layout
    measured, repaired = {result.cell[1] for result in kept}, {result.cell[2] for result in kept if result.cell[1] != "original"}
    rows, columns = (tuple(name for name in names if name in wanted) for names, wanted in ((layout.rows, measured), (layout.columns, repaired)))
    return render(replace(layout, rows=rows, columns=columns), kept, ("last",), "markdown")


def distances(grid: str) -> str:
    """Return how much of the way from `gmm` to `known`, both as published, the default goes, and its seconds beside those of `gmm`."""
    results = results_of(grid)
    figures, seconds = figures_of(results, "last"), over_seeds(_seconds(results))
    head = ["noise", "`gmm`, `original`", "`known`, `original`", "default", "of the way", "seconds, `gmm`", "seconds, default", "ratio"]
    rows = [head]
    for column in GRIDS[grid].layout.columns:
        cells = [("cifar10", row, column) for row in ("FSPMU original, gmm", "FSPMU original, known", DEFAULT)]
        gmm, known, default = (figures.get(cell) for cell in cells)
        if gmm is None or default is None:
            continue
        way = f"{100 * (default.mean - gmm.mean) / (known.mean - gmm.mean):.0f}%" if known is not None and known.mean > gmm.mean else MISSING
        costs = [seconds[cells[0]].mean, seconds[cells[2]].mean]
        accuracies_told = [text_of(figure, gmm.count) for figure in (gmm, known, default)]
        rows.append([column, *accuracies_told, way, *(f"{cost:.0f}" for cost in costs), f"{costs[1] / costs[0]:.2f}"])
    return pipes(rows)


def _seconds(results: Iterable[Result]) -> Iterable[tuple[Cell, int, float | None]]:
    for result in results:
        told = result.record.get("seconds") or {}
        if "unlearning" in told:
            yield result.cell, result.seed, told.get("detection", 0.0) + told["unlearning"]


SMALL = ("sym 50, 30 epochs", "asym 40, 30 epochs", "instance 40, 30 epochs", "none, 30 epochs")
REPAIRED = ("detectors-small", "detectors-10k", "detectors-wide", "routes-small", "recipes-small")
"""Grids whose repairs are shown."""
TABLES: dict[str, Callable[[], str]] = {
    "small sym": lambda: found_of("detectors-small", SMALL[0], later="sym 50, 60 epochs"),
    "small asym": lambda: found_of("detectors-small", SMALL[1], later="asym 40, 60 epochs"),
    "small instance": lambda: found_of("detectors-small", SMALL[2], later="instance 40, 60 epochs"),
    "small none": lambda: found_of("detectors-small", SMALL[3], ("flagged", "seconds"), "none, 60 epochs"),
    "small cuts": lambda: found_by_cuts("detectors-small", SMALL),
    "10k sym": lambda: found_of("detectors-10k", "sym 50, 50 epochs"),
    "10k asym": lambda: found_of("detectors-10k", "asym 40, 50 epochs"),
    "wide few": lambda: found_of("detectors-wide", "sym 20, 30 epochs"),
    "wide most": lambda: found_of("detectors-wide", "sym 80, 30 epochs"),
    "memorised": lambda: found_of("detectors-memorised", "sym 50, 100 epochs"),
    **{f"accuracies {grid}": lambda grid=grid: accuracies(grid) for grid in REPAIRED},
    "distances": lambda: distances("detectors-small"),
}


if __name__ == "__main__":
    sys.exit(main())
