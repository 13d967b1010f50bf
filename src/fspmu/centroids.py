"""Class centroids of a feature space, from soft assignments: in one call, or summed over batches and processes."""

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 65_536
"""Rows that are taken to double precision at a time."""


def centroid_sums(features: Tensor, probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return sum_i w_i p_k(x_i) f_i / |f_i|, (K, D), of one batch: features (B, D), probabilities (B, K), weights (B,), None: 1 for each.

    Add the sums of all batches (and all processes), then take `unit_centroids` of them. Double precision where the device has it, so that the
    order of the samples and the batch size do not matter.
    """
    dtype = features.dtype if features.device.type == "mps" else torch.float64
    shares = probabilities.to(dtype) if weights is None else probabilities.to(dtype) * weights.to(dtype)[:, None]
    return shares.T @ F.normalize(features.to(dtype), dim=1, eps=torch.finfo(dtype).tiny)


def class_centroids(features: Tensor, probabilities: Tensor) -> Tensor:
    """Return mu_k = normalise(sum_i p_k(x_i) f_i / |f_i|), (K, D) with unit rows, in the dtype of the features.

    features (N, D), probabilities (N, K). A class without any probability keeps a zero row.
    Raises ValueError when the two do not belong together.
    """
    if features.ndim != 2 or probabilities.ndim != 2 or len(features) != len(probabilities):
        raise ValueError(f"features (N, D) and probabilities (N, K) needed, not {tuple(features.shape)} and {tuple(probabilities.shape)}")
    batches = zip(torch.split(features, _ROWS), torch.split(probabilities, _ROWS), strict=True)
    return unit_centroids(torch.stack([centroid_sums(f, p) for f, p in batches]).sum(dim=0)).to(features.dtype)


def unit_centroids(sums: Tensor) -> Tensor:
    """Return the sums (K, D) of all batches as centroids: rows of length 1, a zero row stays zero."""
    return F.normalize(sums, dim=1, eps=torch.finfo(sums.dtype).tiny)
