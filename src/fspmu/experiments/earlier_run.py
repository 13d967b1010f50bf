"""An earlier run, opened again: its model, its images and what else it left behind."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fspmu.data.images import Images
from fspmu.data.sources import DATA_DIR, DataOptions, load_source
from fspmu.engine.checkpoint import load, load_tensors
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.experiments.experiment import OnRun
from fspmu.models.classifier import Classifier
from fspmu.pretraining.two_networks import training_mask
from fspmu.results.record import check_schema
from fspmu.results.store import read_json

Json = dict[str, Any]


@dataclass(frozen=True)
class OpenedRun:
    """An earlier run, with its images loaded again and checked against its fingerprint."""

    path: Path
    config: Json
    record: Json
    identity: str
    """The hash of its config."""
    model: Classifier
    images: Images
    test: Images | None
    truth: Tensor | None
    labels: dict[str, Tensor]


def open_run(options: OnRun) -> OpenedRun:
    """Load an earlier run and its images.

    Raises InputError when the run is not finished, or its images are not where they were or not what they were.
    """
    path, stored = read_run(options.run)
    try:
        return _open(path, stored["config"], read_json(path / "record.json"), stored["hash"], options)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__} {error} in its files; make it again with `fspmu pretrain`") from None


def read_run(run: Path) -> tuple[Path, Json]:
    """Return where a run lies, and what its config.json holds.

    Raises InputError for a folder that is no finished run with a model that was trained on a data set.
    """
    path = run.expanduser().resolve()
    if not (path / "config.json").exists():
        raise InputError(f"{path} is no run folder (no config.json); make one with `fspmu pretrain`")
    stored = read_json(path / "config.json")
    check_schema(stored, path / "config.json")
    if not (path / "done").exists():
        raise InputError(f"{path} is not finished; run the command that made it again with --resume")
    config = stored.get("config")
    if not isinstance(config, dict):
        raise InputError(f"{path} is damaged: config.json holds no config; make it again with `fspmu pretrain`")
    if config.get("command") == "repair":
        raise InputError(f"{path} holds a repaired model of your own; `fspmu predict` works on it, and `fspmu repair` again, with --forget if you know more")
    if "data" not in config:
        raise InputError(f"{path} holds no model to work on, it was made by `fspmu {config.get('command')}`; give the folder of `fspmu pretrain`")
    return path, stored


def _open(path: Path, config: Json, record: Json, identity: str, options: OnRun) -> OpenedRun:
    check_schema(record, path / "record.json")
    asked = {name: value for name, value in config["data"].items() if name not in ("dataset", "fingerprint")}
    recorded = None if os.environ.get(DATA_DIR) else record["data"]["data_dir"]
    data_dir = options.data_dir or (Path(recorded) if recorded and Path(recorded).is_dir() else None)
    source = load_source(options.dataset or config["data"]["dataset"], DataOptions(**asked, data_dir=data_dir))
    if source.train.fingerprint() != config["data"]["fingerprint"]:
        raise InputError(f"the images of {source.name} are not those {path} was trained on; give the right ones with --dataset or --data-dir")
    model, labels = load(path), load_tensors(path / "labels.safetensors")
    preprocessing = model.description.preprocessing if model.description else source.train.preprocessing
    images = source.train.with_labels(labels["given"], model.class_names).prepared_as(preprocessing)
    test = None if source.test is None else source.test.with_labels(labels["test"], model.class_names).prepared_as(preprocessing)
    record = record | {"data": record["data"] | {"evaluation": source.evaluation}}  # a record of an older version does not say
    return OpenedRun(path, config, record, identity, model, images, test, labels.get("true"), labels)


def seed_of(options: OnRun, opened: OpenedRun) -> int:
    """Return the seed asked for, else that of the run."""
    return int(opened.config["seed"] if options.compute.seed is None else options.compute.seed)


def left_behind(opened: OpenedRun) -> dict[str, Any]:
    """Return what a run left behind beside its model, as keywords of `find_label_issues`: what was set aside before its training is not to be judged."""
    aside = opened.labels.get("held_out")
    return {"history": history_of(opened), "fresh": left_out_of_training(opened) if aside is None else aside, "unseen": aside}


def history_of(opened: OpenedRun) -> Tensor | None:
    """Return the margins of the given labels in every epoch of the run's training, (E, N) float16; None where nobody kept them."""
    path = opened.path / "sample_history.safetensors"
    margins = load_tensors(path).get("margins") if path.is_file() else None
    return None if margins is None or not len(margins) else margins


def left_out_of_training(opened: OpenedRun) -> Tensor | None:
    """Return which images the run held out of its training, to choose between two networks, (N,) bool; None where it trained on all."""
    settings = opened.config.get("settings") or {}
    if opened.config.get("command") != "pretrain" or "keep" not in settings or opened.config.get("weights"):
        return None
    mask = ~training_mask(opened.images, settings["keep"], settings["held_out"], Run(seed=opened.config["seed"], evaluation=opened.test))
    return mask if bool(mask.any()) else None
