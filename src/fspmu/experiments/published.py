"""The two commands of the published README: train and save, then find what was saved and make it forget.

Both mean a run of step 1 by the same selectors, and find its folder through `StepOne.folder`: weight/net/<a name made of the selectors>.
Step 2 writes into that folder; pictures go to weight/TSNE. Without --save True a run lives in a temporary folder and leaves figures alone.
"""

import contextlib
import re
import shlex
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import torch

from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.detection import DETECTORS
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.checkpoint import load
from fspmu.engine.inference import predict
from fspmu.errors import InputError, choose
from fspmu.experiments.experiment import Compute, Pretrain, Tsne, Unlearn
from fspmu.experiments.folders import Outcome, make_run
from fspmu.experiments.pipeline import Prepared, prepare, pretrain
from fspmu.experiments.published_names import (
    NOISE_MODES,
    changes_of,
    dataset_of,
    detector_of,
    folder_name_of,
    method_of,
    name_parts,
    noise_mode_of,
    pretrain_method_of,
    settings_of,
    training_settings,
)
from fspmu.experiments.repair_run import unlearn as unlearn_run
from fspmu.models import MODELS, WIDTHS
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.report.figures import check_tsne, draw_tsne
from fspmu.report.tables import run_table, show, warning_of
from fspmu.results.store import read_json, replacing
from fspmu.stages.mending import published_settings
from fspmu.stages.writing import write_predictions
from fspmu.unlearning import METHODS as UNLEARNING

WEIGHT_DIR = "../../weight"
"""Seen from the working directory, as published."""
USUAL = {"model": "preactresnet18", "pretrain_method": "ce", "seed": 1}
"""Selectors that a command need not name."""


@dataclass(frozen=True)
class StepOne:
    """What the selectors of either step mean: a training run, its folder, and the command that makes it."""

    options: Pretrain
    folder: Path
    command: str
    selectors: str
    any_epochs: bool
    """Whether --epochs was left open: then a run of another length will do where there is none of the usual one."""

    @classmethod
    def of(cls, flags: Namespace) -> "StepOne":
        """Return the run of step 1 that `flags` name.

        Raises InputError for a name or a combination that does not exist.
        """
        dataset, mode, method = dataset_of(flags), noise_mode_of(flags), pretrain_method_of(flags.pretrain_method)
        choose(MODELS, flags.model, "--model")
        settings = training_settings(flags, method)
        width = None if flags.width == WIDTHS[flags.model] else flags.width
        options = Pretrain(
            dataset=dataset,
            method=method,
            model=flags.model,
            width=width,
            data=DataOptions(data_dir=None if flags.data_dir is None else Path(flags.data_dir), limit=flags.limit),
            noise=NoiseOptions(noise_mode=NOISE_MODES[mode], noise_rate=flags.noise_rate or 0.0),
            settings=settings,
            compute=Compute(device=flags.device, precision=flags.precision, seed=flags.seed, resume=True),
        )
        epochs, usual = settings.epochs - 1, USUAL | {"epochs": PRETRAINING[method].settings.epochs - 1}
        noisy = {"dataset": dataset, "noise_rate": f"{options.noise.noise_rate:.12g}", "noise_mode": mode}
        named = {"model": flags.model, "pretrain_method": method, "seed": flags.seed, "epochs": epochs}
        given = changes_of(settings, PRETRAINING[method].settings, ("batch_size", "lr", "step_size"))
        given |= {name: value for name, value in (("width", width), ("limit", flags.limit)) if value is not None}
        parts = [folder_name_of(dataset), flags.model, mode, noisy["noise_rate"], method, f"seed{flags.seed}", f"e{epochs}", *name_parts(given)]
        places = {name: value for name in ("weight_dir", "data_dir") if (value := getattr(flags, name)) is not None}
        asked = noisy | {name: value for name, value in named.items() if value != usual[name]} | given | places | {"save": True}
        command = " ".join(["python main.py", *(f"--{name} {shlex.quote(str(value))}" for name, value in asked.items())])
        folder = Path(flags.weight_dir or WEIGHT_DIR).expanduser().resolve() / "net" / "-".join(parts)
        return cls(options, folder, command, ", ".join(f"{name} {value}" for name, value in (noisy | named | given).items()), flags.epochs is None)

    @property
    def pictures(self) -> Path:
        """The folder of the pictures."""
        return self.folder.parent.parent / "TSNE"

    def find(self) -> Path:
        """Return the folder of the finished run.

        Raises InputError that names the folder, the selectors, the command that makes it, and the nearest runs beside it.
        """
        if (self.folder / "done").exists():
            return self.folder
        shorter = self._of_other_length() if self.any_epochs else []
        if shorter:
            print(f"note: no run of {self.options.settings.epochs - 1} epochs was saved; taking {shorter[-1].name}", file=sys.stderr)
            return shorter[-1]
        if (self.folder / "config.json").exists():
            raise InputError(f"step 1 has not finished in {self.folder}; `{self.command}` goes on with it")
        others = [mark.parent.name for mark in sorted(self.folder.parent.glob("*/done"))]
        near = get_close_matches(self.folder.name, others, n=3, cutoff=0)
        beside = f"; nearest of the runs there: {', '.join(near)}" if near else ""
        raise InputError(f"step 1 saved nothing in {self.folder} ({self.selectors}); run `{self.command}` first{beside}")

    def _of_other_length(self) -> list[Path]:
        """Return the finished runs that differ from this one in --epochs alone, the longest last."""
        before, after = self.folder.name.split(f"-e{self.options.settings.epochs - 1}", 1)
        pattern = re.compile(rf"{re.escape(before)}-e(\d+){re.escape(after)}")
        found = [(int(match[1]), mark.parent) for mark in self.folder.parent.glob("*/done") if (match := pattern.fullmatch(mark.parent.name))]
        return [folder for _, folder in sorted(found)]


def train(flags: Namespace) -> None:
    """Step 1: train, and keep the run where step 2 looks for it."""
    step = StepOne.of(flags)
    options, prepared = step.options, None
    if flags.tsne:
        prepared = prepare(options, flags.seed)
        check_tsne(len(prepared.train), prepared.train.num_classes, Tsne().tsne_points, flags.tsne_per)
    with _folder(step.folder, flags.save) as out:
        outcome = pretrain(replace(options, compute=replace(options.compute, out=out)))
        drawn = [] if prepared is None else _draw_original(outcome, prepared, step, flags)
    _tell(step.folder.name, outcome, drawn, flags.save, "step 2 needs a run with --save True")


def unlearn(flags: Namespace) -> None:
    """Step 2: find what step 1 saved, and make it forget."""
    step = StepOne.of(flags)
    method = method_of(flags)
    detector, detector_settings, split = detector_of(flags)
    settings_of(flags, method, UNLEARNING[method].settings)  # what the method cannot take is said before anything is looked for
    run = step.find()
    base = published_settings(method, load(run))
    settings = settings_of(flags, method, base)
    changes = {} if method.startswith("retrain") else changes_of(settings, base)  # the flags of retraining name the run already
    changes |= {"sample_rate": flags.sample_rate} if detector_settings != DETECTORS[detector].settings else {}
    changes |= {"gmm_threshhold": split.threshold} if split != SplitSettings() else {}
    name = "-".join(["unlearn", method, detector, *name_parts(changes)])
    data = read_json(run / "record.json")["data"]
    if flags.tsne:
        check_tsne(data["train"], len(data["classes"]), Tsne().tsne_points, flags.tsne_per)
    with _folder(run / name, flags.save) as out:
        wanted = Unlearn(
            run=run,
            data_dir=step.options.data.data_dir,
            compute=replace(step.options.compute, out=out),
            detector=detector,
            detector_settings=detector_settings,
            split=split,
            method=method,
            settings=settings,
        )
        outcome = unlearn_run(wanted)
        target = step.pictures / f"{run.name}-{name}"
        drawn = _draw(outcome.folder, target, tuple(data["classes"]), flags) if flags.tsne else []
    _tell(f"{run.name}/{name}", outcome, drawn, flags.save, "--save True keeps the repaired network")


# What is left behind.


@contextlib.contextmanager
def _folder(wanted: Path, save: bool) -> Iterator[Path]:
    """Yield the folder wanted, or one of that name that is gone afterwards."""
    if save:
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="fspmu-", ignore_cleanup_errors=True) as scratch:
        yield Path(scratch) / wanted.name


def _draw_original(outcome: Outcome, prepared: Prepared, step: StepOne, flags: Namespace) -> list[Path]:
    if not (outcome.folder / "predictions.safetensors").exists():
        run = make_run(step.options.compute, None, flags.seed)
        with run.timed("picture"):
            seen = predict(run.place(load(outcome.folder)), prepared.train.to(run.device), run)
        write_predictions(outcome.folder, seen, None, torch.ones(len(prepared.train), dtype=torch.bool))
    return _draw(outcome.folder, step.pictures / step.folder.name, prepared.train.class_names, flags)


def _draw(run: Path, target: Path, class_names: tuple[str, ...], flags: Namespace) -> list[Path]:
    """Draw the features of a run, and return copies of the pictures under the name `target`."""
    drawn = draw_tsne(run, class_names, flags.seed, perplexity=flags.tsne_per, learning_rate=flags.tsne_lr, points=Tsne().tsne_points)
    copies = [target.with_name(f"{target.name}{file.suffix}") for file in drawn]
    for file, copy in zip(drawn, copies, strict=True):
        with replacing(copy) as temporary:
            shutil.copyfile(file, temporary)
    return copies


def _tell(title: str, outcome: Outcome, drawn: list[Path], save: bool, way_out: str) -> None:
    """Print the figures of a record, and every path that was written."""
    record = outcome.record
    notes = [f"note: {text}" for text in record["warnings"]] if outcome.already_done else warning_of(record)
    if save:
        end = f"{'already done, nothing changed' if outcome.already_done else 'saved'}: {outcome.folder}"
    else:
        end = f"no weights saved (--save False); {way_out}"
    show(run_table(record), [end, *(f"picture: {path}" for path in drawn)], [title, *notes])
