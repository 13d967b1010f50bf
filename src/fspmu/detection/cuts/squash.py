"""Scores between 0 and 1, whatever their unit: what the cuts share that fit shapes to a bounded scale."""

import torch
from torch import Tensor


def squashed(score: Tensor, softness: float) -> Tensor:
    """Return 1 / (1 + exp(-u / softness)), (N,), u = (score - median) / (1.4826 MAD); the median is at one half, and the order of the scores stays."""
    away = score.double() - score.double().median()
    spread = 1.4826 * away.abs().median()
    if not spread > 0:  # more than half of the scores are equal
        spread = away.square().mean().sqrt()
    return torch.sigmoid(away / (softness * spread))
