"""Ways to make a network forget. One file and one line here adds a method; `fspmu unlearn --method` is driven by this dict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fspmu.models.classifier import Classifier
from fspmu.unlearning import feature_preserving, finetune, neggrad_plus, retrain, scrub


@dataclass(frozen=True)
class Unlearning:
    """A method: unlearn(model, images, split, settings, run) -> model, its default settings, and the named alternatives to them."""

    unlearn: Callable[..., Classifier]
    settings: Any
    about: str
    presets: Mapping[str, Any] = field(default_factory=dict)
    fit: Callable[..., tuple[Any, str]] | None = None
    """fit(settings, model, images, split, run) -> the settings made to fit a network that they were not published for, and a line that says how."""

    def suited(self, preset: str) -> Any:
        """Return the settings of a preset, or the default ones of a method that has no such preset."""
        return self.presets.get(preset, self.settings)


METHODS = {
    "fspmu": Unlearning(
        feature_preserving.unlearn,
        feature_preserving.Settings(),
        "leave teacher and nearest centroids, return to one's own",
        feature_preserving.PRESETS,
        feature_preserving.fit,
    ),
    "scrub": Unlearning(scrub.unlearn, scrub.Settings(), "leave the teacher on what to forget, stay near it elsewhere", scrub.PRESETS),
    "scrub-reference": Unlearning(scrub.unlearn, scrub.REFERENCE, "SCRUB as in the published FSPMU tables"),
    "finetune": Unlearning(finetune.unlearn, finetune.Settings(), "go on with cross-entropy on the retain set"),
    "neggrad_plus": Unlearning(neggrad_plus.unlearn, neggrad_plus.Settings(), "descend on the retain set, ascend on the forget set"),
    "retrain": Unlearning(retrain.unlearn, retrain.Settings(), "fresh weights, trained on the retain set"),
    "retrain-reference": Unlearning(retrain.unlearn, retrain.REFERENCE, "the same with the published learning rates"),
}
