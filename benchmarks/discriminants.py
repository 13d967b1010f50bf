"""Do detectors that fit a discriminant keep up with a million samples? Seconds and peak memory of the whole score, in a process of its own.

    python benchmarks/discriminants.py [--detector NAME] [--samples N] [--features D] [--classes K] [--threads T] [--json]

Features are drawn at random around their classes, float16 as they are gathered, a chunk at a time; drawing them is not counted. A fifth of the labels is wrong.
The peak of memory is that of the process; what it held with its features ready is given beside it.
"""

import argparse
import json
import resource
import sys
import time

import torch
from torch import Tensor

from fspmu.detection import feature_margin, noise_transition
from fspmu.detection.evidence import Evidence

CHUNK = 8192
DETECTORS = {"feature-margin": feature_margin, "noise-transition": noise_transition}


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def draw(samples: int, width: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (N, D) float16, given labels (N,), and which of them are wrong (N,) bool."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, classes, (samples,), generator=generator)
    wrong = torch.rand(samples, generator=generator) < 0.2
    given = torch.where(wrong, (true + torch.randint(1, max(2, classes), (samples,), generator=generator)) % classes, true)
    means = 8 * torch.randn(classes, width, generator=generator) / width**0.5
    features = torch.empty(samples, width, dtype=torch.float16)
    for start in range(0, samples, CHUNK):
        rows = slice(start, start + CHUNK)
        features[rows] = means[true[rows]] + torch.randn(len(true[rows]), width, generator=generator)
    return features, given, wrong & (given != true)


def measure(name: str, samples: int, width: int, classes: int) -> dict[str, float]:
    """Return seconds, bytes at the peak and before the score, and how much of the samples is judged rightly."""
    detector = DETECTORS[name]
    settings = detector.Settings()
    detector.score(Evidence(torch.arange(64) % 2, 2, block=torch.randn(64, 4)), settings, torch.Generator())  # libraries load parts of themselves late
    features, given, wrong = draw(samples, width, classes)
    before, started = peak_bytes(), time.perf_counter()
    score = detector.score(Evidence(given, classes, block=features), settings, torch.Generator())
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_bytes": peak_bytes(), "ready_bytes": before, "judged_rightly": float(((score > 0) == wrong).float().mean())}


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a line or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=DETECTORS, default="feature-margin", help="whose score")
    parser.add_argument("--samples", type=int, default=1_000_000, metavar="N", help="number of samples")
    parser.add_argument("--features", type=int, default=512, metavar="D", help="width of the features")
    parser.add_argument("--classes", type=int, default=1000, metavar="K", help="number of classes")
    parser.add_argument("--threads", type=int, default=None, metavar="T", help="threads of PyTorch")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    asked = parser.parse_args(arguments)
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    found = measure(asked.detector, asked.samples, asked.features, asked.classes)
    if asked.json:
        sizes = {"detector": asked.detector, "samples": asked.samples, "features": asked.features, "classes": asked.classes}
        print(json.dumps(sizes | {"threads": torch.get_num_threads()} | found))
        return
    print(
        f"{asked.detector}: N = {asked.samples:,}, D = {asked.features}, K = {asked.classes:,}, threads: {torch.get_num_threads()}: "
        f"{found['seconds']:.1f} s, {found['peak_bytes'] / 2**30:.2f} GiB at the peak ({found['ready_bytes'] / 2**30:.2f} GiB with the features ready), "
        f"{found['judged_rightly']:.1%} of the samples judged rightly"
    )


if __name__ == "__main__":
    main()
