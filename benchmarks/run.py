"""The textbook implementation and fspmu side by side, on this machine, in one process.

    python benchmarks/run.py                 the full set: table on standard output
    python benchmarks/run.py --quick --json  retain pass, forget pass and pretraining epoch alone, as one JSON object

Both sides start every round from the same weights and see the same images, in the order A B A B; a ratio is textbook time over ours in the same round.
Before the clock starts, both must give the same losses on the same batch. The images are random: no stage's time depends on what they show, but for the
mixture fit of detection, a matter of milliseconds here. The matrix product measured in the same run and precision is the physical limit.
"""

import argparse
import contextlib
import copy
import ctypes
import json
import platform
import re
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import textbook
from fspmu import losses
from fspmu.data.batches import Batch
from fspmu.data.images import Images
from fspmu.detection.cuts import mixture
from fspmu.engine.inference import accuracy, find_centroids, predict
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import Loss, sgd, train_epoch
from fspmu.errors import InputError
from fspmu.models import preactresnet18
from fspmu.models.classifier import Classifier, frozen
from fspmu.preprocessing import Preprocessing

CIFAR = Preprocessing(textbook.MEAN, textbook.STD, "crop-flip", textbook.PADDING)

NEEDS = {"retain_pass": 3, "forget_pass": 4, "pretrain_epoch": 3, "evaluation": 1, "detection": 1, "centroids": 1}
"""What a stage costs at least, in forward passes of its images; a backward pass counts as two."""
QUICK = ("retain_pass", "forget_pass", "pretrain_epoch")

FORGET_BATCH = 512
LR = 5e-4

LEAST_ROUNDS = 3
"""Rounds that are measured however long they take; from there on the time limit decides."""
WARM_UP = 128
"""Images of a short round that does not count: enough to start threads and fill caches."""
TOLERANCE = 1e-4

Work = Callable[[Classifier], Any]


@dataclass(frozen=True)
class Options:
    """How much is measured, and on what."""

    quick: bool = False
    """The two passes and the pretraining epoch alone."""
    rounds: int = 5
    """Paired rounds, at most, after one that does not count."""
    minutes: float | None = None
    """No stage enters another round that would end later than this, once it has 3. None: 6 for the quick set, 9 for the full one."""
    retain: int = 128
    """Images of every stage but the forget pass."""
    forget: int = 512
    """Images of a forget pass, in batches of 512."""
    batch: int = 128
    """Batch size of a retain pass and of pretraining; the textbook's in the other stages too."""
    width: int = 64
    """Width of PreActResNet18."""
    workers: int = 2
    """Worker processes of the textbook's loader."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: str = "auto"
    """Precision of fspmu: auto, fp32, bf16; the textbook has fp32."""
    compile: bool = False
    """Let fspmu compile its networks; the textbook is not compiled."""


@dataclass(frozen=True)
class Bench:
    """What both sides are given: first weights, images for either kind of pass, class centroids (K, D), and a run."""

    model: Classifier
    centroids: Tensor
    retain: Images
    forget: Images
    run: Run
    batch: int = 128
    workers: int = 0

    def first(self, count: int) -> "Bench":
        """Return the same bench with at most `count` images a stage, and a textbook loader without worker processes."""
        retain, forget = (images.subset(torch.arange(min(count, len(images)))) for images in (self.retain, self.forget))
        return replace(self, retain=retain, forget=forget, workers=0)

    def samples(self, stage: str) -> int:
        """Return how many images go through `stage`."""
        return len(self.forget if stage == "forget_pass" else self.retain)


def synthetic(count: int) -> Images:
    """Return `count` random images of 3 x 32 x 32 with random labels of ten classes, on the CPU, always the same."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return Images(pixels, labels, tuple("0123456789"), [str(i) for i in range(count)], preprocessing=CIFAR)


def prepare(options: Options) -> Bench:
    """Return what `options` ask to be measured."""
    run = Run.create(device=options.device, precision=options.precision, stage="bench", compile=options.compile)
    images = synthetic(max(options.retain, options.forget))
    torch.manual_seed(0)
    model = preactresnet18(10, width=options.width)
    # Centroids of a few images do: only their shape counts for the time. In a run of its own, so that nothing is compiled for them.
    centroids = find_centroids(frozen(model), images.subset(torch.arange(min(32, len(images)))), Run()).to(run.device)
    retain, forget = (images.subset(torch.arange(count)).to(run.device) for count in (options.retain, options.forget))
    return Bench(model, centroids, retain, forget, run, options.batch, options.workers)


def textbook_work(bench: Bench) -> dict[str, Work]:
    """Return every stage as the textbook has it; each leaves its mark on the student that it is given."""
    device, teacher = bench.run.device, frozen(bench.model).to(bench.run.device)

    def loader(images: Images, batch: int, augment: bool) -> DataLoader:
        data = textbook.make_loader(images.pixels.cpu(), images.given_labels.cpu(), batch, augment=augment, workers=bench.workers)
        for _ in data:  # starts the worker processes, outside the timing
            pass
        return data

    def optimizer(student: Classifier) -> torch.optim.SGD:
        return torch.optim.SGD(student.parameters(), LR, momentum=0.9, weight_decay=5e-4)

    def unlearning(data: DataLoader, loss: Callable[..., Tensor]) -> Work:
        return lambda student: textbook.unlearning_pass(data, student, teacher, optimizer(student), loss, device)

    augment = bench.retain.preprocessing.augment != "none"
    training, plain = loader(bench.retain, bench.batch, augment), loader(bench.retain, bench.batch, augment=False)
    return {
        "retain_pass": unlearning(training, textbook.retain_loss(bench.centroids)),
        "forget_pass": unlearning(loader(bench.forget, FORGET_BATCH, augment), textbook.forget_loss(bench.centroids)),
        "pretrain_epoch": lambda student: textbook.train_pass(training, student, optimizer(student), device),
        "evaluation": lambda student: textbook.test_pass(plain, student, device),
        "detection": lambda student: textbook.detection_pass(plain, student, device),
        "centroids": lambda student: textbook.centroid_pass(plain, student, device),
    }


def our_work(bench: Bench) -> dict[str, Work]:
    """Return every stage as fspmu has it; each leaves its mark on the student that it is given."""
    run, images = bench.run, bench.retain
    judge = run.forward(run.place(frozen(bench.model)))

    def cross_entropy(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(model(batch.images).logits, batch.given_labels), {}

    def forget(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            before = judge(batch.images).logits
        logits, features = model(batch.images)
        return losses.forget_loss(logits, before, features, bench.centroids, eta=1.0, zeta=0.5, t=0.25, temperature=0.5), {}

    def retain(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, features = model(batch.images)
        return losses.retain_loss(logits, features, batch.given_labels, bench.centroids, gamma=1.0, delta=500.0), {}

    def training(images: Images, batch: int, loss: Loss, clip: float | None) -> Work:
        def work(student: Classifier) -> float:
            placed = run.place(student)
            return train_epoch(placed, run.batches(images, None, batch, "bench", 1), loss, sgd(placed, LR), run, clip=clip)["loss"]

        return work

    def detect(student: Classifier) -> Tensor:
        labels = images.given_labels.cpu()
        values = F.cross_entropy(predict(run.place(student), images, run).logits, labels, reduction="none")
        return mixture.cut(values, labels, mixture.Settings(), run.generator("bench")).clean

    return {
        "retain_pass": training(images, bench.batch, retain, 1.0),
        "forget_pass": training(bench.forget, FORGET_BATCH, forget, 1.0),
        "pretrain_epoch": training(images, bench.batch, cross_entropy, None),
        "evaluation": lambda student: accuracy(run.place(student), images, run),
        "detection": detect,
        "centroids": lambda student: find_centroids(run.place(student), images, run),
    }


def check(bench: Bench) -> None:
    """Stop unless both sides give the same losses on the same eight plain images, in fp32 on the CPU."""
    plain = replace(CIFAR, augment="none")
    cpu = torch.device("cpu")
    small = bench.first(8)
    retain, forget = (images.prepared_as(plain).to(cpu) for images in (small.retain, small.forget))
    small = replace(small, centroids=bench.centroids.to(cpu), retain=retain, forget=forget, run=Run(stage="bench"))
    theirs, ours = textbook_work(small), our_work(small)
    for name in QUICK:
        left, right = theirs[name](copy.deepcopy(bench.model)), ours[name](copy.deepcopy(bench.model))
        if not abs(left - right) <= TOLERANCE * max(abs(left), abs(right)):
            sys.exit(f"{name}: the textbook's loss is {left:.7g}, that of fspmu {right:.7g} on the same images; times of different work cannot be compared")


@dataclass(frozen=True)
class Side:
    """One of the two: its way through each stage, and the student it works on, which keeps its place in memory as in a real run."""

    work: dict[str, Work]
    student: Classifier

    def run(self, stage: str, weights: dict[str, Tensor], device: torch.device) -> float:
        """Return the seconds that `stage` takes from `weights`."""
        self.student.load_state_dict(weights)
        self.student.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # random images make no two groups of losses: the mixtures say so
            wait(device)
            started = time.perf_counter()
            self.work[stage](self.student)
            wait(device)
            return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Return when the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` speak of what comes after this call, where the system offers that.

    Memory that was freed goes back to the system, so whoever comes next takes it anew, and more slowly: never do this with the clock running.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that tensors took on a GPU, else the most that this process took; loader processes do not count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        if peak := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(peak[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def matrix_rate(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of the best of several large matrix products."""
    side, times = (8192, 50) if device.type == "cuda" else (2048, 5)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32) for _ in range(2))
    best = 0.0
    for _ in range(times):
        wait(device)
        started = time.perf_counter()
        _ = left @ right
        wait(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def forward_flops(model: Classifier) -> int:
    """Return the floating-point operations of one image's forward pass, a multiplication and an addition counting as two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        frozen(model)(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def warm_up(bench: Bench, sides: list[Side], stages: list[str], *, by_shape: bool, with_memory: bool) -> dict[str, list[int]]:
    """Make a round that does not count; return the peaks of memory of each stage, textbook first, where they are wanted.

    A GPU chooses its kernels by shape, and a compiler compiles by shape: there nothing less than the whole work warms up.
    """
    weights, device = bench.model.state_dict(), bench.run.device
    if by_shape or not with_memory:
        few = bench.first(WARM_UP)
        warming = sides if by_shape else [Side(works(few), side.student) for works, side in zip((textbook_work, our_work), sides, strict=True)]
        for stage in stages:
            for side in warming:
                side.run(stage, weights, device)
    peaks: dict[str, list[int]] = {stage: [] for stage in stages if with_memory}
    for stage, found in peaks.items():
        for side in sides:
            forget_peak(device)
            side.run(stage, weights, device)
            found.append(peak_memory(device))
    return peaks


def paired_rounds(bench: Bench, sides: list[Side], stages: list[str], rounds: int, deadline: float) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds, textbook first, of every round of each stage; one that would end after `deadline` is left out, once there are LEAST_ROUNDS."""
    weights, device = bench.model.state_dict(), bench.run.device
    pairs: dict[str, list[tuple[float, float]]] = {stage: [] for stage in stages}
    for number in range(1, rounds + 1):
        for stage, done in pairs.items():
            if len(done) >= LEAST_ROUNDS and time.perf_counter() + sum(done[-1]) > deadline:
                print(f"{stage}: no time for round {number}", file=sys.stderr)
                continue
            slow, fast = (side.run(stage, weights, device) for side in sides)
            done.append((slow, fast))
            print(f"{stage}, round {number} of {rounds}: textbook {slow:.2f} s, fspmu {fast:.2f} s", file=sys.stderr)
    return pairs


def figures(pairs: list[tuple[float, float]], samples: int, flops: float, limit: float, peaks: list[int] | None) -> dict[str, float]:
    """Return what the rounds of one stage say: medians, `flops` being the least operations that the stage needs, and `limit` FLOP/s."""
    ratios = [slow / fast for slow, fast in pairs]
    found: dict[str, float] = {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios), "rounds": len(pairs), "samples": samples}
    for place, (side, seconds) in enumerate(zip(("textbook", "fspmu"), zip(*pairs, strict=True), strict=True)):
        median = statistics.median(seconds)
        found |= {f"{side}_s": median, f"{side}_images_per_s": samples / median, f"{side}_flops_per_s": flops / median}
        if peaks:
            found[f"{side}_peak_memory_bytes"] = peaks[place]
    return found | {"fspmu_share_of_matrix_rate": found["fspmu_flops_per_s"] / limit}


def measure(options: Options) -> dict[str, dict[str, Any]]:
    """Return the figures of each stage, and the machine they belong to."""
    minutes = options.minutes if options.minutes is not None else 6 if options.quick else 9
    deadline = time.perf_counter() + 60 * minutes
    bench = prepare(options)
    check(bench)
    run, stages = bench.run, [name for name in NEEDS if name in QUICK or not options.quick]
    limit, per_image = matrix_rate(run.device, run.precision), forward_flops(bench.model)
    sides = [Side(works(bench), copy.deepcopy(bench.model).to(run.device)) for works in (textbook_work, our_work)]
    peaks = warm_up(bench, sides, stages, by_shape=run.device.type == "cuda" or options.compile, with_memory=not options.quick)
    rounds = paired_rounds(bench, sides, stages, options.rounds, deadline)
    limit = max(limit, matrix_rate(run.device, run.precision))  # again: whatever disturbed the first may be over
    found: dict[str, dict[str, Any]] = {}
    for name, pairs in rounds.items():
        samples = bench.samples(name)
        found[name] = figures(pairs, samples, samples * NEEDS[name] * per_image, limit, peaks.get(name))
    asked = {"width": options.width, "batch": options.batch, "workers": options.workers, "compile": options.compile, "notices": run.notices}
    system = {"system": platform.machine(), "torch": torch.__version__, "matrix_flops_per_s": limit, "peak_memory_bytes": peak_memory(run.device)}
    return found | {"machine": run.machine | system | asked}


def table(result: dict[str, dict[str, Any]]) -> str:
    """Return the figures as a Markdown table under a line about the machine."""
    machine = result["machine"]
    place = f"{machine['device']} ({machine['system']}), {machine['precision']}, {machine['threads']} threads, PyTorch {machine['torch']}"
    work = f"width {machine['width']}, batch {machine['batch']}{', compiled' if machine['compile'] else ''}"
    head = ["stage", "ratio (least to most)", "rounds", "seconds", "images/s", "GFLOP/s", "share of matrix rate", "peak memory, MiB"]
    limits = f"matrix product {machine['matrix_flops_per_s'] / 1e9:,.0f} GFLOP/s; peak memory {machine['peak_memory_bytes'] / 2**20:,.0f} MiB"
    lines = [f"{place}; {work}; {limits}", *machine["notices"], ""]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(row(name, found))} |" for name, found in result.items() if name != "machine"]
    return "\n".join([*lines, "", "Two figures in a cell: textbook / fspmu. GFLOP/s count the work that a stage needs at least, the same for both sides."])


def row(stage: str, found: dict[str, float]) -> list[str]:
    """Return the cells of one stage."""

    def both(key: str, form: str, scale: float = 1.0) -> str:
        return " / ".join(format(found[f"{side}_{key}"] / scale, form) if f"{side}_{key}" in found else "–" for side in ("textbook", "fspmu"))

    return [
        stage,
        f"{found['ratio']:.2f} ({found['ratio_min']:.2f} to {found['ratio_max']:.2f})",
        str(found["rounds"]),
        both("s", ".3g"),
        both("images_per_s", ",.1f"),
        both("flops_per_s", ",.0f", 1e9),
        f"{found['fspmu_share_of_matrix_rate']:.0%}",
        both("peak_memory_bytes", ",.0f", 2**20),
    ]


def read_options(arguments: list[str] | None) -> tuple[Options, bool]:
    """Return the options of the command line, and whether JSON is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="retain pass, forget pass and pretraining epoch alone")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds, at most, after one that does not count")
    parser.add_argument("--minutes", type=float, help="after 3 rounds, start none that would end later; by default 6 with --quick, else 9")
    parser.add_argument("--retain", type=int, default=128, help="images of every stage but the forget pass")
    parser.add_argument("--forget", type=int, default=512, help="images of a forget pass")
    parser.add_argument("--batch", type=int, default=128, help="batch size of a retain pass and of pretraining; a forget pass has 512")
    parser.add_argument("--width", type=int, default=64, help="width of PreActResNet18")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the textbook's loader")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", default="auto", help="precision of fspmu: auto, fp32, bf16; the textbook has fp32")
    parser.add_argument("--compile", action="store_true", help="let fspmu compile its networks")
    asked = parser.parse_args(arguments)
    for name in ("rounds", "retain", "forget", "batch", "width"):
        if getattr(asked, name) < 1 + (name in ("retain", "forget")):
            parser.error(f"--{name} is {getattr(asked, name)}: too few")
    return Options(**{field.name: getattr(asked, field.name) for field in fields(Options)}), asked.json


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a table or JSON."""
    options, as_json = read_options(arguments)
    try:
        result = measure(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(result) if as_json else table(result))


if __name__ == "__main__":
    main()
