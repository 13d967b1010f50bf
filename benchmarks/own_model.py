"""The whole way of somebody with a model and a folder: CIFAR-10 as image files, wrong labels, a timm network that memorised them, `fspmu repair`.

    python benchmarks/own_model.py --data-dir DIR --out runs/own-model

Prints one JSON line: the accuracy on clean test images of the network before and after, measured here with timm and torch alone.
"""

import argparse
import csv
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

CHANNEL = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


def main() -> None:
    """Prepare what is not there yet, repair, and measure."""
    options = parse()
    names, train = read(options.data_dir, "train", options.images)
    test = read(options.data_dir, "test", options.test_images)[1]
    folder, weights = options.out / "photos", options.out / "memorised.safetensors"
    given = write_photos(folder, names, train, options.noise, options.seed)
    if not weights.exists():
        learn(options, train, given, len(names), weights)
    before = timm.create_model(options.model, num_classes=len(names))
    before.load_state_dict(load_file(weights))
    out = options.out / options.name
    command = [sys.executable, "-m", "fspmu", "repair", "--dataset", str(folder), "--model", f"timm:{options.model}", "--weights", str(weights)]
    command += ["--size", "32", "--mean", *map(str, CHANNEL["mean"]), "--std", *map(str, CHANNEL["std"]), "--out", str(out), "--seed", str(options.seed)]
    started = time.perf_counter()
    subprocess.run([*command, "--resume", *options.more], check=True)
    seconds = time.perf_counter() - started
    after = timm.create_model(options.model, num_classes=len(names))
    after.load_state_dict(load_file(out / "repaired.safetensors"))
    record = json.loads((out / "record.json").read_text())
    figures = {
        "model": options.model,
        "images": len(train[1]),
        "wrong": float(np.mean(given != train[1])),
        "test_images": len(test[1]),
        "train_agreement_before": accuracy(before, train[0], given),
        "test_before": accuracy(before, *test),
        "test_after": accuracy(after, *test),
        "detector": record["detection"]["detector"],
        "settings": record["config"]["settings"],
        "evaluation": record["evaluation"],
        "detection": detection_quality(out / "label_issues.csv", names, train[1], given),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "seed": options.seed,
    }
    print(json.dumps(figures, sort_keys=True))


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="repaired", help="folder of this repair below --out")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--test-images", type=int, default=4000)
    parser.add_argument("--noise", type=float, default=0.3, help="share of images whose label is moved to another class")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--stop-at", type=float, default=0.9, help="share of the given labels that is enough to have learned")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("more", nargs="*", help="further flags of `fspmu repair`, after --")
    return parser.parse_args()


def read(data_dir: Path, part: str, count: int) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
    """Return class names, pixels (N, 32, 32, 3) uint8 and true labels (N,) of the first images."""
    file = next((data_dir / "cifar10" / "data").glob(f"{part}-*.parquet"))
    table = pq.read_table(file, columns=["img", "label"]).slice(0, count)
    info = json.loads(pq.read_schema(file).metadata[b"huggingface"])
    pixels = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in table["img"].to_pylist()]
    return info["info"]["features"]["label"]["names"], (np.stack(pixels), np.asarray(table["label"]))


def write_photos(folder: Path, names: list[str], train: tuple[np.ndarray, np.ndarray], noise: float, seed: int) -> np.ndarray:
    """Write a folder per class as PNG files, some of them into a wrong one; return the labels (N,) that this gives."""
    draw = np.random.default_rng(seed)
    given = train[1].copy()
    moved = draw.random(len(given)) < noise
    given[moved] = (given[moved] + draw.integers(1, len(names), moved.sum())) % len(names)
    for place, (pixels, label) in enumerate(zip(train[0], given, strict=True)):
        path = folder / names[label] / f"{place:05}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return given


def normalised(pixels: np.ndarray) -> torch.Tensor:
    """Return (N, 3, 32, 32) float."""
    mean, std = (torch.tensor(CHANNEL[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std


def learn(options: argparse.Namespace, train: tuple[np.ndarray, np.ndarray], given: np.ndarray, classes: int, weights: Path) -> None:
    """Train an ordinary network with an ordinary loop until it has memorised the labels it was given."""
    torch.manual_seed(options.seed)
    model, images, labels = timm.create_model(options.model, num_classes=classes), normalised(train[0]), torch.from_numpy(given)
    optimizer = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=0.01)
    for epoch in range(options.epochs):
        model.train()
        for rows in torch.randperm(len(labels)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        agreement = accuracy(model, train[0], given)
        print(f"epoch {epoch + 1}: agrees with {agreement:.1%} of the given labels", file=sys.stderr, flush=True)
        if agreement > options.stop_at:
            break
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)


@torch.no_grad()
def accuracy(model: torch.nn.Module, pixels: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of predictions that are the labels."""
    model.eval()
    said = torch.cat([model(normalised(part)).argmax(1) for part in np.array_split(pixels, max(1, len(pixels) // 256))])
    return float((said.numpy() == labels).mean())


def detection_quality(path: Path, names: list[str], true: np.ndarray, given: np.ndarray) -> dict[str, float]:
    """Return precision and recall of the table of issues, positive = wrong label."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = np.zeros(len(true), dtype=bool)
    found[[int(Path(row["id"]).stem) for row in rows if row["is_label_issue"] == "True"]] = True
    wrong = given != true
    return {"precision": float(wrong[found].mean()), "recall": float(found[wrong].mean()), "rows": len(rows)}


if __name__ == "__main__":
    main()
