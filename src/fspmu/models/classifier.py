"""What every model is here: a backbone that makes features, a linear head that makes logits, both returned."""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fspmu.errors import InputError
from fspmu.preprocessing import Preprocessing


class Output(NamedTuple):
    """logits (B, K) and the features (B, D) they were made from."""

    logits: Tensor
    features: Tensor


@dataclass(frozen=True)
class Description:
    """What a file must say about a model beside its weights."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    preprocessing: Preprocessing = Preprocessing()
    trained_by: str = ""
    size: tuple[int, int] | None = None
    """Height and width of the images that it was trained on, in pixels; None: nobody wrote them down."""


class Classifier(nn.Module):
    """images (B, C, H, W), normalised float -> Output(logits (B, K), features (B, D)), always the pair."""

    description: Description | None = None

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K classes by name; empty when nobody named them."""
        return self.description.class_names if self.description else ()

    @property
    def num_classes(self) -> int:
        """K."""
        return self.head.out_features

    @property
    def feature_width(self) -> int:
        """D."""
        return self.head.in_features

    def forward(self, images: Tensor) -> Output:
        """Return logits and features of `images`."""
        features = self.backbone(images)
        return Output(self.head(features), features)


class GlobalPool(nn.Module):
    """(B, C, H, W) -> (B, C): the mean over all places. At 32 px this is the 4x4 (or 8x8) average pool of the published nets."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the means."""
        return images.mean(dim=(2, 3))


def copy_of(model: Classifier) -> Classifier:
    """Return a copy of `model` whose every parameter takes a gradient: a student."""
    return copy.deepcopy(model).requires_grad_(True)


def frozen(model: Classifier) -> Classifier:
    """Return a copy of `model` in evaluation mode that takes no gradient: a teacher."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and every part of it back into its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def drawn_from(generator: torch.Generator) -> Iterator[None]:
    """Let modules built or reset inside draw their weights, on the CPU, from `generator`; the global generators stay as they were."""
    seed = int(torch.randint(0, 2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone
        yield


def reinitialised(model: Classifier, generator: torch.Generator) -> Classifier:
    """Return a copy of `model` with fresh weights drawn from `generator`, on the CPU.

    Raises InputError when some of its weights belong to no layer that can be reset, and nothing else is known to set them.
    """
    fresh = copy.deepcopy(model).cpu()
    with drawn_from(generator), torch.no_grad():
        for parameter in fresh.parameters():
            if parameter.is_floating_point():
                parameter.fill_(math.nan)  # so that one which nobody sets is seen
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        for module in fresh.modules():  # from the outside in: the widest knows best
            _set_rest(module)
        if _unset(fresh) and callable(rebuild := getattr(model, "rebuild", None)):
            fresh.module = rebuild().train(model.training)
    if left := _unset(fresh):
        names = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        raise InputError(
            f"nothing in the model says how {names} begin, and retrain and gmm-probe train a fresh network: choose another method or detector, "
            "or give its module a reset_parameters() that sets them"
        )
    return fresh


def _unset(module: nn.Module) -> list[str]:
    return [name for name, value in module.named_parameters() if value.is_floating_point() and bool(value.isnan().any())]


def _set_rest(module: nn.Module) -> None:
    """Let a module set what no `reset_parameters` did, by the names that PyTorch, timm and transformers have for it."""
    for name in ("_reset_parameters", "init_weights", "_init_weights"):
        if callable(set_weights := getattr(module, name, None)) and _unset(module):
            if name == "_init_weights":
                module.apply(set_weights)
            else:
                set_weights()
