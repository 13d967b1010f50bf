"""Ways to train on noisy labels. One file and one line here adds a method; `fspmu pretrain --method` is driven by this dict."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fspmu.pretraining import cross_entropy, dividemix, longremix, promix
from fspmu.pretraining.trained import Situation, Trained


@dataclass(frozen=True)
class Pretraining:
    """A method: pretrain(images, new_model, settings, run) -> Trained, and its default settings."""

    pretrain: Callable[..., Trained]
    settings: Any
    preset: str
    """The preset of `fspmu` unlearning that suits its models."""
    published_preset: str
    """The one of the published tables."""
    about: str
    suited_to: Callable[[Any, Situation], Any] = lambda settings, situation: settings
    """Returns settings with every None replaced by what suits the situation."""

    @property
    def robust(self) -> bool:
        """Whether it keeps labels that look wrong out of training by itself."""
        return self.preset == "nll"


METHODS = {
    "ce": Pretraining(cross_entropy.pretrain, cross_entropy.Settings(), "tuned-soft", "original", "cross-entropy on the given labels"),
    "dividemix": Pretraining(
        dividemix.pretrain,
        dividemix.Settings(),
        "nll",
        "nll",
        "two networks that tell each other which labels to trust, and guess the rest",
        dividemix.suited_to,
    ),
    "longremix": Pretraining(
        longremix.pretrain,
        longremix.Settings(),
        "nll",
        "nll",
        "DivideMix twice: the second holds to labels that the first trusted for long",
        longremix.suited_to,
    ),
    "promix": Pretraining(
        promix.pretrain,
        promix.Settings(),
        "nll",
        "nll",
        "two networks that learn from the labels they trust alone, more of them as they go on",
        promix.suited_to,
    ),
}
