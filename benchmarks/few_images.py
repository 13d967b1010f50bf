"""What is found, and what a repair is worth, where there are few images, or fewer than the network has features.

    python benchmarks/few_images.py > benchmarks/records/few-images.jsonl
    python benchmarks/few_images.py --table benchmarks/records/few-images.jsonl

Digits of which a share is moved to another class, and a plain network with 48 features trained until it knows most of these labels by heart; then
`fspmu.repair` by each detector, measured on 240 clean digits. One JSON line for each number of images, share of wrong labels, seed and detector.
"""

import argparse
import json
import statistics
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fspmu

SITUATIONS = ((30, 0.1, 20), (100, 0.2, 20), (100, 0.0, 20), (360, 0.2, 30), (360, 0.0, 30), (1000, 0.3, 10))
"""Images, share of wrong labels, epochs of training."""
WAYS = (("gmm", "original"), ("feature-margin", "tuned-soft"), ("noise-transition", "tuned-soft"))
"""Detectors and presets; the first is what was published, the last what `fspmu` does by itself."""
TEST = 240


def main() -> None:
    """Print a line for each repair, or with --table the table of such lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", type=Path, help="print the table of these lines instead")
    options = parser.parse_args()
    if options.table is not None:
        print(table([json.loads(line) for line in options.table.read_text().splitlines()]))
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for count, share, epochs in SITUATIONS:
        for seed in range(options.seeds):
            pixels, given, truth, test_pixels, test_truth = digits(count, share, seed)
            network = learn(pixels, given, epochs, seed)
            for detector, preset in WAYS:
                how = {"detector": detector, "preset": preset, "truth": truth, "seed": seed, "keep": "always"}
                place = {"device": "cpu", "precision": "fp32", "progress": False}
                record = fspmu.repair(network, (pixels, given), evaluation=(test_pixels, test_truth), **how, **place).record
                line = {
                    "images": count,
                    "wrong": int((given != truth).sum()),
                    "share": share,
                    "epochs": epochs,
                    "detector": detector,
                    "preset": preset,
                    "seed": seed,
                }
                line |= {"flagged": record["detection"]["forget"], "quality": record["detection"]["quality"], "test_accuracy": record["test_accuracy"]}
                print(json.dumps(line, sort_keys=True), flush=True)


def digits(count: int, share: float, seed: int) -> tuple[np.ndarray, Tensor, Tensor, np.ndarray, Tensor]:
    """Return pixels (N, 8, 8) uint8 of so many digits, their labels as given and as they are, and pixels and labels of others."""
    values, labels = load_digits(return_X_y=True)
    pixels, truth = np.rint(values.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8), torch.from_numpy(labels.astype(np.int64))
    draw = torch.Generator().manual_seed(seed)
    rows, others = torch.randperm(len(truth), generator=draw)[: count + TEST].split([count, TEST])
    moved = torch.rand(count, generator=draw) < share
    given = torch.where(moved, (truth[rows] + torch.randint(1, 10, (count,), generator=draw)) % 10, truth[rows])
    return pixels[rows.numpy()], given, truth[rows], pixels[others.numpy()], truth[others]


def learn(pixels: np.ndarray, given: Tensor, epochs: int, seed: int) -> nn.Module:
    """Return a network trained on the given labels as anybody would, in evaluation mode."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(768, 48), nn.ReLU(), nn.Linear(48, 10))
    images = torch.from_numpy(pixels).float()[:, None] / 255
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(60):
            optimizer.zero_grad()
            F.cross_entropy(network(images[rows]), given[rows]).backward()
            optimizer.step()
    return network.eval()


def table(lines: list[dict]) -> str:
    """Return means over seeds: of all wrong labels found and of all right ones flagged, percent, and test accuracy before and after."""
    rows = ["| images | wrong | detector, preset | wrong labels found | right labels flagged | before | after |", "|---|---|---|---|---|---|---|"]
    for key in dict.fromkeys((line["images"], line["share"], line["detector"], line["preset"]) for line in lines):
        group = [line for line in lines if (line["images"], line["share"], line["detector"], line["preset"]) == key]
        wrong, images = sum(line["wrong"] for line in group), key[0] * len(group)
        found = sum(round((line["quality"]["recall"] or 0) * line["wrong"]) for line in group)
        flagged = sum(line["flagged"] for line in group) - found
        before, after = (100 * statistics.fmean(line["test_accuracy"][name] for line in group) for name in ("before", "last"))
        told = f"{100 * found / wrong:.0f}" if wrong else ""
        rows.append(
            f"| {key[0]:,} | {wrong / len(group):g} | `{key[2]}`, `{key[3]}` | {told} | {100 * flagged / (images - wrong):.1f} | {before:.1f} | {after:.1f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
