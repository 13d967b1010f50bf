"""The commands. Flags are the fields of frozen dataclasses; a handler imports what it needs and nothing before."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from fspmu import __version__
from fspmu.errors import EXPECTED, choose, launched, leave_after, say_no_more
from fspmu.experiments.flags import first_look, parse

Handler = Callable[[list[str]], None]

COMMANDS: dict[str, str] = {
    "repair": "your own model and images: find the wrong labels, repair the model, hand both back",
    "apply": "write corrected labels, or a corrected copy of a data set",
    "demo": "digits, wrong labels, a network that memorises them, two repairs: a minute",
    "inspect": "print what is understood of a data set, before any compute",
    "pretrain": "train a network on labels that may be wrong",
    "detect": "find the samples whose label looks wrong to a trained network",
    "survey": "judge the labels of a run by every detector and every cut",
    "unlearn": "make it forget them, and recover on the rest",
    "evaluate": "measure a trained or repaired network",
    "predict": "predict the classes of images",
    "report": "write the page of a repair: what was found, what changed, all suspects with pictures",
    "review": "serve that page on this machine, and save each decision as it is made",
    "grid": "make the runs of a whole table, on this machine or on a Ray cluster",
    "table": "print a table from the records of its runs",
    "methods": "list data sets, models, methods, detectors, and what extras add",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code: 0 done, 1 failed, 2 bad input, 130 stopped."""
    try:
        run_command(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        say_no_more()
    except EXPECTED as error:
        leave_after(error)
    _part()
    sys.exit(0)


def _part() -> None:
    """Take leave of the other processes, where a launcher started several and they were joined."""
    if launched()[1] > 1 and "fspmu.engine.processes" in sys.modules:
        import_module("fspmu.engine.processes").leave()


def run_command(arguments: list[str]) -> None:
    """Run the command named by the first argument with the rest as its flags."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = "\n".join(f"  {name:<{width}}  {about}" for name, about in COMMANDS.items())
        print(f"usage: fspmu COMMAND [flags]\n\nRepair image classifiers trained on noisy labels.\n\n{lines}\n")
        print("fspmu COMMAND --help explains every flag; fspmu --version.")
        return
    if arguments[0] == "--version":
        print(f"fspmu {__version__}")
        return
    name, *flags = arguments
    choose(COMMANDS, name, "command")
    handler: Handler = globals()[f"_{name}"]
    handler(flags)


def emit(result: dict[str, Any], as_json: bool, tables: Sequence[Any] = (), lines: Sequence[str] = (), first: Sequence[str] = ()) -> None:
    """Print first lines, tables and last lines, or one JSON object on standard output with the rest on standard error; the main process alone."""
    if launched()[0] > 0:
        return
    from fspmu.report.tables import show

    show(tables, lines, first, to_stderr=as_json)
    if as_json:
        print(json.dumps(result, sort_keys=True))


def _emit_outcome(outcome: Any, as_json: bool) -> None:
    from fspmu.report.tables import run_table, warning_of

    notes = [f"note: {text}" for text in outcome.record["warnings"]]  # of a fresh run these were said while it ran
    first = notes if outcome.already_done else warning_of(outcome.record)
    emit(outcome.record | {"folder": str(outcome.folder)}, as_json, run_table(outcome.record), _last_lines(outcome), first)


def _last_lines(outcome: Any) -> list[str]:
    from fspmu.experiments.reporting import report_line

    return [_where(outcome), *report_line(outcome.folder)]


def _where(outcome: Any) -> str:
    return f"{'already done, nothing changed' if outcome.already_done else 'written'}: {outcome.folder}"


def _families_of_finding(look: dict[str, str | None]) -> dict[str, Any]:
    """Return the settings whose flags there are, by the detector and the cut that the flags name."""
    from fspmu.stages.choosing import choose_detection

    choice = choose_detection(str(look["detector"]), cut=look["cut"])
    return {"detector_settings": choice.settings, "cut_settings": choice.cut_settings}


def _families_of_repair(flags: list[str]) -> tuple[dict[str, Any], bool]:
    """Return the settings whose flags a repair has, by what the flags name, and whether they name a preset."""
    from fspmu.detection import DEFAULT
    from fspmu.stages.mending import suitable_settings

    look = first_look(flags, detector=DEFAULT, cut=None, method="fspmu", preset=None, forget=None)
    settings = suitable_settings(str(look["method"]), None, look["preset"], known=look["forget"] is not None)
    return _families_of_finding(look) | {"settings": settings}, look["preset"] is not None


def _repair(flags: list[str]) -> None:
    from fspmu.experiments.repair_options import RepairModel

    options = parse("repair", RepairModel, flags, **_families_of_repair(flags)[0])
    options = dataclasses.replace(options, fit=not any(flag.partition("=")[0] == "--lr" for flag in flags))
    from fspmu.experiments.repair_command import handed_back, repair_model
    from fspmu.report.tables import run_table

    outcome = repair_model(options)
    notes = [f"note: {text}" for text in outcome.record["warnings"]] if outcome.already_done else []
    last = [handed_back(outcome.record), *_last_lines(outcome)]
    emit(outcome.record | {"folder": str(outcome.folder)}, options.compute.json, run_table(outcome.record), last, notes)


def _apply(flags: list[str]) -> None:
    from fspmu.experiments.apply_options import Apply

    options = parse("apply", Apply, flags)
    from fspmu.experiments.applying import apply_corrections

    result, tables, lines = apply_corrections(options)
    emit(result, options.json, tables, lines)


def _demo(flags: list[str]) -> None:
    from fspmu.experiments.experiment import Demo

    options = parse("demo", Demo, flags)
    demo = import_module("fspmu.experiments.demo")
    result, tables, lines, first = demo.run_demo(options)
    emit(result, options.compute.json, tables, lines, first)


def _inspect(flags: list[str]) -> None:
    from fspmu.experiments.experiment import Inspect

    options = parse("inspect", Inspect, flags)
    from fspmu.experiments.inspecting import inspect_dataset

    result, tables, lines = inspect_dataset(options)
    emit(result, options.json, tables, lines)


def _pretrain(flags: list[str]) -> None:
    from fspmu.experiments.experiment import Pretrain
    from fspmu.pretraining import METHODS

    look = first_look(flags, method="ce")
    options = parse("pretrain", Pretrain, flags, settings=choose(METHODS, str(look["method"]), "method").settings)
    from fspmu.experiments.pipeline import pretrain

    _emit_outcome(pretrain(options), options.compute.json)


def _detect(flags: list[str]) -> None:
    from fspmu.detection import DEFAULT
    from fspmu.experiments.experiment import Detect

    options = parse("detect", Detect, flags, **_families_of_finding(first_look(flags, detector=DEFAULT, cut=None)))
    from fspmu.experiments.repair_run import detect

    _emit_outcome(detect(options), options.compute.json)


def _survey(flags: list[str]) -> None:
    from fspmu.experiments.survey_options import Survey

    options = parse("survey", Survey, flags)
    from fspmu.experiments.surveying import survey_run
    from fspmu.report.tables import survey_lines, survey_tables

    outcome = survey_run(options)
    lines = [*survey_lines(outcome.record["survey"]), _where(outcome)]
    emit(outcome.record | {"folder": str(outcome.folder)}, options.compute.json, survey_tables(outcome.record["survey"]), lines)


def _unlearn(flags: list[str]) -> None:
    from fspmu.experiments.experiment import Unlearn

    families, named = _families_of_repair(flags)
    options = parse("unlearn", Unlearn, flags, **families)
    from fspmu.engine.checkpoint import load
    from fspmu.experiments.earlier_run import read_run
    from fspmu.experiments.repair_run import unlearn
    from fspmu.stages.mending import suitable_settings

    if not named:  # the run is known by now, and with it the preset that suits it; explicit flags win over either
        read_run(options.run)
        options = parse("unlearn", Unlearn, flags, **families | {"settings": suitable_settings(options.method, load(options.run))})
    _emit_outcome(unlearn(options), options.compute.json)


def _evaluate(flags: list[str]) -> None:
    from fspmu.experiments.experiment import Evaluate

    options = parse("evaluate", Evaluate, flags)
    from fspmu.experiments.repair_run import evaluate
    from fspmu.report.tables import evaluation_table

    outcome = evaluate(options)
    emit(outcome.record, options.compute.json, [evaluation_table(outcome.record["evaluation"])], [f"measured: {outcome.folder}"])


def _predict(flags: list[str]) -> None:
    from fspmu.experiments.experiment import Predict

    options = parse("predict", Predict, flags)
    from fspmu.experiments.repair_run import predict_images
    from fspmu.report.tables import prediction_table

    table, path = predict_images(options)
    rows = table.to_dict("records")
    emit(
        {"predictions": rows, "path": None if path is None else str(path)}, options.compute.json, [prediction_table(rows)], [f"written: {path}"] if path else []
    )


def _report(flags: list[str]) -> None:
    from fspmu.experiments.report_options import Report

    options = parse("report", Report, flags)
    from fspmu.experiments.reporting import make_report

    result, lines = make_report(options)
    emit(result, options.json, lines=lines)


def _review(flags: list[str]) -> None:
    from fspmu.experiments.report_options import Review

    options = parse("review", Review, flags)
    from fspmu.experiments.reviewing import review

    review(options)


def _grid(flags: list[str]) -> None:
    from fspmu.experiments.experiment import RunGrid

    options = parse("grid", RunGrid, flags)
    from fspmu.experiments.grid_launch import run_grid

    result, lines = run_grid(options)
    emit(result, options.json, lines=lines)
    if result["failed"] or result.get("unkept"):
        sys.exit(1)


def _table(flags: list[str]) -> None:
    from fspmu.experiments.experiment import ShowTable

    options = parse("table", ShowTable, flags)
    from fspmu.experiments.tabulating import tabulate

    emit({}, False, lines=[tabulate(options)])


def _methods(flags: list[str]) -> None:
    from fspmu.experiments.experiment import Methods

    options = parse("methods", Methods, flags)
    from fspmu.experiments.inspecting import list_methods

    result, tables, lines = list_methods()
    emit(result, options.json, tables, lines)
