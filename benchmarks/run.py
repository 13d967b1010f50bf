"""The textbook implementation and fspmu side by side, on this machine, in one process.

    python benchmarks/run.py                 the full set: table on standard output
    python benchmarks/run.py --quick --json  retain pass, forget pass and training epoch alone, as one JSON object

Both sides start every round from the same weights and see the same images, in the order A B A B; a ratio is textbook time over ours in the same round.
The images are random: no stage's time depends on what they show. The matrix product measured in the same run is the physical limit.
"""

import argparse
import copy
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fspmu import losses
from fspmu.centroids import class_centroids
from fspmu.data.batches import Batch
from fspmu.data.images import Images
from fspmu.detection import loss_mixture
from fspmu.engine.inference import accuracy, predict
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import sgd, train_epoch
from fspmu.models import preactresnet18
from fspmu.models.classifier import Classifier, frozen
from fspmu.preprocessing import Preprocessing
from textbook import forget_loss, make_loader, retain_loss, test_pass, train_pass, unlearning_pass

CIFAR = Preprocessing((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "crop-flip", 4)


@dataclass
class Stage:
    """A pass over `samples` images, both ways; `units` are forward passes of one image that the work needs at least."""

    samples: int
    units: float
    textbook: Callable[[Classifier], object]
    ours: Callable[[Classifier], object]


def stages(images: Images, model: Classifier, run: Run, retain: int, forget: int, workers: int) -> dict[str, Stage]:
    """Return every stage that is measured, on the first `retain` or `forget` images."""
    teacher = run.place(frozen(model))
    seen = predict(teacher, images, run)
    centroids = class_centroids(seen.features, seen.logits.softmax(1)).to(run.device)
    judge = run.forward(teacher)

    def loader(count: int, batch: int, augment: bool = True) -> object:
        return make_loader(images.pixels[:count].cpu(), images.given_labels[:count].cpu(), batch, augment=augment, workers=workers)

    def first(count: int) -> Tensor:
        return torch.arange(len(images)) < count

    def cross_entropy(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(model(batch.images).logits, batch.given_labels), {}

    def our_forget(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            before = judge(batch.images).logits
        logits, features = model(batch.images)
        return losses.forget_loss(logits, before, features, centroids, eta=1.0, zeta=0.5, t=0.25, temperature=0.5), {}

    def our_retain(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, features = model(batch.images)
        return losses.retain_loss(logits, features, batch.given_labels, centroids, gamma=1.0, delta=500.0), {}

    def ours(count: int, batch: int, loss: Callable[..., tuple[Tensor, dict[str, Tensor]]], clip: float | None) -> Callable[[Classifier], object]:
        def step(student: Classifier) -> object:
            placed = run.place(student)
            return train_epoch(placed, run.batches(images, first(count), batch, "bench", 1), loss, sgd(placed, 5e-4), run, clip=clip)

        return step

    def plain_sgd(student: Classifier) -> torch.optim.SGD:
        return torch.optim.SGD(student.parameters(), 5e-4, momentum=0.9, weight_decay=5e-4)

    def published(count: int, batch: int, loss: Callable[..., Tensor]) -> Callable[[Classifier], object]:
        data = loader(count, batch)
        plain_teacher = frozen(model).to(run.device)
        return lambda student: unlearning_pass(data, student, plain_teacher, plain_sgd(student), loss, run.device)  # type: ignore[arg-type]

    training, testing = loader(retain, 128), loader(retain, 128, augment=False)
    some = images.subset(torch.arange(retain))

    def detect(student: Classifier) -> object:
        values = F.cross_entropy(predict(run.place(student), some, run).logits, some.given_labels.cpu(), reduction="none")
        return loss_mixture.cut(values, some.given_labels, loss_mixture.Settings(), run.generator("bench"))

    def find_centroids(student: Classifier) -> object:
        output = predict(run.place(student), some, run)
        return class_centroids(output.features, output.logits.softmax(1))

    def evaluate_textbook(student: Classifier) -> object:
        return test_pass(testing, student, run.device)  # type: ignore[arg-type]

    return {
        "retain_pass": Stage(retain, 3, published(retain, 128, retain_loss(centroids)), ours(retain, 128, our_retain, 1.0)),
        "forget_pass": Stage(forget, 4, published(forget, 512, forget_loss(centroids)), ours(forget, 512, our_forget, 1.0)),
        "pretrain_epoch": Stage(
            retain, 3, lambda student: train_pass(training, student, plain_sgd(student), run.device), ours(retain, 128, cross_entropy, None)
        ),  # type: ignore[arg-type]
        "evaluation": Stage(retain, 1, evaluate_textbook, lambda student: accuracy(run.place(student), some, run)),
        "detection": Stage(retain, 1, evaluate_textbook, detect),
        "centroids": Stage(retain, 1, evaluate_textbook, find_centroids),
    }


def timed(work: Callable[[Classifier], object], model: Classifier, device: torch.device) -> float:
    """Return the seconds that `work` takes on a copy of `model`."""
    student = copy.deepcopy(model).to(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work(student)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def matrix_rate(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of the best of five large matrix products."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32) for _ in range(2))
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for the device
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def measure(asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return, for each stage, the ratio (median, least, most), seconds, images/s and the share of the matrix product's rate that ours reaches."""
    run = Run.create(device=asked.device, precision=asked.precision, stage="bench")
    generator = torch.Generator().manual_seed(0)
    count = max(asked.retain, asked.forget)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = Images(pixels, labels, tuple("0123456789"), [str(i) for i in range(count)], preprocessing=CIFAR).to(run.device)
    torch.manual_seed(0)
    model = preactresnet18(10, width=asked.width)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 32, 32))
    per_image, limit = counter.get_total_flops(), matrix_rate(run.device, run.precision)
    result = {}
    for name, stage in stages(images, model, run, asked.retain, asked.forget, asked.workers).items():
        if asked.quick and name not in ("retain_pass", "forget_pass", "pretrain_epoch"):
            continue
        pairs = []
        for number in range(asked.rounds + 1):
            pair = [timed(work, model, run.device) for work in (stage.textbook, stage.ours)]
            if number:  # the first round starts worker processes and warms caches
                pairs.append(pair)
            print(f"{name}, round {number} of {asked.rounds}: textbook {pair[0]:.2f} s, fspmu {pair[1]:.2f} s", file=sys.stderr)
        ratios = [slow / fast for slow, fast in pairs]
        textbook, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        result[name] = {
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "textbook_s": textbook,
            "fspmu_s": ours,
            "textbook_images_per_s": stage.samples / textbook,
            "fspmu_images_per_s": stage.samples / ours,
            "fspmu_share_of_matrix_rate": stage.samples * stage.units * per_image / ours / limit,
        }
    memory = torch.cuda.max_memory_allocated() if run.device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    machine = {"matrix_flops": limit, "peak_memory_bytes": float(memory), "threads": float(torch.get_num_threads()), "width": float(asked.width)}
    return result | {"machine": machine}


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two passes and the training epoch alone")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds after a first one that does not count")
    parser.add_argument("--retain", type=int, default=128, help="images of a retain pass and of a training epoch")
    parser.add_argument("--forget", type=int, default=512, help="images of a forget pass")
    parser.add_argument("--width", type=int, default=64, help="width of PreActResNet18")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the textbook's loader")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="precision of fspmu: auto, fp32, bf16; the textbook has fp32")
    asked = parser.parse_args()
    result = measure(asked)
    if asked.json:
        print(json.dumps(result))
        return
    machine = result["machine"]
    print(f"{platform.machine()}, width {asked.width}, {machine['threads']:.0f} threads, matrix product {machine['matrix_flops'] / 1e9:.0f} GFLOP/s")
    print("| stage | ratio (min to max) | textbook images/s | fspmu images/s | share of matrix rate |\n|---|---|---|---|---|")
    for name, figures in result.items():
        if "ratio" in figures:
            speeds = f"{figures['textbook_images_per_s']:.1f} | {figures['fspmu_images_per_s']:.1f} | {figures['fspmu_share_of_matrix_rate']:.0%}"
            print(f"| {name} | {figures['ratio']:.2f} ({figures['ratio_min']:.2f} to {figures['ratio_max']:.2f}) | {speeds} |")


if __name__ == "__main__":
    main()
