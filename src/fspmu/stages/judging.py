"""Was it worth it? The model before and after on the same images, with intervals, and what their labels can prove.

Labels that a person set aside for testing say how good a model is. A hold-out of the set that is itself under suspicion does not: its labels are as wrong as
the others, and a model that was trained on it may know them by heart. It can still show that a repair did harm.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.data.images import Images
from fspmu.engine.inference import accuracy
from fspmu.engine.run import Run
from fspmu.models.classifier import Classifier
from fspmu.stages.finding import prepared

Interval = tuple[float, float]

RESAMPLES = 10_000
LEVEL = 0.95
KINDS = {
    "given": "measured against the evaluation labels as they were given",
    "held out": "measured against labels that may be wrong",
}
"""Where evaluation images come from, and what their labels are worth."""


@dataclass(frozen=True)
class Comparison:
    """Shares of right predictions before and after on the same `samples` images, each with its 95% interval."""

    samples: int
    before: float
    after: float
    difference: float
    before_interval: Interval
    after_interval: Interval
    difference_interval: Interval


def evaluate(model: Classifier, images: Images, *, run: Run | None = None) -> float:
    """Return the share of `images` whose label `model` predicts, as far as these labels can be trusted.

    Raises InputError for images that do not fit the model.
    """
    run = run or Run.create()
    images, model = prepared(model, images, run)
    with run.timed("evaluation"):
        return accuracy(model, images, run)


def compare(before: Tensor, after: Tensor, generator: torch.Generator) -> Comparison:
    """Return the comparison of right answers `before` and `after`, (M,) bool each, on the same M images.

    Intervals: percentile bootstrap over images, both models on the same resample. What a resample has of each of the four outcomes is multinomial, so these
    counts are drawn instead of the images. Raises ValueError when there is no image.
    """
    if not len(before) or before.shape != after.shape:
        raise ValueError(f"a comparison needs the same images before and after, not {len(before)} and {len(after)}")
    outcomes = torch.bincount(2 * before.long() + after.long(), minlength=4)  # wrong twice, gained, lost, right twice
    drawn = _multinomial(len(before), outcomes.double() / len(before), generator)
    befores, afters = (drawn[:, 2] + drawn[:, 3]) / len(before), (drawn[:, 1] + drawn[:, 3]) / len(before)
    first, second = float(before.double().mean()), float(after.double().mean())
    return Comparison(len(before), first, second, second - first, _interval(befores), _interval(afters), _interval(afters - befores))


def _multinomial(count: int, shares: Tensor, generator: torch.Generator) -> Tensor:
    """Return RESAMPLES draws (R, 4) of `count` outcomes with the probabilities `shares` (4,), by binomials one after the other."""
    drawn, left, rest = [], torch.full((RESAMPLES,), float(count), dtype=torch.float64), 1.0
    for share in shares.tolist()[:-1]:
        drawn.append(torch.binomial(left, torch.full_like(left, min(1.0, share / rest) if rest > 0 else 0.0), generator=generator))
        left, rest = left - drawn[-1], max(0.0, rest - share)
    return torch.stack([*drawn, left], dim=1)


def _interval(values: Tensor) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high


def verdict(comparison: Comparison, kind: str, clean_share: float) -> tuple[bool, str]:
    """Return whether to hand back the repaired model, and why; clean_share is the share of the training labels that were retained.

    given: the repaired model must be better. held out: it must not be worse than forgetting explains. A model that knew every held-out label by heart, wrong
    ones too, and has forgotten the wrong ones, agrees with that share of those it agreed with before.
    """
    change = f"{comparison.before:.2%} before, {comparison.after:.2%} after ({KINDS[kind]}, {comparison.samples:,} images)"
    if kind == "given":
        if comparison.difference > 0:
            sure = "" if comparison.difference_interval[0] > 0 else "; the difference is within what chance explains"
            return True, f"{change}{sure}"
        return False, f"the repaired model is not better: {change}; the model you gave is handed back"
    if comparison.after_interval[1] < comparison.before * clean_share:
        return False, f"the repaired model fell further than forgetting wrong labels explains: {change}; the model you gave is handed back"
    return True, f"{change}; whether the repair helped, only labels you trust can tell: give them as evaluation images"
