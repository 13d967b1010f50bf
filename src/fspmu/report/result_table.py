"""A table of many runs, from their records alone: rows of methods, columns of noise, mean and spread over seeds, the published figures below ours."""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fspmu.errors import InputError
from fspmu.report.published import DOUBTED, published_figure
from fspmu.results.record import check_schema
from fspmu.results.store import common, differences, read_json

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
    """The values of one cell over its seeds, accuracies in percent; no spread of one."""

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


def check_alike(results: Iterable[Result]) -> None:
    """Raise InputError when two results of one cell were not made alike: in another precision, or with another value of something that both configs have.

    What only one of them has came with a newer version, which keeps what was before as the default. Noise belongs to the cell, seed and folder to the run.
    """
    first: dict[Cell, tuple[int, Json]] = {}
    for result in results:
        config = {key: value for key, value in result.record["config"].items() if key not in ("seed", "run", "noise", "precision")}
        made = config | {"precision": (result.record.get("machine") or {}).get("precision")}
        seed, theirs = first.setdefault(result.cell, (result.seed, made))
        if apart := differences(common(made, theirs), common(theirs, made)):
            raise InputError(f"{', '.join(result.cell)}: seeds {result.seed} and {seed} do not stand in one mean, since {apart[0]}; leave one of them out")


def figures_of(results: Iterable[Result], statistic: str) -> dict[Cell, Figure]:
    """Return mean and standard deviation (n - 1) of each cell over its seeds, from the accuracies `last` or `best`; no best of what was `tested_unlike`.

    Raises InputError when a cell has two results for one seed that differ.
    """
    unlike = tested_unlike(results := list(results)) if statistic == "best" else set()
    of_runs = ((result.cell, result.seed, (result.record.get("test_accuracy") or {}).get(statistic)) for result in results if result.cell not in unlike)
    return over_seeds((cell, seed, None if value is None else 100 * value) for cell, seed, value in of_runs)


def tested_unlike(results: Iterable[Result]) -> set[Cell]:
    """Return the cells of which some seeds were tested after other epochs than others, so that their best do not stand in one mean.

    Records from before this was kept do not say.
    """
    told: dict[Cell, set[int]] = {}
    for result in results:
        if (every := (result.record.get("machine") or {}).get("test_every")) is not None:
            told.setdefault(result.cell, set()).add(every)
    return {cell for cell, every in told.items() if len(every) > 1}


def over_seeds(values: Iterable[tuple[Cell, int, float | None]]) -> dict[Cell, Figure]:
    """Return mean and standard deviation (n - 1) of each cell over its seeds; a value that is None does not count.

    Raises InputError when a cell has two values for one seed that differ.
    """
    found: dict[Cell, dict[int, float]] = {}
    for cell, seed, value in values:
        if value is not None and found.setdefault(cell, {}).setdefault(seed, value) != value:
            raise InputError(f"there are two results for {', '.join(cell)}, seed {seed}; leave one of them out")
    figures = {}
    for cell, of_seeds in found.items():
        numbers = list(of_seeds.values())
        figures[cell] = Figure(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))
    return figures


def render(layout: Layout, results: Sequence[Result], wanted: Sequence[str], form: str) -> str:
    """Return the table as markdown, csv or latex, once for each statistic in `wanted`: last before best.

    Raises InputError for results of one cell that contradict each other or were not made alike.
    """
    check_alike(results)
    shown = [name for name in STATISTICS if name in wanted]
    if form == "csv":
        return _csv(layout, {name: figures_of(results, name) for name in shown})
    sheets = {name: _sheet(layout, name, figures_of(results, name)) for name in shown}
    if "best" in sheets and tested_unlike(results):
        left_out = "Cells whose seeds were tested after different epochs have no best."
        sheets["best"] = replace(sheets["best"], notes=[*sheets["best"].notes, left_out])
    return "\n\n".join(map(SHEETS[form], sheets.values()))


def _body(layout: Layout, statistic: str, figures: Mapping[Cell, Figure], usual: int) -> list[list[str]]:
    """Return the rows as text: ours, then the published figures and the differences where there are any."""
    body = []
    for data in layout.data:
        label = data
        for row in layout.rows:
            ours = [figures.get((data, row, column)) for column in layout.columns]
            theirs = [_published(layout, data, row, statistic, column) for column in layout.columns]
            body.append([label, row, *(text_of(figure, usual) for figure in ours)])
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


def text_of(figure: Figure | None, usual: int) -> str:
    """Return mean and deviation with two digits, and the number of seeds where it is not the usual one."""
    if figure is None:
        return MISSING
    spread = "" if figure.deviation is None else f" ± {figure.deviation:.2f}"
    return f"{figure.mean:.2f}{spread}" + (f" (n={figure.count})" if figure.count != usual else "")


def usual_seeds(figures: Mapping[Cell, Figure]) -> int:
    """Return the number of seeds that most cells have, the larger one when in doubt."""
    counts = Counter(figure.count for figure in figures.values())
    return max(counts, key=lambda count: (counts[count], count), default=1)


def _notes(layout: Layout, statistic: str, figures: Mapping[Cell, Figure], body: Sequence[Sequence[str]]) -> list[str]:
    """Return the sentences below the table."""
    notes = [told_of_seeds(figures), *layout.notes]
    if statistic == "best":
        notes.insert(0, "* picked on test data.")
    if any(MISSING in row for row in body):
        notes.append(f"{MISSING}: no figure.")
    if any("†" in text for row in body for text in row):
        notes.append("†: a published cell to doubt.")
    return notes


def told_of_seeds(figures: Mapping[Cell, Figure]) -> str:
    """Return the sentence on means and spreads of a table."""
    usual = usual_seeds(figures)
    if usual > 1:
        return f"Mean ± standard deviation (n - 1) over {usual} seeds."
    several = any(figure.count > 1 for figure in figures.values())
    return "Mean ± standard deviation (n - 1) over n seeds; one seed where no n is given." if several else "One seed: no spread is given."


@dataclass(frozen=True)
class Sheet:
    """A table as text, in no form yet: what it shows, the names of its columns, its rows (label, row, a cell for each column), and sentences below it."""

    name: str
    about: str
    columns: Sequence[str]
    body: Sequence[Sequence[str]]
    notes: Sequence[str]


def _sheet(layout: Layout, statistic: str, figures: Mapping[Cell, Figure]) -> Sheet:
    usual = usual_seeds(figures)
    body = _body(layout, statistic, figures, usual)
    about = f"Test accuracy (%) {STATISTICS[statistic]}, {layout.about}"
    return Sheet(layout.name, about, layout.columns, body, _notes(layout, statistic, figures, body))


def as_markdown(sheet: Sheet) -> str:
    """Return a table for a page, its title above and its notes below."""
    lines = [f"**{sheet.name}.** {_starred(sheet.about)}", "", _pipes(["data", "row", *sheet.columns])]
    lines += [_pipes(["---", "---", *("---:" for _ in sheet.columns)]), *(_pipes([*map(_starred, row)]) for row in sheet.body), ""]
    return "\n".join([*lines, _starred(" ".join(sheet.notes))])


def _starred(text: str) -> str:
    return text.replace("*", r"\*")


def _pipes(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", MISSING: "--", "†": r"$^{\dagger}$", "*": "$^{*}$"} | {sign: f"\\{sign}" for sign in "%&_#$"}


def as_latex(sheet: Sheet) -> str:
    """Return a table environment that needs the package booktabs."""
    about = f"{sheet.about}. {' '.join(sheet.notes)}"
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(about)}}}", rf"\begin{{tabular}}{{ll{'r' * len(sheet.columns)}}}", r"\toprule"]
    lines += [_ampersands(["data", "row", *sheet.columns]), r"\midrule", *map(_ampersands, sheet.body), r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _ampersands(texts: Sequence[str]) -> str:
    return rf"{' & '.join(map(_escaped, texts))} \\"


SHEETS = {"markdown": as_markdown, "latex": as_latex}
"""Ways to write a sheet, by the name of the form."""


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
