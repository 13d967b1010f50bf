"""Ways to train on noisy labels. One file and one line here adds a method; `fspmu pretrain --method` is driven by this dict."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fspmu.pretraining import cross_entropy
from fspmu.pretraining.trained import Trained


@dataclass(frozen=True)
class Pretraining:
    """A method: pretrain(images, new_model, settings, run) -> Trained, and its default settings."""

    pretrain: Callable[..., Trained]
    settings: Any
    preset: str
    """The preset of `fspmu` unlearning that suits its models."""
    about: str


METHODS = {
    "ce": Pretraining(cross_entropy.pretrain, cross_entropy.Settings(), "original", "cross-entropy on the given labels"),
}
