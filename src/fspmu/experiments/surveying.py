"""A run -> every detector and every cut on its model -> a record with a row for each, and the scores."""

from dataclasses import asdict
from pathlib import Path

from fspmu.engine.checkpoint import save_tensors
from fspmu.errors import check_settings
from fspmu.experiments.earlier_run import OpenedRun, left_behind, open_run, seed_of
from fspmu.experiments.folders import Json, Outcome, finish, finished, folder_for, make_run, precision_config
from fspmu.experiments.survey_options import Survey
from fspmu.results.record import make_record
from fspmu.stages.surveying import plan_survey, survey


def survey_run(options: Survey) -> Outcome:
    """Write how every detector and every cut judges the labels of a run: `record.json`, and the scores (N,) of each detector.

    Raises InputError for what the options get wrong, before anything is written.
    """
    for part in (options.compute, options.split, options.survey):
        check_settings(part)
    opened = open_run(options)
    beside = left_behind(opened)
    detectors, _ = plan_survey(options.survey, beside["history"] is not None)
    config = _config(options, opened, list(detectors))
    out = options.compute.out or opened.path / "survey"
    run = make_run(options.compute, None, seed_of(options, opened))
    with folder_for(Path(out), config, options.compute, run) as folder:
        if folder.finished:
            return finished(folder)
        found = survey(opened.model, opened.images, options.survey, split=options.split, truth=opened.truth, **beside, run=run)
        if run.processes.main:
            save_tensors(folder.path / "scores.safetensors", found.scores)
        record = make_record(
            config=config,
            data=opened.record["data"],
            seconds=run.seconds,
            passes=run.passes,
            warnings=run.notices,
            machine=run.machine,
        )
        return finish(folder, record | {"survey": found.report}, run)


def _config(options: Survey, opened: OpenedRun, detectors: list[str]) -> Json:
    """Return what identifies a survey: the run by its config, the detectors by their names, and how they look and cut."""
    wishes = asdict(options.survey)
    wishes = {name: wishes[name] for name in wishes if name not in ("detectors", "probe", "cross_fit")} | {"detectors": detectors}
    base = {"command": "survey", "run": opened.identity, "seed": seed_of(options, opened), **precision_config(options.compute)}
    return base | {"survey": wishes, "split": asdict(options.split)}
