"""The tables of the grids, from the records that lie below a folder or in committed files."""

import sys
from pathlib import Path

from fspmu.errors import InputError, choose
from fspmu.experiments.experiment import ShowTable
from fspmu.experiments.grid_jobs import Grid
from fspmu.experiments.grids import GRIDS
from fspmu.report.result_table import FORMS, Result, read_results
from fspmu.report.slim_records import load_results, save_results
from fspmu.report.survey_table import render_all


def tabulate(options: ShowTable) -> str:
    """Return the table that `options` ask for, and save its records where they say so.

    Raises InputError when there is no result at all.
    """
    grid = choose(GRIDS, options.name, "table")
    choose(FORMS, options.format, "--format")
    if options.seeds is not None and options.seeds < 1:
        raise InputError(f"--seeds is {options.seeds}, but it must be at least 1")
    results = load_results(options.records, grid.layout) if options.records else results_of(grid, options.out)
    results = [result for result in results if options.seeds is None or result.seed in grid.seeds_up_to(options.seeds)]
    if not results:
        place = ", ".join(map(str, options.records)) or str(options.out)
        raise InputError(f"{place} holds no finished run of {options.name}; make them by `fspmu grid {options.name}`, or give another --out or --records")
    if options.save is not None:
        save_results(options.save, grid.layout, results)
        print(f"saved: {options.save}", file=sys.stderr)
    return render_all(grid.layout, results, ("last", "best") if options.best else ("last",), options.format)


def results_of(grid: Grid, out: Path) -> list[Result]:
    """Return the finished runs of a grid below `out`, of whatever seed."""
    return read_results(out.expanduser().resolve(), {run.stem: run.cell for run in grid.runs})
