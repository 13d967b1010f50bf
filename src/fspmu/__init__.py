"""Repair image classifiers trained on noisy labels: detect, forget, recover.

`import fspmu` is cheap: the public names below load what they need when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "fspmu.engine.checkpoint",
    "repair": "fspmu.repairing",
    "find_label_issues": "fspmu.repairing",
    "InputError": "fspmu.errors",
}

__all__ = ["InputError", "__version__", "find_label_issues", "load", "repair"]

if TYPE_CHECKING:
    from fspmu.engine.checkpoint import load
    from fspmu.errors import InputError
    from fspmu.repairing import find_label_issues, repair


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in ("losses", "centroids"):
        return import_module(f"fspmu.{name}")
    raise AttributeError(f"module 'fspmu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
