"""The demonstration: real digits, wrong labels, a network that memorises them, and what repair makes of it."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fspmu.data.label_noise import NoiseOptions
from fspmu.detection import DEFAULT
from fspmu.experiments.experiment import Demo, Pretrain, Unlearn
from fspmu.experiments.pipeline import pretrain
from fspmu.experiments.repair_run import unlearn
from fspmu.experiments.reporting import report_line
from fspmu.pretraining.cross_entropy import Settings
from fspmu.report.tables import detection_table, new_table, percent, warning_of


def run_demo(options: Demo) -> tuple[dict[str, Any], list[Table], list[str], list[str]]:
    """Run training and both repairs; return the result, its tables, the lines below them, and those above.

    A finished part is not run again, so a stopped demo goes on where it was.
    """
    started = time.perf_counter()
    compute = replace(options.compute, out=options.compute.out or Path("runs") / "demo", resume=True)
    noise = NoiseOptions(noise_mode="sym", noise_rate=options.noise_rate)
    settings = Settings(epochs=options.epochs, lr_step=options.epochs)
    trained = pretrain(Pretrain(dataset="digits", noise=noise, settings=settings, compute=compute))
    repairs = {
        detector: unlearn(Unlearn(run=trained.folder, detector=detector, compute=replace(compute, out=trained.folder / f"unlearn-fspmu-{detector}")))
        for detector in ("known", DEFAULT)
    }
    seconds = time.perf_counter() - started
    if trained.already_done and all(outcome.already_done for outcome in repairs.values()):
        outcomes = (trained, *repairs.values())
        seconds = sum(spent for outcome in outcomes for stage, spent in outcome.record["seconds"].items() if outcome is trained or stage != "pretraining")
    detections = {name: outcome.record["detection"] for name, outcome in repairs.items()}
    result = {
        "original": trained.record["test_accuracy"]["last"],
        **{name: outcome.record["test_accuracy"]["last"] for name, outcome in repairs.items()},
        "seconds": seconds,
        "detection": {name: found["quality"] for name, found in detections.items()},
        "folder": str(trained.folder),
    }
    table = new_table("Test accuracy (%), last epoch", "model", "before", "after", "seconds")
    table.add_row("trained on wrong labels", "", percent(result["original"]), f"{trained.record['seconds']['pretraining']:.1f}")
    for name, outcome in repairs.items():
        spent = outcome.record["seconds"]
        accuracy = outcome.record["test_accuracy"]
        table.add_row(
            escape(f"repaired, wrong labels {name}" if name == "known" else f"repaired, wrong labels found by {name}"),
            percent(accuracy["before"]),
            percent(accuracy["last"]),
            f"{spent['detection'] + spent['unlearning']:.1f}",
        )
    data = trained.record["data"]
    lines = [
        f"{data['train']:,} training images, {data['flip_rate']:.1%} of their labels wrong; {data['test']:,} test images; {seconds:.0f} s in all",
        f"trained model   {trained.folder}",
        *(f"repaired model  {outcome.folder}" for outcome in repairs.values()),
        f"wrong labels    {repairs[DEFAULT].folder / 'label_issues.csv'}",
        *report_line(repairs[DEFAULT].folder),
    ]
    return result, [table, detection_table(detections)], lines, [line for outcome in repairs.values() for line in warning_of(outcome.record)]
