"""A table of many runs, from their records alone: rows of methods, columns of noise, mean and spread over seeds, the published figures below ours."""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fspmu.errors import InputError
from fspmu.report.published import DOUBTED, published_figure
from fspmu.results.record import check_schema
from fspmu.results.store import read_json

Json = dict[str, Any]
Cell = tuple[str, str, str]
"""A data set, a row and a column."""

STATISTICS = {"last": "after the last epoch", "best": "best epoch*"}
"""What is shown of a run's test accuracies, in this order."""

FORMS = {"markdown": "for pages", "csv": "a line for each cell", "latex": "with the package booktabs"}

MISSING = "–"


@dataclass(frozen=True)
class Layout:
    """What a table is about: its data sets, rows and columns in order, and what stands below it."""

    name: str
    about: str
    data: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()
    published: str | None = None
    """Forget set, known or gmm, of the published figures to compare with. None: this protocol was not published."""


@dataclass(frozen=True)
class Result:
    """One finished run in the cell it belongs to."""

    cell: Cell
    seed: int
    record: Json


@dataclass(frozen=True)
class Figure:
    """The accuracies of one cell over its seeds, in percent; no spread of one."""

    mean: float
    deviation: float | None
    count: int


def read_results(out: Path, cells: Mapping[str, Cell]) -> list[Result]:
    """Return the finished runs below `out` whose folder is called STEM-sSEED, for every stem in `cells`."""
    found = []
    for folder in sorted(out.iterdir()) if out.is_dir() else ():
        stem, _, seed = folder.name.rpartition("-s")
        if stem in cells and seed.isdecimal() and (folder / "done").exists():
            record = read_json(folder / "record.json")
            check_schema(record, folder / "record.json")
            found.append(Result(cells[stem], int(seed), record))
    return found


def figures_of(results: Iterable[Result], statistic: str) -> dict[Cell, Figure]:
    """Return mean and standard deviation (n - 1) of each cell over its seeds, from the accuracies `last` or `best`.

    Raises InputError when a cell has two results for one seed that differ.
    """
    values: dict[Cell, dict[int, float]] = {}
    for result in results:
        value = (result.record.get("test_accuracy") or {}).get(statistic)
        if value is None:
            continue
        if values.setdefault(result.cell, {}).setdefault(result.seed, value) != value:
            raise InputError(f"there are two results for {', '.join(result.cell)}, seed {result.seed}; leave one of them out")
    figures = {}
    for cell, of_seeds in values.items():
        percents = [100 * value for value in of_seeds.values()]
        figures[cell] = Figure(statistics.fmean(percents), statistics.stdev(percents) if len(percents) > 1 else None, len(percents))
    return figures


def render(layout: Layout, results: Sequence[Result], wanted: Sequence[str], form: str) -> str:
    """Return the table as markdown, csv or latex, once for each statistic in `wanted`: last before best."""
    shown = [name for name in STATISTICS if name in wanted]
    if form == "csv":
        return _csv(layout, {name: figures_of(results, name) for name in shown})
    write = {"markdown": _markdown, "latex": _latex}[form]
    return "\n\n".join(write(layout, name, figures_of(results, name)) for name in shown)


def _body(layout: Layout, statistic: str, figures: Mapping[Cell, Figure], usual: int) -> list[list[str]]:
    """Return the rows as text: ours, then the published figures and the differences where there are any."""
    body = []
    for data in layout.data:
        label = data
        for row in layout.rows:
            ours = [figures.get((data, row, column)) for column in layout.columns]
            theirs = [_published(layout, data, row, statistic, column) for column in layout.columns]
            body.append([label, row, *(_text(figure, usual) for figure in ours)])
            label = ""
            if any(figure is not None for figure in theirs):
                doubted = [(layout.published, data, row, statistic, column) in DOUBTED for column in layout.columns]
                cells = [MISSING if figure is None else f"{figure:.2f}{'†' * doubt}" for figure, doubt in zip(theirs, doubted, strict=True)]
                body.append(["", "published", *cells])
            apart = [None if mine is None or yours is None else mine.mean - yours for mine, yours in zip(ours, theirs, strict=True)]
            if any(difference is not None for difference in apart):
                body.append(["", "difference", *(MISSING if difference is None else f"{difference:+.2f}" for difference in apart)])
    return body


def _published(layout: Layout, data: str, row: str, statistic: str, column: str) -> float | None:
    return None if layout.published is None else published_figure(layout.published, data, row, statistic, column)


def _text(figure: Figure | None, usual: int) -> str:
    if figure is None:
        return MISSING
    spread = "" if figure.deviation is None else f" ± {figure.deviation:.2f}"
    return f"{figure.mean:.2f}{spread}" + (f" (n={figure.count})" if figure.count != usual else "")


def _usual(figures: Mapping[Cell, Figure]) -> int:
    """Return the number of seeds that most cells have, the larger one when in doubt."""
    counts = Counter(figure.count for figure in figures.values())
    return max(counts, key=lambda count: (counts[count], count), default=1)


def _notes(layout: Layout, statistic: str, usual: int, body: Sequence[Sequence[str]]) -> list[str]:
    """Return the sentences below the table."""
    spread = f"Mean ± standard deviation (n - 1) over {usual} seeds." if usual > 1 else "One seed: no spread is given."
    notes = [spread, *layout.notes]
    if statistic == "best":
        notes.insert(0, "* picked on test data.")
    if any(MISSING in row for row in body):
        notes.append(f"{MISSING}: no figure.")
    if any("†" in text for row in body for text in row):
        notes.append("†: a published cell to doubt.")
    return notes


def _markdown(layout: Layout, statistic: str, figures: Mapping[Cell, Figure]) -> str:
    usual = _usual(figures)
    body = _body(layout, statistic, figures, usual)
    lines = [f"**{layout.name}.** Test accuracy (%) {STATISTICS[statistic].replace('*', chr(92) + '*')}, {layout.about}", ""]
    lines += [_pipes(["data", "row", *layout.columns]), _pipes(["---", "---", *("---:" for _ in layout.columns)]), *map(_pipes, body), ""]
    return "\n".join(lines + [" ".join(_notes(layout, statistic, usual, body)).replace("* picked", r"\* picked")])


def _pipes(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", MISSING: "--", "†": r"$^{\dagger}$", "*": "$^{*}$"} | {sign: f"\\{sign}" for sign in "%&_#$"}


def _latex(layout: Layout, statistic: str, figures: Mapping[Cell, Figure]) -> str:
    """Return a table environment that needs the package booktabs."""
    usual = _usual(figures)
    body = _body(layout, statistic, figures, usual)
    about = f"Test accuracy (%) {STATISTICS[statistic]}, {layout.about}. {' '.join(_notes(layout, statistic, usual, body))}"
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(about)}}}", rf"\begin{{tabular}}{{ll{'r' * len(layout.columns)}}}", r"\toprule"]
    lines += [_ampersands(["data", "row", *layout.columns]), r"\midrule", *map(_ampersands, body), r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _ampersands(texts: Sequence[str]) -> str:
    return rf"{' & '.join(map(_escaped, texts))} \\"


def _csv(layout: Layout, figures: Mapping[str, Mapping[Cell, Figure]]) -> str:
    """Return one line for each cell and statistic; a missing figure is empty."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["table", "data", "row", "column", "statistic", "mean", "deviation", "n", "published", "difference"])
    for statistic, of_cells in figures.items():
        name = "best, picked on test data" if statistic == "best" else statistic
        for cell in ((data, row, column) for data in layout.data for row in layout.rows for column in layout.columns):
            ours, theirs = of_cells.get(cell), _published(layout, *cell[:2], statistic, cell[2])
            numbers = [None, None] if ours is None else [ours.mean, ours.deviation]
            apart = None if ours is None or theirs is None else ours.mean - theirs
            written = ["" if number is None else f"{number:.4f}" for number in (*numbers, theirs, apart)]
            lines.writerow([layout.name, *cell, name, *written[:2], 0 if ours is None else ours.count, *written[2:]])
    return text.getvalue().rstrip("\n")
