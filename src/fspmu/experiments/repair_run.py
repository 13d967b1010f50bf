"""Commands on an earlier run: detect, unlearn, evaluate, predict."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fspmu.data.images import Images
from fspmu.data.sources import load_unlabelled
from fspmu.data.split import indices_of
from fspmu.detection.label_issues import write_issues
from fspmu.engine.checkpoint import describe, load, save_model, save_tensors
from fspmu.engine.inference import accuracy_of, predict
from fspmu.engine.run import Run
from fspmu.errors import InputError, check_settings
from fspmu.experiments.drawing import check_picture, draw
from fspmu.experiments.earlier_run import OpenedRun, left_behind, open_run, seed_of
from fspmu.experiments.experiment import Detect, Evaluate, Predict, Unlearn
from fspmu.experiments.folders import Json, Outcome, finish, finished, folder_for, make_run, precision_config
from fspmu.experiments.pipeline import picture_config
from fspmu.experiments.reporting import report_after
from fspmu.models.adopt import Adopted
from fspmu.models.classifier import Classifier
from fspmu.preprocessing import Geometry, Preprocessing
from fspmu.results.record import make_record
from fspmu.results.store import read_json, write_text
from fspmu.stages.choosing import Choice, choose_detection
from fspmu.stages.deciding import mark_decided, read_decided
from fspmu.stages.finding import find_label_issues
from fspmu.stages.mending import Mended, say_if_worse, suitable_settings
from fspmu.stages.page_material import Seen, given_settings, write_if_possible
from fspmu.stages.rounds import check_rounds, config_of_rounds, repair_rounds
from fspmu.stages.writing import write_detection, write_predictions


def detect(options: Detect) -> Outcome:
    """Write the label issues of a run, as its model and a detector see them."""
    choice = _choice(options)
    opened = open_run(options)
    config = _config("detect", options, opened) | choice.config() | {"split": asdict(options.split)}
    out = options.compute.out or opened.path / f"detect-{_named(choice)}"
    run = make_run(options.compute, None, seed_of(options, opened))
    with folder_for(out, config, options.compute, run) as folder:
        if folder.finished:
            return finished(folder)
        found = find_label_issues(opened.model, opened.images, **_wanted(choice, options, opened), truth=opened.truth, run=run)
        if run.processes.main:
            write_detection(found, folder.path)
            write_issues(found.issues, folder.path / "label_issues.csv")
        record = make_record(
            config=config,
            data=opened.record["data"],
            detection=found.report,
            seconds=run.seconds,
            passes=run.passes,
            warnings=run.notices,
            machine=run.machine,
        )
        return finish(folder, record, run)


def unlearn(options: Unlearn) -> Outcome:
    """Write the repaired model of a run, and everything that shows what changed."""
    choice = _choice(options)
    check_rounds(options.rounds, choice)
    check_settings(options.picture)
    opened = open_run(options)
    settings = options.settings or suitable_settings(options.method, opened.model, options.preset)
    check_settings(settings)
    check_picture(options.picture, opened.images)
    decided = None if options.corrections is None else read_decided(options.corrections, opened.images, opened.test)
    config = _config("unlearn", options, opened) | {
        "data": opened.config["data"],
        "method": options.method,
        "settings": asdict(settings),
        **choice.config(),
        "split": asdict(options.split),
        **picture_config(options.picture),
        **config_of_rounds(options.rounds),
        **({} if decided is None else {"corrections": decided.digest()}),
    }
    name = f"unlearn-{options.method}-{_named(choice)}" + ("" if decided is None else f"-corrected-{decided.digest()[:8]}")
    out = options.compute.out or opened.path / name
    run = make_run(options.compute, opened.test, seed_of(options, opened))
    with folder_for(out, config, options.compute, run) as folder:
        if folder.finished:
            return finished(folder)
        asked: Json = {"method": options.method, "settings": settings, "finding": _wanted(choice, options, opened), "truth": opened.truth}
        repaired = repair_rounds(opened.model, opened.images, options.rounds, **asked, decided=decided, run=run)
        issues = repaired.issues if decided is None else mark_decided(repaired.issues, decided, opened.images.class_names)
        say_if_worse(repaired, run)
        if run.processes.main:
            _write_repair(repaired, issues, folder.path, opened)
            parts = {"detector": choice.settings, "cut": choice.cut_settings, "split": options.split, "method": settings, "rounds": options.rounds}
            spent = sum(run.seconds.values())
            seen = Seen(opened.images, repaired, issues, opened.model, opened.test, settings=given_settings(**parts), seconds=spent, seed=run.seed)
            if options.page and (trouble := write_if_possible(folder.path, seen)):
                run.notice(trouble)
            draw(options.picture, folder.path, opened.images.class_names, run.seed, run)
        record = make_record(
            config=config,
            data=opened.record["data"],
            pretraining=opened.record["pretraining"],
            detection=repaired.detection.report,
            unlearning=repaired.report,
            test_accuracy=repaired.test_accuracy,
            seconds=_with_training(run.seconds, opened.record["seconds"]),
            passes=_with_training(run.passes, opened.record["passes"]),
            warnings=run.notices,
            machine=run.machine,
        )
        done = finish(folder, record, run)
        return report_after(done, run) if options.page else done


def _with_training(own: Mapping[str, Any], before: Mapping[str, Any]) -> Json:
    """Return what the stages of a repair cost, and those of the run that it stands on, without its tests and what is done anew."""
    return {stage: spent for stage, spent in before.items() if stage != "evaluation"} | dict(own)


def _write_repair(repaired: Mended, issues: pd.DataFrame, folder: Path, opened: OpenedRun) -> None:
    write_detection(repaired.detection, folder)
    write_issues(issues, folder / "label_issues.csv")
    save_tensors(folder / "labels.safetensors", opened.labels)
    write_predictions(folder, repaired.detection.predictions, repaired.after, repaired.detection.split.retain)
    save_model(describe(repaired.model), folder)


def _config(command: str, options: Any, opened: OpenedRun) -> Json:
    """Return the part of a config that every command on a run shares: the run it started from, by its config, not by its place."""
    return {"command": command, "run": opened.identity, "seed": seed_of(options, opened), **precision_config(options.compute)}


def _choice(options: Detect) -> Choice:
    """Return detector and cut as asked for, after a look at everything that can be seen to be wrong before the run is opened."""
    for part in (options.compute, options.split):
        check_settings(part)
    return choose_detection(options.detector, options.detector_settings, options.cut, options.cut_settings)


def _named(choice: Choice) -> str:
    """Return the detector as a part of a folder's name, with its cut where that is not the detector's own."""
    return choice.detector if choice.cut == choice.how.cut else f"{choice.detector}-{choice.cut}"


def _wanted(choice: Choice, options: Detect, opened: OpenedRun) -> dict[str, Any]:
    """Return how `find_label_issues` is asked: with all that the run left behind, and without its test images, whose labels may be true ones."""
    how = {"detector": choice.detector, "settings": choice.settings, "cut": choice.cut, "cut_settings": choice.cut_settings, "split": options.split}
    return how | left_behind(opened)


def evaluate(options: Evaluate) -> Outcome:
    """Measure a run's model on its evaluation and training images; with `out`, write the record there."""
    check_settings(options.compute)
    opened = open_run(options)
    config = _config("evaluate", options, opened)
    run = make_run(options.compute, opened.test, seed_of(options, opened))
    if options.compute.out is None:
        return Outcome(opened.path, _measure(opened, config, run))
    with folder_for(options.compute.out, config, options.compute, run) as folder:
        return finished(folder) if folder.finished else finish(folder, _measure(opened, config, run), run)


def _measure(opened: OpenedRun, config: Json, run: Run) -> Json:
    model = run.place(opened.model)

    def measure(images: Images, truth: Tensor | None) -> Json:
        images = images.to(run.device)
        with run.timed("evaluation"):
            logits = predict(model, images, run).logits
        given = images.given_labels.cpu()
        right = logits.argmax(dim=1) == given
        per_class = {name: float(right[given == k].float().mean()) if bool((given == k).any()) else None for k, name in enumerate(images.class_names)}
        return {"accuracy": accuracy_of(logits, given), "true_accuracy": None if truth is None else accuracy_of(logits, truth), "per_class": per_class}

    images, truth = opened.images, opened.truth
    if (aside := opened.labels.get("held_out")) is not None and bool(aside.any()):  # the model was not trained on these
        images, truth = images.subset(indices_of(~aside)), None if truth is None else truth[~aside]
    figures = {"train": measure(images, truth), "test": None if opened.test is None else measure(opened.test, None)}
    record = make_record(
        config=config,
        data=opened.record["data"],
        test_accuracy={"last": figures["test"]["accuracy"]} if figures["test"] else None,
        seconds=run.seconds,
        passes=run.passes,
        warnings=run.notices,
        machine=run.machine,
    )
    return record | {"evaluation": figures}


def predict_images(options: Predict) -> tuple[pd.DataFrame, Path | None]:
    """Return the predicted class of every image, with its probability; with `out`, write `predictions.csv` there."""
    check_settings(options.compute)
    model = load(options.run, code=options.model)
    try:
        identity, (channels, height, width) = read_json(options.run / "config.json")["hash"], read_json(options.run / "record.json")["data"]["shape"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{options.run} is damaged: {type(error).__name__} {error} in its files; make it again with `fspmu pretrain`") from None
    geometry = (model.geometry if isinstance(model, Adopted) else None) or Geometry((height, width), channels)
    run = make_run(options.compute, None, options.compute.seed or 0)
    with warnings.catch_warnings(record=True) as left_out:
        warnings.simplefilter("always")
        pixels, paths = load_unlabelled(options.images, geometry, options.skip_unreadable)
    for warning in left_out:
        run.notice(str(warning.message))
    preprocessing = model.description.preprocessing if model.description else Preprocessing()
    images = Images(pixels, torch.zeros(len(pixels), dtype=torch.int64), model.class_names, ids=paths, preprocessing=preprocessing)
    if options.compute.out is None:
        return _predict(model, images, run), None
    config = {"command": "predict", "images": images.fingerprint(), "run": identity}
    with folder_for(options.compute.out, config, options.compute, run) as folder:
        path = folder.path / "predictions.csv"
        if folder.finished:
            return pd.read_csv(path, dtype={"path": str, "predicted_label": str}, keep_default_na=False), path
        table = _predict(model, images, run)
        if run.processes.main:
            write_text(path, table.to_csv(index=False, float_format="%.6g"))
            folder.finish()
        return table, path


def _predict(model: Classifier, images: Images, run: Run) -> pd.DataFrame:
    with run.timed("prediction"):
        probabilities = predict(run.place(model), images.to(run.device), run).logits.softmax(1)
    confidence, label = probabilities.max(dim=1)
    names = [model.class_names[k] for k in label.tolist()]
    return pd.DataFrame({"path": list(images.ids), "predicted_label": names, "confidence": confidence.tolist()})
