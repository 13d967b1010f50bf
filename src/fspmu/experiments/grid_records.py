"""A file of records beside a grid: what it holds was made before, on whatever machine, and is not made again; what is made now is added to it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fspmu.errors import InputError
from fspmu.experiments.experiment import Pretrain, Unlearn
from fspmu.experiments.grid_jobs import SIZES, Grid, Job, method_settings, settings_of
from fspmu.experiments.tabulating import results_of
from fspmu.report.result_table import Result
from fspmu.report.slim_records import load_results, save_results
from fspmu.results.store import common, differences
from fspmu.stages.choosing import choose_detection
from fspmu.stages.rounds import config_of_rounds

Json = dict[str, Any]


def recorded(path: Path | None, grid: Grid) -> list[Result]:
    """Return the results of a grid in a file of records; none where there is no file yet.

    Raises InputError when the file is no such file.
    """
    return [] if path is None or not path.exists() else load_results([path], grid.layout)


def left_over(jobs: Sequence[Job], known: Sequence[Result]) -> list[Job]:
    """Return the jobs whose result is not known, and the pretrainings that these stand on, known or not: their networks are needed.

    Raises InputError when a known result was made by other settings than its job has now.
    """
    of_cells = {(result.cell, result.seed): result.record["config"] for result in known}
    unknown = []
    for job in jobs:
        config = of_cells.get((job.run.cell, job.seed))
        if config is None:
            unknown.append(job)
        elif apart := _changed(job, config):
            raise InputError(f"{job.title} is in the records, but otherwise than now: {apart[0]}; give another file to --records")
    folders = {job.folder for job in unknown} | {job.needs for job in unknown}
    return [job for job in jobs if job.folder in folders]


def check_precision_of(known: Sequence[Result], jobs: Sequence[Job], asked: str) -> None:
    """Raise InputError when a job would be another seed of a cell whose known results are of another precision than is asked for: no mean takes both."""
    computed = {result.cell: (result.record.get("machine") or {}).get("precision") for result in known}
    for job in jobs:
        theirs = computed.get(job.run.cell)
        if asked != "auto" and theirs not in (None, asked):
            raise InputError(f"{job.title} would stand in one mean with records of --precision {theirs}, not {asked}; give that, or another file to --records")


def _changed(job: Job, then: Json) -> list[str]:
    """Return what a run of `job` would have otherwise now than one that had the config `then`; what there is only now, or was only then, does not count."""
    now = json.loads(json.dumps(_asked(job), default=str))
    return differences(common(then, now), common(now, then))


def _asked(job: Job) -> Json:
    """Return what `job` says of the config of its run, under the names that are used there."""
    options = job.options
    if isinstance(options, Pretrain):
        classes = SIZES[options.dataset][2] if options.dataset in SIZES else None
        model = {"name": options.model, "width": options.width, "augment": options.augment}
        return {
            "data": _data(options),
            "noise": asdict(options.noise),
            "model": {name: value for name, value in model.items() if value is not None},
            "method": options.method,
        } | ({} if classes is None else {"settings": asdict(method_settings(options, classes))})
    if isinstance(options, Unlearn):
        choice = choose_detection(options.detector, options.detector_settings, options.cut, options.cut_settings)
        repair = {"method": options.method, "settings": asdict(settings_of(options, job.run.start)), "split": asdict(options.split)}
        return choice.config() | repair | config_of_rounds(options.rounds) | {"data": _data(job.run.start)}
    looking = {name: value for name, value in asdict(options.survey).items() if name != "detectors"}  # a record names those that it found evidence for
    return {"survey": looking, "split": asdict(options.split)}


def _data(start: Pretrain) -> Json:
    return {"dataset": start.dataset} | {name: value for name, value in asdict(start.data).items() if name != "data_dir"}


def joined(known: Sequence[Result], made: Sequence[Result]) -> list[Result]:
    """Return both; of two results of one cell and seed the one that was known."""
    cells = {(result.cell, result.seed) for result in known}
    return [*known, *(result for result in made if (result.cell, result.seed) not in cells)]


def add_made(path: Path, grid: Grid, out: Path) -> list[Result]:
    """Add the finished runs of a grid below `out` to a file of records; return all that it holds then."""
    results = joined(recorded(path, grid), results_of(grid, out))
    save_results(path, grid.layout, results)
    return results
