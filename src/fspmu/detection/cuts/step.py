"""A threshold as P(clean): what the cuts share that look for a place and not for groups."""

import torch
from torch import Tensor


def smooth_step(score: Tensor, threshold: float) -> Tensor:
    """Return P(clean) (N,): above .5 for scores below the threshold, .5 or less for the others, never rising with the score.

    1 / (1 + exp((score - threshold) / width)) with width = v / (m_above - m_below): the posterior of two Gaussians with the means of the samples on either
    side and their pooled variance v, if the threshold is where both are as likely. A width below a thousandth of the distance is taken for that.
    """
    values = score.double()
    wrong = values >= threshold
    below, above = values[~wrong], values[wrong]
    if not len(above) or not len(below):
        return (~wrong).float()
    distance = above.mean() - below.mean()
    variance = (((below - below.mean()) ** 2).sum() + ((above - above.mean()) ** 2).sum()) / len(values)
    width = torch.maximum(variance / distance, 1e-3 * distance)
    return on_its_side(torch.sigmoid((threshold - values) / width).float(), wrong)


def on_its_side(clean: Tensor, wrong: Tensor) -> Tensor:
    """Return P(clean) (N,) at most .5 where `wrong` (N,) bool is set and above .5 elsewhere: rounding moves nobody across."""
    half = torch.tensor(0.5)
    return torch.where(wrong, clean.clamp(max=0.5), torch.maximum(clean, torch.nextafter(half, half + 1)))


def between(low: Tensor, high: Tensor) -> float:
    """Return the middle between two neighbouring scores; where rounding leaves none, the higher."""
    middle = float((low.double() + high.double()) / 2)
    return middle if middle > float(low) else float(high)
