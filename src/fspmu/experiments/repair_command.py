"""`fspmu repair`: a model by name and images from anywhere, into one folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fspmu.detection import DEFAULT
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.opening import open_model
from fspmu.errors import InputError, check_settings, choose
from fspmu.experiments.folders import Outcome, finish, finished, folder_for, make_run, precision_config
from fspmu.experiments.repair_options import RepairModel
from fspmu.experiments.reporting import report_after
from fspmu.repairing import carry_out
from fspmu.results.store import config_hash
from fspmu.stages.asking import KEEPS, Asked, check_given, check_repeated, config_of
from fspmu.stages.choosing import Choice, choose_detection
from fspmu.stages.taking_in import take_in
from fspmu.stages.writing import check_out, write_repair


def repair_model(options: RepairModel) -> Outcome:
    """Repair the named model as asked, into a folder.

    Raises InputError for everything that is wrong about it, before anything is written.
    """
    _check(options)
    run = make_run(options.compute, None, options.compute.seed or 0)
    intake = options.intake
    opened = open_model(
        options.model,
        weights=options.weights,
        key=options.weights_key,
        arguments=_arguments(options.model_arguments),
        head=intake.head,
        size=intake.size,
        mean=intake.mean,
        std=intake.std,
    )
    taken = take_in(opened, options.dataset, options.evaluation, intake, run, class_map=options.class_map, data_dir=options.data_dir)
    asked = Asked(
        detector=options.detector,
        detector_settings=options.detector_settings,
        cut=options.cut,
        cut_settings=options.cut_settings,
        split=options.split,
        forget=options.forget,
        method=options.method,
        preset=options.preset,
        settings=options.settings,
        keep=options.keep,
        fit=options.fit,
        corrections=options.corrections,
        rounds=options.rounds,
    )
    config = config_of(taken, asked, run) | precision_config(options.compute)
    out = options.compute.out or Path("runs") / f"{taken.name}-repair-{config_hash(config)[:8]}"
    with folder_for(out, config, options.compute, run) as folder:
        if folder.finished:
            return finished(folder)
        result = carry_out(taken, asked, run, config)
        if result.work is not None and run.processes.main:
            write_repair(result.work, result.issues, result.record, folder.path)
        return report_after(finish(folder, result.record, run), run)


def _check(options: RepairModel) -> None:
    """Refuse what can be seen to be wrong before a model is built and a data set is read."""
    for part in (options.compute, options.split, options.settings):
        if part is not None:
            check_settings(part)
    check_out(options.compute.out, options.dataset, options.evaluation)
    choice = choose_detection(options.detector, options.detector_settings, options.cut, options.cut_settings)
    check_given(options.forget, _finding_asked_for(options, choice))
    check_repeated(options.rounds, choice, options.forget)
    choose(KEEPS, options.keep, "value of keep")
    if options.forget is not None and not options.forget.expanduser().is_file():
        raise InputError(f"--forget {options.forget} is no file; give a table of issues, a mask, indices or ids as .csv, .npy, .json or .parquet")
    if options.forget is None and options.detector == "known":
        raise InputError("there is no --detector known here, since nobody knows the true labels of your images; give what is known to be wrong with --forget")
    if options.forget is None and "history" in choice.how.needs_with(choice.settings):
        raise InputError(
            f"--detector {options.detector} reads how the model learned each sample in its own training, which nobody kept; "
            "--detector probe trains a fresh network and keeps that instead"
        )


def _finding_asked_for(options: RepairModel, choice: Choice) -> list[str]:
    """Return the flags that say how to find wrong labels, as far as they say anything but what happens anyway."""
    usual, apart = choose_detection(options.detector, None, options.cut, None), list[str]()
    if options.detector != DEFAULT:
        apart.append(f"--detector {options.detector}")
    if options.cut is not None:
        apart.append(f"--cut {options.cut}")
    for ours, theirs in ((choice.settings, usual.settings), (choice.cut_settings, usual.cut_settings), (options.split, SplitSettings())):
        told = asdict(theirs)
        apart += [f"--{name.replace('_', '-')} {value}" for name, value in asdict(ours).items() if value != told[name]]
    return apart


def handed_back(record: Mapping[str, Any]) -> str:
    """Return which model the folder of a finished repair holds, as a line for the terminal."""
    measured = record["evaluation"]
    if measured is None:
        return "handed back: the repaired model; nothing was measured"
    if measured["handed_back"] == "original":
        return "handed back: the model as it was; --keep always hands back the repaired one, come what may"
    return "handed back: the repaired model"


def _arguments(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"--model-arguments is no JSON ({error}); give an object such as '{{\"in_chans\": 1}}'") from None
    if not isinstance(found, dict):
        raise InputError(f"--model-arguments is {text}, but it must be a JSON object such as '{{\"in_chans\": 1}}'")
    return found
