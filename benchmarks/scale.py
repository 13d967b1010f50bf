"""Do the stages beside the network keep up with a million samples? Their seconds and memory at N = 10,000, 100,000 and 1,000,000.

    python benchmarks/scale.py [--largest N] [--features D] [--classes K] [--json]

No network runs here: features are drawn at random, a batch at a time, so that no (N, D) ever exists; drawing them is not counted. Each figure comes
from a fresh process, after a small round that loads what libraries load late. Extra memory is the peak of that process above what it held with its input ready.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from fspmu.centroids import centroid_sums
from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.detection.cuts import mixture
from fspmu.detection.label_issues import Opinions, join_opinions, label_issues, opinions_of, write_issues
from fspmu.engine.checkpoint import save_state
from fspmu.engine.run import Run
from fspmu.pretraining.trained import SampleHistory

SMALL = 1000
SIZES = (10_000, 100_000, 1_000_000)
PREDICTED, TRAINED = 256, 128
"""Samples per batch: of a pass without training on a CPU, and of a training epoch."""
EPOCHS = 201
"""Epochs of the published training."""

Figures = dict[str, float]


class Meter:
    """Seconds spent within its `with` blocks, and the peak of memory above what was held when it was made."""

    def __init__(self) -> None:
        self.seconds, self._before = 0.0, self._peak()

    @staticmethod
    def _peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._started

    def figures(self, written: Path | None = None) -> Figures:
        """Return what was measured, with the size of the file that was written."""
        figures = {"seconds": self.seconds, "extra_bytes": float(self._peak() - self._before)}
        return figures | ({"file_bytes": float(written.stat().st_size)} if written else {})


def spans(count: int, size: int) -> Iterator[slice]:
    """Yield the slices of `count` rows in batches."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def cut_scores(samples: int, features: int, classes: int, folder: Path) -> Figures:
    """Measure the cut of `gmm`: losses of 70% clean and 30% wrong labels -> P(clean)."""
    generator = torch.Generator().manual_seed(0)
    score = torch.empty(samples)
    for rows in spans(samples, PREDICTED):
        count = rows.stop - rows.start
        clean, wrong = -0.4 * torch.rand(count, generator=generator).clamp(min=1e-6).log(), (5 + torch.randn(count, generator=generator)).clamp(min=0)
        score[rows] = torch.where(torch.rand(count, generator=generator) < 0.3, wrong, clean)
    given = torch.zeros(samples, dtype=torch.int64)
    meter = Meter()
    with meter:
        mixture.cut(score, given, mixture.Settings(), generator)
    return meter.figures()


def stream_features(samples: int, features: int, classes: int, folder: Path) -> Figures:
    """Measure a pass over features (B, D) through a linear head: sums of the class centroids, and opinions."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(0, classes, (samples,), generator=generator)
    head = nn.Linear(features, classes)
    sums = torch.zeros(classes, features, dtype=torch.float64)
    meter, drawing = Meter(), Meter()

    def stream() -> Iterator[Opinions]:
        for rows in spans(samples, PREDICTED):
            with drawing:
                seen = torch.randn(rows.stop - rows.start, features, generator=generator)
            probabilities = head(seen).softmax(1)
            sums.add_(centroid_sums(seen, probabilities))
            yield opinions_of(probabilities, given[rows])

    with meter, torch.no_grad():
        join_opinions(stream(), samples)
    meter.seconds -= drawing.seconds
    return meter.figures()


def issues_of(samples: int, classes: int) -> Callable[[], pd.DataFrame]:
    """Return a function that builds the table of label issues of random opinions."""
    generator = torch.Generator().manual_seed(0)
    given, predicted, alternative = torch.randint(0, classes, (3, samples), generator=generator)
    clean, first, second = torch.rand(3, samples, generator=generator)
    names, ids = tuple(f"class {k}" for k in range(classes)), [f"train/{row:07d}.png" for row in range(samples)]
    images = Images(torch.zeros(samples, 1, 1, 1, dtype=torch.uint8), given, names, ids, ids)
    split, opinions = Split(clean > 0.5, clean <= 0.5, clean), Opinions(predicted, alternative, first, second)
    return lambda: label_issues(images, split, opinions)


def build_issues(samples: int, features: int, classes: int, folder: Path) -> Figures:
    """Measure the table of label issues."""
    build = issues_of(samples, classes)
    meter = Meter()
    with meter:
        build()
    return meter.figures()


def write_csv(samples: int, features: int, classes: int, folder: Path) -> Figures:
    """Measure the writing of the table of label issues; the peak of memory is that of table and file together."""
    build, path = issues_of(samples, classes), folder / "label_issues.csv"
    meter = Meter()
    table = build()
    with meter:
        write_issues(table, path)
    return meter.figures(path)


def record_epoch(samples: int, features: int, classes: int, folder: Path) -> Figures:
    """Measure an epoch of margins, batch by shuffled batch."""
    generator = torch.Generator().manual_seed(0)
    given, order = torch.randint(0, classes, (samples,), generator=generator), torch.randperm(samples, generator=generator)
    history = SampleHistory(samples, Run(stage="scale"))
    meter = Meter()
    for rows in spans(samples, TRAINED):
        index = order[rows]
        logits, labels = torch.randn(len(index), classes, generator=generator), given[index]
        with meter:
            history.record(index, logits, labels)
    with meter:
        history.end_epoch()
    return meter.figures()


def save_history(samples: int, features: int, classes: int, folder: Path, epochs: int) -> Figures:
    """Measure the saving of a state with the margins of some epochs, as after each epoch of training."""
    history, path = SampleHistory(samples, Run(stage="scale")), folder / "state.safetensors"
    history.load_state_dict({"margins": torch.zeros(epochs, samples, dtype=torch.float16)})
    meter = Meter()
    with meter:
        save_state(path, {"history": history}, {})
    return meter.figures(path)


STAGES: dict[str, Callable[[int, int, int, Path], Figures]] = {
    "`gmm`: the cut": cut_scores,
    "centroids and opinions: one pass over features": stream_features,
    "label issues: the table": build_issues,
    "label issues: table and CSV file, seconds of the file": write_csv,
    "history: one epoch recorded": record_epoch,
    "history: the state of 1 epoch saved": partial(save_history, epochs=1),
    f"history: the state of {EPOCHS} epochs saved": partial(save_history, epochs=EPOCHS),
}


def measure(name: str, samples: int, features: int, classes: int) -> Figures:
    """Return the figures of one stage; meant for a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        STAGES[name](SMALL, features, classes, Path(folder))  # libraries load parts of themselves on first use
        return STAGES[name](samples, features, classes, Path(folder))


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=SIZES[-1], metavar="N", help="leave out larger sets than this")
    parser.add_argument("--features", type=int, default=512, metavar="D", help="width of the features")
    parser.add_argument("--classes", type=int, default=10, metavar="K", help="number of classes")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    asked = parser.parse_args()
    results = []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for name in STAGES:
            for samples in (size for size in SIZES if size <= asked.largest):
                figures = pool.submit(measure, name, samples, asked.features, asked.classes).result()
                print(f"{name}, {samples:,} samples: {figures['seconds']:.2f} s", file=sys.stderr)
                results.append({"stage": name, "samples": samples} | figures)
    if asked.json:
        print(json.dumps({"features": asked.features, "classes": asked.classes, "threads": torch.get_num_threads(), "results": results}))
        return
    print(f"D = {asked.features}, K = {asked.classes}, threads: {torch.get_num_threads()}\n")
    print("| stage | N | seconds | extra memory, MiB | file, MB |\n|---|---|---|---|---|")
    for row in results:
        file = f"{row['file_bytes'] / 1e6:.1f}" if "file_bytes" in row else ""
        print(f"| {row['stage']} | {row['samples']:,} | {row['seconds']:.2f} | {row['extra_bytes'] / 2**20:.0f} | {file} |")


if __name__ == "__main__":
    main()
