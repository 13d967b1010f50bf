"""How a command enters the folder it writes, and leaves it: options -> run, folder, record."""

import contextlib
import signal
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fspmu.data.images import Images
from fspmu.engine.device import asked_precision
from fspmu.engine.run import Run
from fspmu.experiments.experiment import Compute
from fspmu.experiments.tracking import AccelerateTracker, check_tracker
from fspmu.results.store import RunFolder, read_json, write_json
from fspmu.stages.writing import entered

Json = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """Where a command wrote, and its record."""

    folder: Path
    record: Json
    already_done: bool = False


@contextlib.contextmanager
def folder_for(out: Path, config: Json, compute: Compute, run: Run) -> Iterator[RunFolder]:
    """Enter the folder of `config` as `entered` does; SIGTERM leaves it like Ctrl-C does, and figures go to a tracker where one is asked for."""
    with _sigterm_as_ctrl_c(), entered(out, config, run, resume=compute.resume) as folder:
        tracker = None
        if compute.track and run.processes.main and not folder.finished:
            run.tracker = tracker = AccelerateTracker(compute.track, folder.path, config, run)
        try:
            yield folder
        finally:
            if tracker is not None:
                tracker.finish()


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def stop(number: int, frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt("terminated")

    previous = None
    with contextlib.suppress(ValueError):  # only a main thread may set handlers
        previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def make_run(compute: Compute, evaluation: Images | None, seed: int) -> Run:
    """Return the run that the options ask for, its evaluation images on the device; it has no folder yet."""
    check_tracker(compute.track)
    run = Run.create(device=compute.device, precision=compute.precision, seed=seed, progress=True, compile=compute.compile, sync_bn=compute.sync_bn)
    run.test_every = compute.test_every
    run.evaluation = None if evaluation is None else evaluation.to(run.device)
    return run


def precision_config(compute: Compute) -> Json:
    """Return what was chosen of how exactly to compute."""
    return asked_precision(compute.precision) | ({"sync_bn": True} if compute.sync_bn else {})


def finish(folder: RunFolder, record: Json, run: Run) -> Outcome:
    """Write the record and the done mark: the last two files of every run."""
    if run.processes.main:
        write_json(folder.path / "record.json", record)
        folder.finish()
    return Outcome(folder.path, record)


def finished(folder: RunFolder) -> Outcome:
    """Return a run that was done before, unchanged."""
    return Outcome(folder.path, read_json(folder.path / "record.json"), already_done=True)
