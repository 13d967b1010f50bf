"""What one NVIDIA GPU makes of it, in one call of at most ten minutes.

    python benchmarks/gpu.py --data-dir DIR --out DIR
    python benchmarks/gpu.py --only pretraining concurrent --out DIR

Aim, on one H200: training at 30,000 images/s or more in batches of 128 and at 60,000 in batches of 512, the complete pipeline in under 7 minutes.
Four parts, the most important first:

    pretraining  training images/s in batches of 128 and 512, compiled and not, and its share of the bf16 matrix product's rate; 50,000 random images
    pipeline     CIFAR-10 with 50% symmetric noise: 201 epochs, then a repair with the wrong labels known and one with those that `gmm` finds
    table        the textbook and fspmu side by side, as `benchmarks/run.py` has it
    concurrent   training images/s of 1, 2 and 4 processes at the same time

Each measurement is appended to OUT/results.jsonl as soon as it is there, and printed. One that would not end within --minutes is left out, one that takes
longer than thought is stopped, and both are said. The pipeline goes on where it was stopped when the same command comes again; a later call with --only also
knows what earlier ones found. --device cpu tries the script itself.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.experiments import pipeline, repair_run
from fspmu.experiments.experiment import Compute, Pretrain, Unlearn
from fspmu.models import preactresnet18
from fspmu.models.classifier import Classifier, drawn_from
from fspmu.pretraining import cross_entropy
from fspmu.results.store import append_line
from run import NEEDS, Options, forget_peak, forward_flops, matrix_rate, measure, peak_memory, synthetic

PARTS = ("pretraining", "pipeline", "table", "concurrent")
BATCH = 128
"""Batch size of the published training."""
AIM = 30_000.0
"""Training images/s that are expected until some were measured."""
COMPILING_S = 90.0
START_S = 15.0
"""Seconds until a process is ready: imports, the first touch of the GPU."""
CIFAR_TRAIN, CIFAR_TEST = 50_000, 10_000

Line = dict[str, Any]


class TimeUp(BaseException):
    """The time of this call is over; no ordinary exception, which a library might take for its own."""


@dataclass(frozen=True)
class Part:
    """One measurement: what names its lines, the seconds it should take, asked when its turn comes, and the work, which yields a line at a time."""

    name: Line
    expected_s: Callable[[], float]
    work: Callable[[], Iterator[Line]]


class Call:
    """One call of this script: what was asked for, what was found so far, and the time that is left."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.file, self.failed = asked, asked.out / "results.jsonl", False
        self._end = time.monotonic() + 60 * asked.minutes
        asked.out.mkdir(parents=True, exist_ok=True)
        self.lines: list[Line] = read_lines(self.file)

    @property
    def left_s(self) -> float:
        """Seconds until the time is up."""
        return self._end - time.monotonic()

    def write(self, line: Line) -> None:
        """Keep a line: in memory, in the file, on standard output."""
        self.lines.append(line)
        append_line(self.file, line)
        print(json.dumps(line), flush=True)

    def fastest(self, batch: int) -> Line:
        """Return the line of the fastest training in batches of that size; what is aimed at, until there is one."""
        found = [line for line in self.lines if line["part"] == "pretraining" and line["batch"] == batch and "images_per_s" in line]
        return max(found, key=lambda line: line["images_per_s"], default={"images_per_s": AIM, "compile": False})

    def attempt(self, part: Part) -> None:
        """Do one part, if there is time for it, and let no failure end the call."""
        expected, started = part.expected_s(), time.monotonic()
        if expected > self.left_s:
            return self.write(part.name | {"skipped": f"takes about {expected:.0f} s, {max(0.0, self.left_s):.0f} s are left"})
        if self.asked.compile != "no":
            torch.compiler.reset()  # a compiler gives up after a number of networks; each part starts anew, as in a process of its own
        try:
            signal.signal(signal.SIGALRM, _time_is_up)
            signal.setitimer(signal.ITIMER_REAL, self.left_s)
            for line in part.work():
                self.write(part.name | line | {"wall_s": time.monotonic() - started})
        except TimeUp:
            self.write(part.name | {"stopped": f"the time was up after {time.monotonic() - started:.0f} s; {expected:.0f} s were expected"})
        except Exception as error:
            traceback.print_exc()
            self.write(part.name | {"error": f"{type(error).__name__}: {error}"})
            self.failed = True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _time_is_up(number: int, frame: object) -> None:
    raise TimeUp


def read_lines(file: Path) -> list[Line]:
    """Return the lines of a results file; none where there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@dataclass
class Clocked(Run):
    """A run that notes when each epoch ended; by then its losses have been read, so the device has nothing left to do."""

    ends: list[float] = field(default_factory=list)

    def log(self, epoch: int, **values: float | None) -> None:
        """Keep the figures of one epoch, and the time."""
        super().log(epoch, **values)
        self.ends.append(time.perf_counter())


def pretraining(call: Call, batch: int, compiled: bool, limit: float) -> Iterator[Line]:
    """Train on random images; `limit` is the FLOP/s of a matrix product."""
    asked = call.asked
    run = Clocked.create(device=asked.device, precision=asked.precision, stage="pretraining", compile=compiled)
    images = synthetic(asked.images).to(run.device)
    built: list[Classifier] = []

    def new_model(generator: torch.Generator) -> Classifier:
        with drawn_from(generator):
            built.append(preactresnet18(10, width=asked.width))
        return built[0]

    forget_peak(run.device)
    started = time.perf_counter()
    # The first epoch starts everything up and does not count.
    cross_entropy.pretrain(images, new_model, cross_entropy.Settings(epochs=asked.epochs + 1, batch_size=batch), run)
    peak = peak_memory(run.device)
    seconds = [end - start for start, end in zip(run.ends, run.ends[1:], strict=False)]
    epoch_s = statistics.median(seconds)
    flops = asked.images * NEEDS["pretrain_epoch"] * forward_flops(built[0].cpu()) / epoch_s
    yield {
        "images_per_s": asked.images / epoch_s,
        "epoch_s": epoch_s,
        "epoch_s_least": min(seconds),
        "epoch_s_most": max(seconds),
        "first_epoch_s": run.ends[0] - started,
        "flops_per_s": flops,
        "share_of_matrix_rate": flops / limit,
        "peak_memory_bytes": peak,
        "notices": run.notices,
    }


def complete_pipeline(call: Call) -> Iterator[Line]:
    """Train CIFAR-10 on wrong labels and repair it twice, as the commands do; compiled where that was found to be faster."""
    asked = call.asked
    compiled = asked.compile == "yes" or call.fastest(BATCH)["compile"]

    def compute(name: str) -> Compute:
        return Compute(device=asked.device, precision=asked.precision, compile=compiled, seed=asked.seed, out=asked.runs / name, resume=True)

    trained = pipeline.pretrain(
        Pretrain(
            dataset="cifar10",
            model="preactresnet18",
            width=asked.width,
            data=DataOptions(data_dir=asked.data_dir, limit=asked.limit),
            noise=NoiseOptions(noise_mode="sym", noise_rate=0.5),
            settings=cross_entropy.Settings(epochs=asked.pipeline_epochs),
            compute=compute("original"),
        )
    )
    yield {"model": "original", "compile": compiled} | outcome_figures(trained.record)
    for detector in ("known", "gmm"):
        repaired = repair_run.unlearn(Unlearn(run=trained.folder, data_dir=asked.data_dir, detector=detector, compute=compute(detector)))
        yield {"model": f"fspmu, {detector}", "compile": compiled} | outcome_figures(repaired.record)


def outcome_figures(record: Line) -> Line:
    """Return what the line of a run says: accuracies, detection, and the seconds and samples of each stage."""
    quality = (record["detection"] or {}).get("quality")
    return {"test_accuracy": record["test_accuracy"], "detection": quality, "stages_s": record["seconds"], "passes": record["passes"]}


def pipeline_s(call: Call) -> float:
    """Return the seconds that the complete pipeline should take; a forward pass alone counts as a third of a training step."""
    images, test = call.asked.limit or CIFAR_TRAIN, CIFAR_TEST / 3
    training = call.asked.pipeline_epochs * (images + test)
    # Half of the images are in either set; five of the fifteen epochs forget, and the teacher's forward makes four units of three.
    repair = 15 * (images / 2 + test) + 5 * images / 2 * 4 / 3 + 3 * images / 3
    reading_s = 60.0  # all images, once for each of the three runs
    return (training + 2 * repair) / call.fastest(BATCH)["images_per_s"] + reading_s


def side_by_side(call: Call, batch: int, compiled: bool) -> Iterator[Line]:
    """Measure the table of `run.py`."""
    asked = call.asked
    count = asked.table_images
    sizes = Options(rounds=asked.rounds, minutes=call.left_s / 60, retain=count, forget=count, batch=batch, width=asked.width, workers=asked.workers)
    yield measure(replace(sizes, device=asked.device, precision=asked.precision, compile=compiled))


def concurrent(call: Call, count: int) -> Iterator[Line]:
    """Train in `count` processes at the same time, each as `pretraining` does."""
    asked = call.asked
    same = ("images", "epochs", "width", "device", "precision")
    command = [sys.executable, __file__, "--only", "pretraining", "--batches", str(BATCH), "--compile", "no", "--minutes", str(call.left_s / 60)]
    command += [part for name in same for part in (f"--{name}", str(getattr(asked, name)))]
    with tempfile.TemporaryDirectory() as place:
        outs = [Path(place) / str(number) for number in range(count)]
        children = [subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL) for out in outs]
        try:
            codes = [child.wait() for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()
        found = [line for out in outs for line in read_lines(out / "results.jsonl") if "images_per_s" in line]
    if any(codes) or len(found) < count:
        raise RuntimeError(f"{count - len(found)} of {count} processes measured nothing; exit codes {codes}")
    rates = [line["images_per_s"] for line in found]
    yield {"images_per_s_each": rates, "images_per_s": sum(rates), "peak_memory_bytes": [line["peak_memory_bytes"] for line in found]}


def parts(call: Call, limit: float) -> Iterator[Part]:
    """Yield what was asked for, the most important first; `limit` is the FLOP/s of a matrix product."""
    asked = call.asked
    modes = {"no": [False], "yes": [True], "both": [False, True]}[asked.compile]
    epochs_s = (asked.epochs + 1) * asked.images / AIM
    if "pretraining" in asked.only:
        # What can be told without a compiler comes first, and compiling must leave time for the pipeline.
        later = (lambda: pipeline_s(call)) if "pipeline" in asked.only else (lambda: 0.0)
        for compiled in modes:
            for batch in asked.batches:
                name = {"part": "pretraining", "batch": batch, "compile": compiled}
                expected = (lambda: COMPILING_S + epochs_s + later()) if compiled else (lambda: START_S + epochs_s)
                yield Part(name, expected, partial(pretraining, call, batch, compiled, limit))
    if "pipeline" in asked.only:
        yield Part({"part": "pipeline"}, lambda: pipeline_s(call), partial(complete_pipeline, call))
    if "table" in asked.only:
        for compiled in modes:
            for batch in asked.batches:
                name = {"part": "table", "batch": batch, "compile": compiled}
                yield Part(name, partial(float, 60 + COMPILING_S * compiled), partial(side_by_side, call, batch, compiled))
    if "concurrent" in asked.only:
        for count in asked.processes:
            yield Part({"part": "concurrent", "processes": count}, partial(float, START_S + count * epochs_s), partial(concurrent, call, count))


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit of this call")
    parser.add_argument("--data-dir", type=Path, help="folder that holds cifar10/")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of results.jsonl")
    parser.add_argument("--runs", type=Path, help="folder for the runs of the pipeline, by default OUT/runs")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512], help="batch sizes of pretraining and of the table")
    parser.add_argument("--compile", choices=("no", "yes", "both"), default="both", help="measure with torch.compile, without, or both")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="processes that train at the same time")
    parser.add_argument("--images", type=int, default=CIFAR_TRAIN, help="random images of pretraining")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of pretraining that count, after one that does not")
    parser.add_argument("--pipeline-epochs", type=int, default=201, help="epochs of training in the pipeline")
    parser.add_argument("--limit", type=int, help="training images of the pipeline, the first ones; by default all")
    parser.add_argument("--table-images", type=int, default=5120, help="images of each stage of the table")
    parser.add_argument("--rounds", type=int, default=3, help="paired rounds of the table")
    parser.add_argument("--width", type=int, default=64, help="width of PreActResNet18")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="worker processes of the textbook's loader")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--precision", default="auto", help="precision of fspmu: auto, fp32, bf16")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pipeline")
    asked = parser.parse_args(arguments)
    asked.runs = asked.runs or asked.out / "runs"
    return asked


def main(arguments: list[str] | None = None) -> int:
    """Measure; return 1 when a part failed, 2 when the machine is not the one that was asked for."""
    asked = read_arguments(arguments)
    try:
        run = Run.create(device=asked.device, precision=asked.precision)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    call = Call(asked)
    limit = matrix_rate(run.device, run.precision)
    call.write({"part": "machine", "torch": torch.__version__, "cuda": torch.version.cuda, "matrix_flops_per_s": limit} | run.machine)
    for part in parts(call, limit):
        call.attempt(part)
    return int(call.failed)


if __name__ == "__main__":
    sys.exit(main())
