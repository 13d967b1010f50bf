"""The second half of a repair: what was found -> forget it, recover on the rest -> what changed."""

import functools
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
from torch import Tensor

from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.detection import DEFAULT
from fspmu.detection.label_issues import label_issues
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.inference import Predictions, accuracy_of, predict, right_answers
from fspmu.engine.run import Run
from fspmu.errors import InputError, check_settings, choose
from fspmu.models.adopt import Adopted
from fspmu.models.classifier import Classifier
from fspmu.stages.finding import Detection, find_label_issues, opinions_behind, prepared, training_of
from fspmu.stages.relabelling import with_new_labels
from fspmu.unlearning import METHODS as UNLEARNING


@dataclass(frozen=True)
class Mended:
    """The repaired model, what was found before, what the model says of every training image after, and the figures."""

    model: Classifier
    detection: Detection
    after: Predictions
    report: dict[str, Any]
    test_accuracy: dict[str, float | None]
    right: tuple[Tensor, Tensor] | None = None
    """Which of the evaluation images were predicted right before and after, (M,) bool each."""

    @functools.cached_property
    def issues(self) -> pd.DataFrame:
        """A row for each image as the repaired model sees it: see `label_issues`."""
        images = self.detection.images
        return label_issues(images, self.detection.split, opinions_behind(self.after.logits, images.given_labels))


def mend(
    model: Classifier,
    images: Images,
    *,
    method: str = "fspmu",
    settings: Any = None,
    detector: str = DEFAULT,
    detector_settings: Any = None,
    cut: str | None = None,
    cut_settings: Any = None,
    split: SplitSettings | None = None,
    truth: Tensor | None = None,
    history: Tensor | None = None,
    found: Detection | None = None,
    new_labels: Tensor | None = None,
    run: Run | None = None,
) -> Mended:
    """Return a copy of `model` that has forgotten the labels of `images` that look wrong, and recovered on the rest.

    settings None: the preset that suits how the model was trained, made to fit one of somebody else's. found: what to forget, where it is known already;
    else `detector` finds it. new_labels (N,): right labels that a person gave, -1 where nobody did; these are learned. Without anything to forget the model
    comes back unchanged.
    Raises what `find_label_issues` raises, and EmptySplit when there is nothing to retain.
    """
    choose(UNLEARNING, method, "method")
    run = run or Run.create()
    if settings is not None:
        check_settings(settings)
    if found is None:
        how: dict[str, Any] = {"detector": detector, "settings": detector_settings, "cut": cut, "cut_settings": cut_settings, "split": split}
        found = find_label_issues(model, images, **how, truth=truth, history=history, run=run)
    settings = settings or fitted_settings(suitable_settings(method, model), method, model, images, found.split, run)
    images, model = prepared(model, images, run)
    if run.evaluation is not None:
        run.evaluation = run.evaluation.prepared_as(images.preprocessing).to(run.device)
    right_before = _right_answers(model, run)
    model = unlearn(model, *with_new_labels(images, found.split, new_labels), method=method, settings=settings, run=run)
    with run.timed("evaluation"):
        after = predict(model, images, run, rows=found.predictions.rows)
    right_after = _right_answers(model, run)
    before, last = (None if right is None else float(right.double().mean()) for right in (right_before, right_after))
    report = {"method": method, "settings": asdict(settings), "audit": audit(found.predictions, after, found.split, images.given_labels.cpu(), truth)}
    best = max(run.accuracies("unlearning"), default=last)
    return Mended(
        model,
        found,
        after,
        report | {"passes": run.passes["unlearning"]},
        {"before": before, "last": last, "best": best},
        None if right_before is None or right_after is None else (right_before, right_after),
    )


def unlearn(model: Classifier, images: Images, split: Split, *, method: str = "fspmu", settings: Any = None, run: Run | None = None) -> Classifier:
    """Return a copy of `model` that has forgotten the labels in `split.forget` and recovered on `split.retain`, in evaluation mode.

    settings None: the preset that suits how the model was trained, made to fit one of somebody else's. Raises InputError for an unknown method, and EmptySplit
    when there is nothing to retain.
    """
    chosen, run = choose(UNLEARNING, method, "method"), run or Run.create()
    settings = settings or fitted_settings(suitable_settings(method, model), method, model, images, split, run)
    check_settings(settings)
    images, model = prepared(model, images, run)
    with run.timed("unlearning"):
        if split.counts["forget"]:
            return chosen.unlearn(model, images, split, settings, run).eval()
        run.notice("nothing looks wrong, so there is nothing to forget: the model is returned unchanged")
        return model.eval()


def _right_answers(model: Classifier, run: Run) -> Tensor | None:
    if run.evaluation is None:
        return None
    with run.timed("evaluation"):
        return right_answers(model, run.evaluation, run)


def say_if_worse(mended: Mended, run: Run) -> None:
    """Say it where a repair did harm, as the first thing to know."""
    before, last = mended.test_accuracy["before"], mended.test_accuracy["last"]
    if before is not None and last is not None and last < before:
        run.notice(f"the repaired model is WORSE on the evaluation images: {last:.2%} after, {before:.2%} before; keep the model you had")
        run.notices.insert(0, run.notices.pop())


def suitable_settings(method: str, model: Classifier | None, preset: str | None = None, *, known: bool = False) -> Any:
    """Return the settings of the named preset of `method`, or of the one that suits how `model` was trained; of a model that nobody knows, by cross-entropy.

    known: somebody knows what is wrong, so that without a preset labels count by masks, whatever probability stands beside them.

    Raises InputError when the method has no such preset.
    """
    chosen = choose(UNLEARNING, method, "method")
    if preset is None:
        settings = chosen.suited(training_of(model).preset)
        return replace(settings, weighting="masks") if known and hasattr(settings, "weighting") else settings
    if not chosen.presets:
        raise InputError(f"{method} has no presets; leave --preset out")
    return choose(chosen.presets, preset, f"preset of {method}")


def published_settings(method: str, model: Classifier) -> Any:
    """Return the settings of the published tables for a model that was trained as `model` was."""
    return choose(UNLEARNING, method, "method").suited(training_of(model).published_preset)


def fitted_settings(settings: Any, method: str, model: Classifier, images: Images, split: Split, run: Run) -> Any:
    """Return settings as they are for networks of this package, which they were published for; for anybody else's made to fit, and that is said."""
    fit = choose(UNLEARNING, method, "method").fit
    if fit is None or not isinstance(model, Adopted) or not split.counts["forget"]:
        return settings
    images, model = prepared(model, images, run)
    with run.timed("unlearning"):
        settings, told = fit(settings, model, images, split, run)
    if told:
        run.notice(told)
    return settings


def audit(before: Predictions, after: Predictions, split: Split, given: Tensor, truth: Tensor | None) -> dict[str, dict[str, float | None]]:
    """Return accuracies on the forget and the retain set before and after, fractions.

    On the forget set the agreement with the given labels should fall to chance, and with the truth (where known) rise.
    """

    def agreement(predictions: Predictions, labels: Tensor | None, mask: Tensor) -> float | None:
        return None if labels is None or not bool(mask.any()) else accuracy_of(predictions.logits[mask], labels[mask])

    figures = {}
    for name, predictions in (("before", before), ("after", after)):
        figures[name] = {
            "forget_given": agreement(predictions, given, split.forget),
            "forget_true": agreement(predictions, truth, split.forget),
            "retain_given": agreement(predictions, given, split.retain),
        }
    return figures
