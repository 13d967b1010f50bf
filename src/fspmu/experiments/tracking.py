"""The figures of every epoch, to a tracker that Accelerate knows; off unless asked for."""

import contextlib
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fspmu.engine.run import Run
from fspmu.errors import InputError, choose

TRACKERS = {
    "tensorboard": "event files in the folder `tracking` of the run",
    "wandb": "a run of the project fspmu at Weights & Biases",
    "mlflow": "a run of the experiment fspmu of the MLflow server that MLFLOW_TRACKING_URI names",
    "trackio": "a run of the project fspmu in Trackio",
}
_NAME_FIELD = {"wandb": "name", "mlflow": "run_name", "trackio": "name"}


def check_tracker(name: str | None) -> None:
    """Raise InputError unless `name` is None or a tracker that is installed."""
    if name is not None:
        choose(TRACKERS, name, "tracker")
        if find_spec(name) is None:
            raise InputError(f"--track {name} needs the package {name}; pip install {name}, or leave --track out")


class AccelerateTracker:
    """One tracker of Accelerate's; it lives in the main process."""

    def __init__(self, name: str, folder: Path, config: dict[str, Any], run: Run) -> None:
        from accelerate import Accelerator

        self._name, self._run, place = name, run, folder / "tracking"
        named = {name: {_NAME_FIELD[name]: folder.name}} if name in _NAME_FIELD else {}
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some greet; standard output is ours
                self._accelerator = Accelerator(log_with=name, project_dir=str(place), cpu=run.device.type == "cpu")
                self._accelerator.init_trackers("fspmu", config=_flat(config), init_kwargs=named)
        except Exception as error:  # theirs, of any kind: no account, no server
            shutil.rmtree(place, ignore_errors=True)
            raise InputError(f"--track {name} could not start ({type(error).__name__}: {error}); mend that, or leave --track out") from error

    def log(self, values: dict[str, float], epoch: int) -> None:
        """Send the figures of one epoch."""
        self._safely(lambda: self._accelerator.log(values, step=epoch))

    def finish(self) -> None:
        """Send what is left. Not the accelerator's own end, which would part the processes."""
        for tracker in self._accelerator.trackers:
            self._safely(tracker.finish)

    def _safely(self, work: Callable[[], None]) -> None:
        """Do `work`; a tracker that fails costs a notice, not the run."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                work()
        except Exception as error:
            self._run.notice(f"--track {self._name} lost figures ({type(error).__name__}: {error}); they are all in metrics.jsonl")


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return nested settings as `outer.inner` pairs, which is all that trackers take."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat
