"""Somebody else's classifier, taken in as it is: its features are what its last linear layer is given.

The module keeps its type, names and weights; what is wrapped around it only listens, and the module comes back out as `.module`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fspmu.models.classifier import Classifier, Output
from fspmu.preprocessing import Geometry


@dataclass(frozen=True)
class WeightsLayout:
    """How a file of weights spelt its names, so that repaired weights are written the same way."""

    suffix: str = ".safetensors"
    """Suffix of the file: .safetensors, or what torch.save was given."""
    wrapper: str = ""
    """Key of the file's dict that held the state dict; empty: it was the whole file."""
    prefix: str = ""
    """What every name began with, such as `module.`."""


@dataclass(frozen=True)
class Origin:
    """Where an adopted module came from, so that it can go back there."""

    kind: str = "module"
    """module (handed over in Python), timm, hf, code (built by an import path)."""
    name: str = ""
    """What follows `timm:` or `hf:`, or `package.module:build`."""
    layout: WeightsLayout | None = None
    """Of the file its weights came from, None where there was none."""
    processor: dict[str, Any] | None = field(default=None, repr=False)
    """The preprocessor config of a Hugging Face model, None elsewhere."""
    weights: Path | None = None
    """The file its weights came from."""


class Adopted(Classifier):
    """images (B, C, H, W) -> Output(logits (B, K), features (B, D)) of a module that knows nothing of this."""

    module: nn.Module
    origin: Origin
    geometry: Geometry | None
    """How the module wants its images sized; None: as they come."""

    def __init__(self, module: nn.Module, head: str) -> None:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Output:
        """Return the logits of the module and what its head was given."""
        raise NotImplementedError


def adopt(module: nn.Module, example: Tensor, num_classes: int | None = None, *, head: str | None = None, class_names: Sequence[str] = ()) -> Adopted:
    """Return `module` wrapped; `example` (B, C, H, W), B >= 2, is a batch it takes."""
    raise NotImplementedError
