"""Repair image classifiers trained on noisy labels: detect, forget, recover.

`import fspmu` is cheap: the public names below load what they need when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "repair": "fspmu.repairing",
    "take_in": "fspmu.stages.taking_in",
    "find_label_issues": "fspmu.stages.finding",
    "unlearn": "fspmu.stages.mending",
    "evaluate": "fspmu.stages.judging",
    "load": "fspmu.engine.checkpoint",
    "load_images": "fspmu.data.arrays",
    "open_model": "fspmu.engine.opening",
    "InputError": "fspmu.errors",
}

__all__ = ["InputError", "__version__", "evaluate", "find_label_issues", "load", "load_images", "open_model", "repair", "take_in", "unlearn"]

if TYPE_CHECKING:
    from fspmu.data.arrays import load_images
    from fspmu.engine.checkpoint import load
    from fspmu.engine.opening import open_model
    from fspmu.errors import InputError
    from fspmu.repairing import repair
    from fspmu.stages.finding import find_label_issues
    from fspmu.stages.judging import evaluate
    from fspmu.stages.mending import unlearn
    from fspmu.stages.taking_in import take_in


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in ("losses", "centroids"):
        return import_module(f"fspmu.{name}")
    raise AttributeError(f"module 'fspmu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
