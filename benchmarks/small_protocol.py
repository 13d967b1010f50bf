"""The small CIFAR-10 protocol: one network trained on 50% symmetric noise, then repaired four ways.

    python benchmarks/small_protocol.py --data-dir DIR --out DIR

First 10,000 training images, PreActResNet18 of width 16, 50 epochs, one seed. Every part is resumable: run the same command again.
Prints a Markdown table and writes one JSON line per run to OUT/records.jsonl.
"""

import argparse
from pathlib import Path

from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.experiments.experiment import Compute, Pretrain, Unlearn
from fspmu.experiments.folders import Outcome
from fspmu.experiments.pipeline import pretrain
from fspmu.experiments.repair_run import unlearn
from fspmu.pretraining.cross_entropy import Settings
from fspmu.results.store import append_line


def main() -> None:
    """Run the protocol and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=None, help="folder that holds cifar10/")
    parser.add_argument("--out", type=Path, default=Path("runs/small-protocol"), help="folder for the runs")
    parser.add_argument("--limit", type=int, default=10_000, help="training images, the first ones")
    parser.add_argument("--epochs", type=int, default=50, help="epochs of training")
    parser.add_argument("--noise-mode", default="sym", help="sym or asym")
    parser.add_argument("--noise-rate", type=float, default=0.5, help="share of noise slots, a fraction")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    compute = Compute(precision=asked.precision, seed=asked.seed, out=asked.out / "original", resume=True)
    trained = pretrain(
        Pretrain(
            dataset="cifar10",
            model="preactresnet18",
            width=16,
            data=DataOptions(data_dir=asked.data_dir, limit=asked.limit),
            noise=NoiseOptions(noise_mode=asked.noise_mode, noise_rate=asked.noise_rate),
            settings=Settings(epochs=asked.epochs),
            compute=compute,
        )
    )
    outcomes = {"original": trained}
    for method in ("fspmu", "scrub-reference"):
        for detector in ("known", "gmm"):
            name = f"{method}, {detector}"
            repair = Compute(precision=asked.precision, out=asked.out / name.replace(", ", "-"), resume=True)
            preset = "original" if method == "fspmu" else None
            outcomes[name] = unlearn(Unlearn(run=trained.folder, data_dir=asked.data_dir, method=method, preset=preset, detector=detector, compute=repair))
    print(table(outcomes))
    records = asked.out / "records.jsonl"
    records.unlink(missing_ok=True)
    for outcome in outcomes.values():
        append_line(records, outcome.record)


def table(outcomes: dict[str, Outcome]) -> str:
    """Return the Markdown table: accuracies last before best, detection, seconds of the stages a run added."""
    lines = ["| system | last | best* | detection F1 | purity | seconds |", "|---|---|---|---|---|---|"]
    for name, outcome in outcomes.items():
        record = outcome.record
        accuracy, seconds = record["test_accuracy"], record["seconds"]
        quality = (record["detection"] or {}).get("quality") or {}
        spent = seconds["detection"] + seconds["unlearning"] if record["unlearning"] else seconds["pretraining"]
        figures = [accuracy["last"], accuracy["best"], quality.get("f1"), quality.get("retain_purity")]
        cells = ["–" if figure is None else f"{100 * figure:.2f}" for figure in figures]
        lines.append(f"| {name} | {' | '.join(cells)} | {spent:.0f} |")
    return "\n".join([*lines, "", "\\* picked on test data"])


if __name__ == "__main__":
    main()
