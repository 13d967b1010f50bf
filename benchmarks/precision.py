"""Does bf16 change what comes out? The small CIFAR-10 protocol in fp32 and in bf16, over several seeds.

    python benchmarks/precision.py --data-dir DIR --out DIR

First 5,000 training images, PreActResNet18 of width 16, 12 epochs on 50% symmetric noise, then the published repair by `gmm`. Every part is resumable: run
the same command again. Prints a Markdown table and writes one JSON line per run to OUT/records.jsonl.

A CPU without bf16 instructions computes bf16 convolutions a dozen times slower than fp32 ones. There this script computes them in fp32, on operands rounded to
bf16 and with results rounded to bf16, which is what the instructions do (products summed in fp32, rounded once); all else is `--precision bf16` itself.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.engine.device import choose_device, choose_precision
from fspmu.experiments.experiment import Compute, Pretrain, Unlearn
from fspmu.experiments.pipeline import pretrain
from fspmu.experiments.repair_run import unlearn
from fspmu.pretraining.cross_entropy import Settings
from fspmu.results.store import append_line

COLUMNS = ("original, last", "repaired, last", "detection F1")


class RoundedConvolution(torch.autograd.Function):
    """A 2-D convolution of bf16 tensors: products summed in fp32, results rounded to bf16, forward and backward."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Tensor:
        """Return the convolution in the dtype of `images`."""
        ctx.save_for_backward(images, weight)
        ctx.options, ctx.with_bias = options, bias is not None
        stride, padding, dilation, groups = options
        plain = nn.functional.conv2d(images.float(), weight.float(), None if bias is None else bias.float(), stride, padding, dilation, groups)
        return plain.to(images.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of images, weight and bias, in the dtype of `images`."""
        images, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        wanted = (*ctx.needs_input_grad[:2], ctx.with_bias)
        plain = torch.ops.aten.convolution_backward(
            gradient.float(), images.float(), weight.float(), [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, wanted
        )
        return *(None if part is None else part.to(images.dtype) for part in plain), None


def round_convolutions() -> None:
    """Let every convolution under bf16 autocast on the CPU go through `RoundedConvolution`."""
    ordinary = nn.Conv2d._conv_forward

    def forward(self: nn.Conv2d, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return ordinary(self, images, weight, bias)
        images, weight = images.bfloat16(), weight.bfloat16()
        bias = None if bias is None else bias.bfloat16()
        with torch.autocast("cpu", enabled=False):
            return RoundedConvolution.apply(images, weight, bias, (self.stride, self.padding, self.dilation, self.groups))

    nn.Conv2d._conv_forward = forward  # type: ignore[method-assign]


def figures(asked: argparse.Namespace, precision: str, seed: int) -> tuple[list[float], list[dict[str, Any]]]:
    """Return the figures of COLUMNS (percent) and the records of one seed."""
    place = asked.out / f"{precision}-{seed}"
    trained = pretrain(
        Pretrain(
            dataset="cifar10",
            model="preactresnet18",
            width=16,
            data=DataOptions(data_dir=asked.data_dir, limit=asked.limit),
            noise=NoiseOptions(noise_mode="sym", noise_rate=0.5),
            settings=Settings(epochs=asked.epochs),
            compute=Compute(precision=precision, seed=seed, out=place, resume=True),
        )
    )
    compute = Compute(precision=precision, out=place / "repaired", resume=True)
    repaired = unlearn(Unlearn(run=trained.folder, data_dir=asked.data_dir, detector="gmm", preset="original", compute=compute))
    accuracy, quality = repaired.record["test_accuracy"], repaired.record["detection"]["quality"]
    return [100 * trained.record["test_accuracy"]["last"], 100 * accuracy["last"], 100 * quality["f1"]], [trained.record, repaired.record]


def main() -> None:
    """Run every seed in both precisions and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=None, help="folder that holds cifar10/")
    parser.add_argument("--out", type=Path, default=Path("runs/precision"), help="folder for the runs")
    parser.add_argument("--limit", type=int, default=5000, help="training images, the first ones")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of training")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    asked = parser.parse_args()
    if choose_precision("auto", choose_device("auto")) != "bf16":
        round_convolutions()
    rows: dict[str, list[list[float]]] = {"fp32": [], "bf16": []}
    records = []
    for seed in range(asked.seeds):
        for precision, row in rows.items():
            numbers, found = figures(asked, precision, seed)
            row.append(numbers)
            records += found
    print(f"| precision | {' | '.join(COLUMNS)} |\n|---|---|---|---|")
    for precision, row in rows.items():
        cells = [f"{statistics.mean(column):.2f} ± {statistics.stdev(column) if len(column) > 1 else 0:.2f}" for column in zip(*row, strict=True)]
        print(f"| {precision} | {' | '.join(cells)} |")
    (asked.out / "records.jsonl").unlink(missing_ok=True)
    for record in records:
        record["data"]["data_dir"] = None  # where the images lay is nobody's business
        append_line(asked.out / "records.jsonl", record)


if __name__ == "__main__":
    main()
