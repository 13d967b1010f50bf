"""The terms of ProMix's loss: pure functions of logits, but for the passes that mixed rows go through.

Formulas: docs/nll_methods.md, "ProMix".
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.engine.run import Forward
from fspmu.pretraining.mixmatch import sharpen
from fspmu.pretraining.promix_views import PairedViews, partners

Views = Sequence[tuple[Sequence[Tensor], float]]
"""Views of the same rows, each with its weight: the logits (B, K) of the head and of the pseudo head."""


def fit(views: Views, rows: Tensor, labels: Tensor, shift: Tensor) -> Tensor:
    """Return the weighted sum over views and heads of the mean CE(z + shift, label) over the places `rows` (M,) with labels (M,); 0 without any."""
    if not len(rows):
        return 0 * torch.cat([logits for heads, _ in views for logits in heads]).sum()  # a step needs a gradient, be it 0
    terms = [weight * F.cross_entropy(logits[rows] + shift, labels) for heads, weight in views for logits in heads]
    return torch.stack(terms).sum()


def guessed_fit(views: Views, rows: Tensor, shift: Tensor, temperature: float) -> Tensor:
    """Return the weighted sum over views of the pseudo head's mean CE(z + shift, q) over `rows` (M,); 0 without any.

    q = sharpen(softmax(z - shift)) from the head's logits of the first view, without gradient.
    """
    if not len(rows):
        return shift.new_zeros(())
    targets = sharpen((views[0][0][0][rows].detach() - shift).softmax(dim=1), temperature)
    return torch.stack([weight * F.cross_entropy(pseudo[rows] + shift, targets) for (_, pseudo), weight in views]).sum()


def mixed_fit(forward: Forward, batch: PairedViews, k: int, rows: Tensor, labels: Tensor, shift: Tensor) -> Tensor:
    """Return the sum over heads and kinds, MixUp and FMix, of lam CE(z + shift, label) + (1 - lam) CE(z + shift, label of the partner) on mixed `rows` (M,).

    0 for fewer than two rows: they have no partner, and some networks no batch statistics of them.
    """
    total = shift.new_zeros(())
    if len(rows) < 2:
        return total
    images = batch.images[rows]
    for m in range(batch.orders.shape[1]):
        for kind in (0, 1):
            partner, lam = partners(batch.orders[k, m, kind], rows), float(batch.lams[k, m, kind])
            mixed = torch.where(batch.masks[k, m], images, images[partner]) if kind else lam * images + (1 - lam) * images[partner]
            logits = forward(mixed).logits.chunk(2, dim=1)
            for head in (0, 1) if batch.orders.shape[1] == 1 else (m,):
                shifted = logits[head] + shift
                total = total + lam * F.cross_entropy(shifted, labels) + (1 - lam) * F.cross_entropy(shifted, labels[partner])
    return total
