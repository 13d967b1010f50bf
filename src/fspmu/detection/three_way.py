"""Two thresholds in place of one: sure enough to learn from, sure enough to forget, and a band between them for what is neither.

retain   P(clean) > threshold + margin
forget   P(clean) <= threshold - margin
A label in the band costs more if it is taken for the wrong one of the two than it brings if it is taken for the right one.
"""

from torch import Tensor


def clean_above(clean_probability: Tensor, threshold: float, margin: float) -> Tensor:
    """Return which labels are clean enough to learn from, (N,) bool, of P(clean) (N,); NaN is not."""
    return clean_probability > threshold + margin


def wrong_at_most(clean_probability: Tensor, threshold: float, margin: float) -> Tensor:
    """Return which labels are wrong enough to forget, (N,) bool, of P(clean) (N,): with margin 0 those that are not clean enough to learn from."""
    return clean_probability <= threshold - margin
