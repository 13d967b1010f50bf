"""What a repair leaves behind, and the folder it lies in."""

import contextlib
import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fspmu.centroids import class_centroids
from fspmu.data.sources import check_outside
from fspmu.detection.label_issues import write_issues
from fspmu.engine.checkpoint import save_model, save_tensors
from fspmu.engine.handing_back import hand_back
from fspmu.engine.inference import Predictions, within
from fspmu.engine.model_card import CardFacts, Measured
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.models.adopt import Adopted
from fspmu.models.classifier import Classifier
from fspmu.results.cells import prefixed
from fspmu.results.store import RunFolder, replacing, write_json, write_text
from fspmu.stages.finding import Detection
from fspmu.stages.judging import Comparison
from fspmu.stages.mending import Mended
from fspmu.stages.page_material import Seen, write_if_possible
from fspmu.stages.taking_in import Taken

Json = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What a repair leaves behind beside issues and record: what went in, what was found, and the network that is handed back."""

    taken: Taken
    mended: Mended
    network: Classifier
    """The network that is handed back, under our wrapping."""
    parent: str
    """Hash of the weights before."""
    comparison: Comparison | None
    verdict: str = ""
    """What the comparison says, in a sentence."""
    metrics: tuple[Json, ...] = ()
    """The figures of each epoch, as in `metrics.jsonl`."""
    settings: tuple[tuple[str, str, str], ...] = ()
    """Name, value and meaning of whatever was set."""


def check_out(out: str | Path | None, *sources: object) -> None:
    """Raise InputError when nothing may be written to `out`, as far as can be seen before any of `sources` is read; None: a folder below runs/, named later."""
    for source in sources:
        check_outside(Path(out or "runs"), source)
    if out is not None:
        RunFolder(out).check()


@contextlib.contextmanager
def entered(out: str | Path, config: Json, run: Run, *, resume: bool = True) -> Iterator[RunFolder]:
    """Enter the folder of `config`, and leave it unlocked; only the main process opens it and may write.

    resume: whether it may be one that was stopped before, or is finished.
    """
    folder = RunFolder(out)
    run.processes.from_main(lambda: folder.open(config, resume=resume))
    folder.finished = run.processes.from_main(lambda: folder.finished)
    run.folder = folder if run.processes.main else None
    try:
        yield folder
        run.processes.wait()  # whoever reads this folder next finds it whole
    except InputError:
        folder.abandon()
        raise
    finally:
        folder.close()


def write_repair(work: Work, issues: pd.DataFrame, record: Json, folder: Path) -> None:
    """Write everything but the done mark: the model in every form its owner can use, issues, split, labels, predictions, unreadable files, the record."""
    write_issues(issues, folder / "label_issues.csv")
    write_detection(work.mended.detection, folder)
    labels = {"given": work.taken.images.given_labels, "held_out": work.taken.held}
    if work.taken.evaluation is not None:
        labels["test"] = work.taken.evaluation.given_labels
    save_tensors(folder / "labels.safetensors", labels)
    write_predictions(folder, work.mended.detection.predictions, work.mended.after, work.mended.detection.split.retain)
    if work.metrics and not (folder / "metrics.jsonl").exists():
        write_text(folder / "metrics.jsonl", "".join(json.dumps(line, sort_keys=True) + "\n" for line in work.metrics))
    if work.taken.unreadable:
        _write_unreadable(work.taken.unreadable, folder / "unreadable.csv")
    if isinstance(work.network, Adopted):
        hand_back(work.network, folder, parent_hash=work.parent, facts=_card_facts(work, record))
    else:
        save_model(work.network, folder)
    if trouble := write_if_possible(folder, _seen(work, issues, record)):
        record["warnings"].append(trouble)
    write_json(folder / "record.json", record)


def _seen(work: Work, issues: pd.DataFrame, record: Json) -> Seen:
    taken, spent = work.taken, sum(seconds for seconds in record["seconds"].values() if seconds is not None)
    return Seen(
        taken.images,
        work.mended,
        issues,
        taken.model,
        taken.evaluation,
        taken.held if taken.kind == "held out" else None,
        work.settings,
        spent,
        record["config"]["seed"],
    )


def write_detection(found: Detection, folder: Path) -> None:
    """Write `split.safetensors`: both masks, P(clean) and score, (N,) each."""
    tensors = {"retain": found.split.retain, "forget": found.split.forget, "clean_probability": found.split.clean_probability, "score": found.score}
    save_tensors(folder / "split.safetensors", tensors)


def write_predictions(folder: Path, before: Predictions, after: Predictions | None, retain: Tensor) -> None:
    """Write `predictions.safetensors`: logits (N, K) float32 and features (M, D) float16 before and after, class centroids (K, D) of the retain set.

    Of a set too large to keep all features, `feature_rows` (M,) says whose they are.
    """
    logits, kept = before.logits, retain
    tensors = {}
    if before.rows is not None:
        tensors["feature_rows"] = before.rows
        logits, kept = logits[before.rows], retain[before.rows]
    tensors["centroids"] = class_centroids(before.features[kept], logits[kept].softmax(1))
    for name, seen in (("before", before), ("after", after)):
        if seen is not None:
            tensors |= {f"logits_{name}": seen.logits, f"features_{name}": within(seen.features, torch.float16)}
    save_tensors(folder / "predictions.safetensors", tensors)


def _write_unreadable(unreadable: tuple[tuple[str, str], ...], path: Path) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "reason"), *((prefixed(name), reason) for name, reason in unreadable)])


def _card_facts(work: Work, record: Json) -> CardFacts:
    images, split = work.taken.images, work.mended.detection.split
    kept = record["evaluation"]["handed_back"] if record["evaluation"] else "repaired"
    forgotten = Counter(torch.masked_select(images.given_labels.cpu(), split.forget).tolist())
    counts = images.class_counts
    measured = None
    if (seen := work.comparison) is not None:
        measured = Measured(
            seen.before,
            seen.after,
            seen.samples,
            trusted=work.taken.kind == "given",
            difference_interval=seen.difference_interval,
            before_interval=seen.before_interval,
            after_interval=seen.after_interval,
        )
    return CardFacts(
        title=str(record["data"]["name"]),
        samples=len(images),
        forgotten=split.counts["forget"],
        retained=split.counts["retain"],
        unused=int((~(split.retain | split.forget)).sum()),
        detector=work.mended.detection.report["detector"],
        method=work.mended.report["method"],
        forgotten_by_class={images.class_names[k]: (count, counts[k]) for k, count in forgotten.most_common()},
        detector_settings=work.mended.detection.report["settings"],
        cut=work.mended.detection.report.get("cut", ""),
        cut_settings=work.mended.detection.report.get("cut_settings", {}),
        method_settings=work.mended.report["settings"],
        measured=measured,
        seed=record["config"]["seed"],
        data=str(record["data"]["name"]),
        accepted=kept == "repaired",
        verdict=work.verdict,
    )
