"""Data -> noise -> training into a folder with a record; what comes after it reads that folder."""

import hashlib
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fspmu.data.images import Images
from fspmu.data.label_noise import NoiseOptions, NoisySource, inject
from fspmu.data.sources import DATA_DIR, NAMES, DataOptions, Source, load_source
from fspmu.engine.checkpoint import build_model, describe, save_model, save_tensors
from fspmu.engine.inference import evaluate, predict
from fspmu.engine.public_weights import lay_into, read_weights
from fspmu.engine.run import Run
from fspmu.errors import InputError, check_settings, check_share, choose
from fspmu.experiments.drawing import check_picture, draw
from fspmu.experiments.experiment import Pretrain, Tsne
from fspmu.experiments.folders import Json, Outcome, finish, finished, folder_for, make_run, precision_config
from fspmu.models import MODELS, WIDTHS
from fspmu.models.classifier import Description
from fspmu.preprocessing import AUGMENTATIONS
from fspmu.pretraining import METHODS, Pretraining
from fspmu.pretraining.trained import SampleHistory, Trained
from fspmu.results.record import make_record
from fspmu.results.store import config_hash
from fspmu.stages.writing import check_out, write_predictions


def data_config(dataset: str, options: DataOptions, train: Images) -> Json:
    """Return what identifies the data: how it was asked for, and its fingerprint; not where CIFAR lies on this machine."""
    asked = {name: value for name, value in asdict(options).items() if name != "data_dir"}
    place = Path(dataset.removeprefix("hf:")).expanduser()
    if dataset not in NAMES and place.exists():  # a run is opened again from anywhere
        dataset = f"{'hf:' if dataset.startswith('hf:') else ''}{place.resolve()}"
    return {"dataset": dataset, **asked, "fingerprint": train.fingerprint()}


@dataclass(frozen=True)
class Prepared:
    """A data set with its noise, and the network to train on it; nothing has been computed yet."""

    source: Source
    noisy: NoisySource
    train: Images
    test: Images | None
    description: Description


def noisy_source(dataset: str, data: DataOptions, noise: NoiseOptions, seed: int) -> tuple[Source, NoisySource]:
    """Return a data set as it is, and with the noise that the options ask for."""
    source = load_source(dataset, data)
    noise_seed = seed if noise.noise_seed is None else noise.noise_seed
    return source, inject(source, noise, Run(seed=noise_seed).generator("noise"), noise_seed)


def prepare(options: Pretrain, seed: int) -> Prepared:
    """Return what `options` ask to be trained.

    Raises InputError for everything that they get wrong.
    """
    source, noisy = noisy_source(options.dataset, options.data, options.noise, seed)
    train, test = noisy.train, noisy.test
    if options.augment is not None:
        choose(AUGMENTATIONS, options.augment, "augmentation")
        wanted = train.preprocessing.viewed(options.augment, train.pixels.shape[2:])
        train, test = train.prepared_as(wanted), None if test is None else test.prepared_as(wanted)
    check_picture(options.picture, train)
    name = options.model or ("smallcnn" if min(train.pixels.shape[2:]) < 16 else "preactresnet18")
    choose(MODELS, name, "model")
    if options.width is not None and options.width < 1:
        raise InputError(f"--width is {options.width}, but a layer has at least 1 channel")
    arguments = {"width": options.width or WIDTHS[name], "channels": train.pixels.shape[1]}
    height, width = train.pixels.shape[2:]
    description = Description(name, arguments, train.class_names, train.preprocessing, trained_by=options.method, size=(height, width))
    return Prepared(source, noisy, train, test, description)


def picture_config(picture: Tsne) -> Json:
    """Return the picture where one is wanted: a run without one is another run only then."""
    return {"picture": asdict(picture)} if picture.tsne else {}


def pretrain(options: Pretrain) -> Outcome:
    """Train a network as `options` ask, into a run folder.

    Raises InputError for everything that they get wrong, before anything is written.
    """
    method = choose(METHODS, options.method, "method")
    asked = options.settings or method.settings
    _check(options, asked)
    seed = options.compute.seed or 0
    prepared = prepare(options, seed)
    train, test, description = prepared.train, prepared.test, prepared.description
    settings, chosen = suited_settings(method, asked, options, train.num_classes)
    config = {
        "command": "pretrain",
        "data": data_config(options.dataset, options.data, prepared.source.train),
        "noise": _noise_config(options, train.given_labels),
        "model": {"name": description.name, **description.arguments, "augment": train.preprocessing.augment},
        "method": options.method,
        "settings": asdict(settings),
        "seed": seed,
        **({"weights": _fingerprint(options)} if options.weights else {}),
        **picture_config(options.picture),
        **precision_config(options.compute),
    }
    out = options.compute.out or Path("runs") / _name(options, prepared.source.name, config)
    run = make_run(options.compute, test, seed)
    with folder_for(out, config, options.compute, run) as folder:
        if folder.finished:
            return finished(folder)
        for note in (*prepared.source.notes, *prepared.noisy.notes, *chosen):
            run.notice(note)
        noise = {"flip_rate": prepared.noisy.flip_rate} if options.noise.noise_mode != "none" else {}
        with run.timed("pretraining"):
            trained = (
                _taken(options, description, run, len(train))
                if options.weights
                else method.pretrain(train.to(run.device), lambda generator: build_model(description, generator), settings, run)
            )
        seen = predict(trained.models[0], train.to(run.device), run) if options.picture.tsne else None
        if run.processes.main:
            _save_labels(folder.path, prepared, trained.held_out, with_truth=bool(noise))
            _save_trained(folder.path, trained, options.method)
            if seen is not None:
                write_predictions(folder.path, seen, None, torch.ones(len(train), dtype=torch.bool))
                draw(options.picture, folder.path, train.class_names, seed, run)
        accuracies = run.accuracies("pretraining", "test_accuracy" if trained.kept == "net1" else f"test_accuracy_{trained.kept}")
        record = make_record(
            config=config,
            data=describe_data(prepared.source, train, test, noise | {"data_dir": _data_dir(options.data)}),
            pretraining={"method": options.method, "settings": asdict(settings), "passes": _passes_of_training(run), **_pair(trained, run)},
            test_accuracy=_last_and_best(accuracies),
            seconds=run.seconds,
            passes=run.passes,
            warnings=run.notices,
            machine=run.machine,
        )
        return finish(folder, record, run)


def _check(options: Pretrain, settings: Any) -> None:
    """Refuse what can be seen to be wrong before a data set is read."""
    for part in (settings, options.compute, options.picture):
        check_settings(part)
    check_share(options.assumed_rate, "--assumed-rate")
    if options.weights_key is not None and options.weights is None:
        raise InputError(f"--weights-key {options.weights_key} says where weights lie in a file, and none is given; add --weights, or leave it out")
    check_out(options.compute.out, options.dataset)


def _passes_of_training(run: Run) -> Json:
    """Return the sample passes of all stages that training had, without those of tests."""
    stages = [passes for stage, passes in run.passes.items() if stage != "evaluation"]
    return {way: sum(passes[way] for passes in stages) for way in ("forward", "backward")}


def _fingerprint(options: Pretrain) -> str:
    assert options.weights is not None
    if not options.weights.is_file():
        raise InputError(f"{options.weights} does not exist; give a file of weights with --weights")
    return hashlib.sha256(options.weights.read_bytes() + str(options.weights_key).encode()).hexdigest()[:16]


def _taken(options: Pretrain, description: Description, run: Run, samples: int) -> Trained:
    """Return the network that somebody else trained; nobody knows the history of its samples."""
    assert options.weights is not None
    model = lay_into(build_model(description), read_weights(options.weights, options.weights_key), options.weights)
    model = run.place(model).eval()
    run.log(0, test_accuracy=evaluate(model, run))
    return Trained((model,), SampleHistory(samples, run))


def _save_trained(folder: Path, trained: Trained, method: str) -> None:
    for place, model in zip((folder, folder / "other"), trained.models, strict=False):
        save_model(describe(model, trained_by=method), place)
    save_tensors(folder / "sample_history.safetensors", {"margins": trained.history.margins})
    if trained.sets:
        save_tensors(folder / "trusted.safetensors", dict(trained.sets))


def suited_settings(method: Pretraining, settings: Any, options: Pretrain, num_classes: int) -> tuple[Any, list[str]]:
    """Return the settings with what depends on the noise chosen, and a line that says what was chosen."""
    situation = options.situation(num_classes)
    suited = method.suited_to(settings, situation)
    names = [field.name for field in fields(suited) if getattr(settings, field.name) is None]
    if not names:
        return suited, []
    values = ", ".join(f"--{name.replace('_', '-')} {getattr(suited, name):g}" for name in names)
    noise = f"{'an assumed ' if options.assumes_noise else ''}{situation.noise_mode} noise of {situation.noise_rate:g}"
    return suited, [f"{options.method} chose for {noise} and {num_classes} classes: {values}"]


def _pair(trained: Trained, run: Run) -> Json:
    """Return what a record says of two networks: which was kept, and the accuracy of both together."""
    if len(trained.models) == 1:
        return {}
    return {"kept": trained.kept, "ensemble": _last_and_best(run.accuracies("pretraining", "test_accuracy_ensemble"))}


def _last_and_best(accuracies: list[float]) -> Json | None:
    return {"last": accuracies[-1], "best": max(accuracies)} if accuracies else None


def _data_dir(options: DataOptions) -> str | None:
    """Return where CIFAR was looked for: in the record, so that the run is opened again without a flag, and not in the config."""
    place = options.data_dir or os.environ.get(DATA_DIR)
    return str(Path(place).expanduser().resolve()) if place else None


def _name(options: Pretrain, source: str, config: Json) -> str:
    noise = [options.noise.noise_mode, f"{options.noise.noise_rate:g}"] if options.noise.noise_mode != "none" else []
    return "-".join([re.sub(r"[^\w.-]+", "_", source), *noise, options.method, config_hash(config)[:8]])


def _save_labels(folder: Path, prepared: Prepared, held_out: Tensor | None, *, with_truth: bool) -> None:
    labels = {"given": prepared.train.given_labels} | ({} if held_out is None else {"held_out": held_out})
    if with_truth:
        labels |= {"true": prepared.noisy.true_labels, "slots": prepared.noisy.slots}
    if prepared.test is not None:
        labels["test"] = prepared.test.given_labels
    save_tensors(folder / "labels.safetensors", labels)


def _noise_config(options: Pretrain, given_labels: Tensor) -> Json:
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options.noise).items()}
    return asked | {"labels": hashlib.sha256(given_labels.numpy().tobytes()).hexdigest()[:16]}


def describe_data(source: Source, train: Images, test: Images | None, extra: Json) -> Json:
    """Return the record's section on the data."""
    return {
        "name": source.name,
        "train": len(train),
        "test": len(test) if test is not None else 0,
        "classes": list(train.class_names),
        "class_counts": train.class_counts,
        "shape": list(train.pixels.shape[1:]),
        "fingerprint": source.train.fingerprint(),
        "notes": list(source.notes),
        "evaluation": source.evaluation,
        **extra,
    }
