"""What one NVIDIA GPU makes of it, in one call of at most ten minutes.

    python benchmarks/gpu.py --data-dir DIR --out DIR
    python benchmarks/gpu.py --only pretraining concurrent --out DIR

Aim, on one H200: training at 30,000 images/s or more in batches of 128 and at 60,000 in batches of 512, the complete pipeline in under 7 minutes.
What is measured, in this order:

    pretraining  training images/s in batches of 128 and 512, and its share of the bf16 matrix product's rate; 50,000 random images, not compiled
    pipeline     CIFAR-10 with 50% symmetric noise: 201 epochs, then a repair with the wrong labels known and one with those that `gmm` finds
    pretraining  the same, compiled
    table        the textbook and fspmu side by side, as `benchmarks/run.py` has it
    concurrent   training images/s of 1, 2 and 4 processes at the same time

Each measurement is appended to OUT/results.jsonl as soon as it is there, and printed. One that finds less than half a minute left, the pipeline less than
a minute, is left out; one that is still at work when --minutes are over is stopped; both are said. The pipeline may take several calls: what it reached
stays in the folders of --runs, a line says how far that is, and the next call with the same --runs goes on from there, compiled if an earlier line in OUT
says that this is faster. Its `stages_s` are the seconds of all calls, `wall_s` those of this call so far. --device cpu tries the script itself.
"""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fspmu.data.batches import Batch
from fspmu.data.images import Images
from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.experiments import pipeline, repair_run
from fspmu.experiments.experiment import Compute, Pretrain, Unlearn
from fspmu.models import preactresnet18
from fspmu.models.classifier import Classifier, drawn_from
from fspmu.pretraining import cross_entropy
from fspmu.results.store import append_line, read_json, read_lines, write_json
from run import NEEDS, Options, forget_peak, forward_flops, matrix_rate, measure, peak_memory, synthetic, wait

PARTS = ("pretraining", "pipeline", "table", "concurrent")
BATCH = 128
"""Batch size of the published training."""
LEAST_S, PIPELINE_LEAST_S = 30.0, 60.0
"""Seconds without which a part, or the pipeline, would end with nothing measured."""
MEETING_S = 60.0
"""Seconds that processes wait for each other before they train."""
RUNS = ("original", "known", "gmm")
"""Folders of the pipeline: the training, and a repair by each detector."""

Line = dict[str, Any]


class TimeUp(BaseException):
    """The time of this call is over; no ordinary exception, which a library might take for its own."""


@dataclass(frozen=True)
class Part:
    """One measurement: what names its lines, and the work, which yields a line at a time."""

    name: Line
    work: Callable[[], Iterator[Line]]
    least_s: float = LEAST_S
    """Seconds that must be left for it to begin."""
    reached: Callable[[], Line] = dict
    """Says how far it came when it was stopped."""


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

    @property
    def compiling_pays(self) -> bool:
        """Whether the fastest training found so far in batches of 128, by any call with this --out, was a compiled one."""
        found = [line for line in self.lines if line["part"] == "pretraining" and line["batch"] == BATCH and "images_per_s" in line]
        return bool(found) and max(found, key=lambda line: line["images_per_s"])["compile"]

    def attempt(self, part: Part) -> None:
        """Do one part, if there is time for it, and let no failure end the call."""
        left, started = self.left_s, time.monotonic()
        if left < part.least_s:
            return self.write(part.name | {"skipped": f"{max(0.0, left):.0f} s are left, it takes {part.least_s:.0f} s at least"})
        if self.asked.compile != "no":
            torch.compiler.reset()  # a compiler gives up after a number of networks; each part starts anew, as in a process of its own
        try:
            signal.signal(signal.SIGALRM, _time_is_up)
            signal.setitimer(signal.ITIMER_REAL, self.left_s)
            for line in part.work():
                self.write(part.name | line | {"wall_s": time.monotonic() - started})
        except TimeUp:
            self.write(part.name | {"stopped": "the time is up", "wall_s": time.monotonic() - started} | part.reached())
        except Exception as error:
            traceback.print_exc()
            self.write(part.name | {"error": f"{type(error).__name__}: {error}"})
            self.failed = True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _time_is_up(number: int, frame: object) -> None:
    raise TimeUp


@dataclass
class Clocked(Run):
    """A run that notes when each epoch ended; by then its losses have been read, so the device has nothing left to do."""

    ends: list[float] = field(default_factory=list)

    def log(self, epoch: int, **values: float | None) -> None:
        """Keep the figures of one epoch, and the time."""
        super().log(epoch, **values)
        self.ends.append(time.perf_counter())


def train(images: Images, asked: argparse.Namespace, batch: int, epochs: int, run: Run) -> Classifier:
    """Return a network that was trained as `fspmu pretrain` does."""

    def new_model(generator: torch.Generator) -> Classifier:
        with drawn_from(generator):
            return preactresnet18(10, width=asked.width)

    return cross_entropy.pretrain(images, new_model, cross_entropy.Settings(epochs=epochs, batch_size=batch), run).models[0]


def pretraining(call: Call, batch: int, compiled: bool, limit: float) -> Iterator[Line]:
    """Train on random images; `limit` is the FLOP/s of a matrix product."""
    asked = call.asked
    run = Clocked.create(device=asked.device, precision=asked.precision, stage="pretraining", compile=compiled)
    images = synthetic(asked.images).to(run.device)
    forget_peak(run.device)
    started = time.perf_counter()
    model = train(images, asked, batch, asked.epochs + 1, run)  # the first epoch starts everything up and does not count
    peak = peak_memory(run.device)
    seconds = [end - start for start, end in zip(run.ends, run.ends[1:], strict=False)]
    epoch_s = statistics.median(seconds)
    flops = asked.images * NEEDS["pretrain_epoch"] * forward_flops(model.cpu()) / epoch_s
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
    """Train CIFAR-10 on wrong labels and repair it twice, as the commands do, from where an earlier call was stopped."""
    asked = call.asked
    compiled = asked.compile == "yes" or asked.compile == "both" and call.compiling_pays
    original, *detectors = RUNS

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
            compute=compute(original),
        )
    )
    yield {"model": original, "compile": compiled} | outcome_figures(trained.record)
    for detector in detectors:
        repaired = repair_run.unlearn(Unlearn(run=trained.folder, data_dir=asked.data_dir, detector=detector, preset="original", compute=compute(detector)))
        yield {"model": f"fspmu, {detector}", "compile": compiled} | outcome_figures(repaired.record)


def outcome_figures(record: Line) -> Line:
    """Return what the line of a run says: accuracies, detection, and the seconds and samples of each stage."""
    quality = (record["detection"] or {}).get("quality")
    return {"test_accuracy": record["test_accuracy"], "detection": quality, "stages_s": record["seconds"], "passes": record["passes"]}


def reached(runs: Path) -> Line:
    """Return how far the pipeline came: of each of its runs whether it is done, and the epochs of each stage."""

    def of(run: Path) -> Line:
        return {"done": (run / "done").exists(), "epochs": Counter(line["stage"] for line in read_lines(run / "metrics.jsonl"))}

    return {"reached": {name: of(runs / name) for name in RUNS}}


def side_by_side(call: Call, batch: int, compiled: bool) -> Iterator[Line]:
    """Measure the table of `run.py`."""
    asked = call.asked
    count = asked.table_images
    sizes = Options(rounds=asked.rounds, minutes=call.left_s / 60, retain=count, forget=count, batch=batch, width=asked.width, workers=asked.workers)
    yield measure(replace(sizes, device=asked.device, precision=asked.precision, compile=compiled))


class Enough(Exception):
    """The training has lasted as long as it was to."""


@dataclass
class Together(Run):
    """A run that waits for others after its first epoch, which does not count, and then trains for a fixed time."""

    ready: Path = Path()
    """The file that says that the first epoch is over; the others write theirs beside it."""
    count: int = 1
    """How many such runs there are."""
    lasts_s: float = 0.0
    images: int = 0
    start: float = math.inf

    def log(self, epoch: int, **values: float | None) -> None:
        """Keep the figures of one epoch, and wait after the first one."""
        super().log(epoch, **values)
        if epoch == 1:
            self.ready.touch()
            latest = time.monotonic() + MEETING_S
            while len(list(self.ready.parent.glob(f"*{self.ready.suffix}"))) < self.count and time.monotonic() < latest:
                time.sleep(0.01)
            self.images, self.start = 0, time.time()

    def bar(self, steps: Iterable[Batch], label: str) -> Iterator[Batch]:
        """Yield `steps`, and count their images; raise Enough once the time is over and the device has done what it was given."""
        for batch in steps:
            yield batch
            self.images += len(batch)
            if time.time() >= self.start + self.lasts_s:
                wait(self.device)
                raise Enough


def train_together(asked: argparse.Namespace) -> None:
    """Be one of the processes that `concurrent` starts: leave beside `asked.member` how many images were trained on, and when."""
    ready, found = asked.member.with_suffix(".ready"), asked.member.with_suffix(".json")
    sizes = {"ready": ready, "count": asked.processes[0], "lasts_s": asked.seconds}
    run = Together.create(device=asked.device, precision=asked.precision, stage="together", **sizes)
    try:
        train(synthetic(asked.images).to(run.device), asked, BATCH, sys.maxsize, run)
    except Enough:
        write_json(found, {"images": run.images, "start": run.start, "end": time.time(), "peak_memory_bytes": peak_memory(run.device)})


def concurrent(call: Call, count: int) -> Iterator[Line]:
    """Train in `count` processes at the same time, each as `pretraining` does."""
    same = ("images", "seconds", "width", "device", "precision")
    command = [sys.executable, __file__, "--processes", str(count), *(part for name in same for part in (f"--{name}", str(getattr(call.asked, name))))]
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as place:
        members = [Path(place) / str(number) for number in range(count)]
        try:
            for member in members:
                children.append(subprocess.Popen([*command, "--member", str(member)], stdout=subprocess.DEVNULL))
            codes = [child.wait() for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()
        if any(codes):
            raise RuntimeError(f"not every process has trained; exit codes {codes}")
        found = [read_json(member.with_suffix(".json")) for member in members]
    images, starts, ends, peaks = ([each[name] for each in found] for name in ("images", "start", "end", "peak_memory_bytes"))
    span = max(ends) - min(starts)
    yield {
        "images_per_s": sum(images) / span,
        "images_per_s_each": [number / (end - start) for number, start, end in zip(images, starts, ends, strict=True)],
        "seconds": span,
        "share_of_time_together": max(0.0, min(ends) - max(starts)) / span,
        "peak_memory_bytes": peaks,
    }


def parts(call: Call, limit: float) -> list[Part]:
    """Return what was asked for, in the order in which it is tried; `limit` is the FLOP/s of a matrix product."""
    asked = call.asked
    modes = {"no": {False}, "yes": {True}, "both": {False, True}}[asked.compile]

    def sizes(part: str, work: Callable[..., Iterator[Line]], compiled: bool, *more: float) -> list[Part]:
        batches = asked.batches if compiled in modes else []
        return [Part({"part": part, "batch": batch, "compile": compiled}, partial(work, call, batch, compiled, *more)) for batch in batches]

    ordered = [
        *sizes("pretraining", pretraining, False, limit),
        Part({"part": "pipeline"}, partial(complete_pipeline, call), PIPELINE_LEAST_S, partial(reached, asked.runs)),
        *sizes("pretraining", pretraining, True, limit),
        *sizes("table", side_by_side, False),
        *sizes("table", side_by_side, True),
        *(Part({"part": "concurrent", "processes": count}, partial(concurrent, call, count)) for count in asked.processes),
    ]
    return [part for part in ordered if part.name["part"] in asked.only]


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--minutes", type=float, default=9.5, help="when this call ends, whatever it is at")
    parser.add_argument("--data-dir", type=Path, help="folder that holds cifar10/")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of results.jsonl")
    parser.add_argument("--runs", type=Path, help="folder of the runs of the pipeline, by default OUT/runs; the next call goes on with them")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512], help="batch sizes of pretraining and of the table")
    parser.add_argument("--compile", choices=("no", "yes", "both"), default="both", help="measure with torch.compile, without, or both")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="processes that train at the same time")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long they train")
    parser.add_argument("--member", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=50_000, help="random images of pretraining")
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
    if asked.member:
        train_together(asked)
        return 0
    call = Call(asked)
    limit = matrix_rate(run.device, run.precision)
    call.write({"part": "machine", "torch": torch.__version__, "cuda": torch.version.cuda, "matrix_flops_per_s": limit} | run.machine)
    for part in parts(call, limit):
        call.attempt(part)
    return int(call.failed)


if __name__ == "__main__":
    sys.exit(main())
