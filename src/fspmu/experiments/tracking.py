"""The figures of every epoch, to a tracker that Accelerate knows; off unless asked for."""

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

        self._accelerator = Accelerator(log_with=name, project_dir=str(folder / "tracking"), cpu=run.device.type == "cpu")
        named = {name: {_NAME_FIELD[name]: folder.name}} if name in _NAME_FIELD else {}
        try:
            self._accelerator.init_trackers("fspmu", config=_flat(config), init_kwargs=named)
        except Exception as error:  # theirs, of any kind: no account, no server
            raise InputError(f"--track {name} could not start ({type(error).__name__}: {error}); mend that, or leave --track out") from error

    def log(self, values: dict[str, float], epoch: int) -> None:
        """Send the figures of one epoch."""
        self._accelerator.log(values, step=epoch)

    def finish(self) -> None:
        """Send what is left. Not the accelerator's own end, which would part the processes."""
        for tracker in self._accelerator.trackers:
            tracker.finish()


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return nested settings as `outer.inner` pairs, which is all that trackers take."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat
