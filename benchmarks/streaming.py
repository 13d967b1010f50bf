"""Does the memory of a pass over images on disk stay the same, however many there are? Prints one line of JSON.

    python benchmarks/streaming.py --images N [--size 64] [--repair [--detector NAME]] --out DIR

Makes N small JPEG files in a folder per class below DIR where they are not there yet. They are names of only 500 different files (hard links), so that
the disk holds 500 of them: what is measured is the decoding and the memory beside it, not the disk. Each N runs in a process of its own: peaks do not shrink.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import fspmu
from fspmu.data.arrays import load_images
from fspmu.data.batches import Batch, Batches
from fspmu.data.stream import StreamedPixels
from fspmu.engine.inference import predict
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import sgd, train_epoch
from fspmu.models.smallcnn import smallcnn
from fspmu.preprocessing import Geometry
from fspmu.unlearning.feature_preserving import Settings

CLASSES, DIFFERENT, SEED = 10, 500, 0
WIDTH = 4
"""Of the network: its 16 features and 10 logits of each image are kept too."""


def make_images(folder: Path, count: int, size: int) -> None:
    """Fill `folder` with `count` images of `size` x `size` in CLASSES folders."""
    draw = np.random.default_rng(SEED)
    for row in range(count):
        path = folder / f"class {row % CLASSES}" / f"{row:07}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        first = folder / f"class {row % DIFFERENT % CLASSES}" / f"{row % DIFFERENT:07}.jpg"
        if row >= DIFFERENT:
            os.link(first, path)
            continue
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=85)


def peak() -> float:
    """Return the largest memory that this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def loss(model: Forward, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the cross-entropy of a batch."""
    return F.cross_entropy(model(batch.images).logits, batch.given_labels), {}


def with_512_features() -> nn.Module:
    """Return a classifier that costs little, with as many features as a ResNet18."""
    pooled = (nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    return nn.Sequential(*pooled, nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, CLASSES))


def measure_repair(folder: Path, size: int, out: Path, detector: str | None) -> dict[str, float | int]:
    """Return seconds and peak of a whole repair of one epoch, results written; the network is untrained, so what it finds means nothing."""
    torch.manual_seed(SEED)
    figures: dict[str, float | int] = {"before_mib": round(peak(), 1)}
    settings = Settings(epochs=1, forget_epochs=1)
    how = {"detector": detector, "settings": settings, "keep": "always", "precision": "fp32"}
    result = fspmu.repair(with_512_features(), folder, size=size, storage="disk", out=out, **how)
    return figures | {"images": len(result.issues), "forgotten": result.record["detection"]["forget"]}


def measure(folder: Path, size: int) -> dict[str, float | int]:
    """Return seconds and peaks of each step: reading all once, a pass without training, an epoch of training."""
    figures: dict[str, float | int] = {"before_mib": round(peak(), 1)}
    clock = time.perf_counter()

    def note(step: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        figures[f"{step}_s"], figures[f"{step}_mib"] = round(now - clock, 2), round(peak(), 1)
        clock = now

    images = load_images(folder, geometry=Geometry((size, size)), storage="disk").train
    assert isinstance(images.pixels, StreamedPixels)
    note("load")
    torch.manual_seed(SEED)
    model, run = smallcnn(images.num_classes, width=WIDTH), Run()
    found = predict(model, images, run)
    note("predict")
    batches = Batches(images, torch.arange(len(images)), 128, torch.Generator().manual_seed(SEED))
    value = train_epoch(model, batches, loss, sgd(model, 0.01), run)["loss"]
    note("train")
    return {"images": len(images), "predicted": len(found.logits), "loss": round(value, 4), **figures}


def main() -> None:
    """Make what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repair", action="store_true", help="measure a whole `fspmu.repair` of one epoch instead")
    parser.add_argument("--detector", help="of that repair; without, what `fspmu` takes by itself")
    options = parser.parse_args()
    folder = options.out / f"{options.images}-of-{options.size}"
    make_images(folder, options.images, options.size)
    started = time.perf_counter()
    repaired = options.out / f"{folder.name}-repaired-{options.detector or 'by-itself'}"
    figures = measure_repair(folder, options.size, repaired, options.detector) if options.repair else measure(folder, options.size)
    print(json.dumps({**figures, "seconds": round(time.perf_counter() - started, 2), "peak_mib": round(peak(), 1)}))


if __name__ == "__main__":
    main()
