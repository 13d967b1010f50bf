"""The map of a report: every point's place before and after in one layout, as far as the time of the run allows."""

import warnings
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_POINTS = 50_000
MOST_FITTED = {"openTSNE": 10_000, "scikit-learn": 2_500}
"""Points that t-SNE itself places; scikit-learn places each twice."""
FEWEST_FITTED = 150
SECONDS = {"openTSNE": 0.009, "scikit-learn": 0.009}
"""Per fitted point on one core, at the upper end of what was measured."""
SHARE = 0.08
"""Of the seconds of a run, what its map may take."""
WIDTH = 50
NEIGHBOURS = 5
TOP = 2**16 - 1

Floats = NDArray[np.float32]


class FeatureMap(NamedTuple):
    """rows (M,) int64: which features these are. before, after (M, 2) uint16 in one box. method: how they were placed, in a sentence."""

    rows: NDArray[np.int64]
    before: NDArray[np.uint16]
    after: NDArray[np.uint16]
    method: str


def map_features(before: Tensor, after: Tensor, wanted: Tensor, *, seconds: float, seed: int) -> FeatureMap | None:
    """Return the map of features (R, D) before and after, those at `wanted` (W,) among its points; None for fewer than 3.

    seconds: what the run took, of which a map takes a small share. Of more than MOST_POINTS features, that many are shown.
    """
    total = len(before)
    if total < 3:
        return None
    rows = _chosen(total, wanted)
    places = torch.from_numpy(rows)
    first, second = _reduced(_unit(before[places]), _unit(after[places]), seed)
    library = "openTSNE" if find_spec("openTSNE") is not None else "scikit-learn"
    fitted = min(len(rows), MOST_FITTED[library], int(SHARE * seconds / SECONDS[library]))
    shown = f"{len(rows):,} of {total:,} training images" if len(rows) < total else f"all {total:,} training images"
    if fitted < min(FEWEST_FITTED, len(rows)) or len(rows) < 10:
        why = "the run was too short to spend time on t-SNE" if len(rows) >= 10 else "these are too few for t-SNE"
        told = f"{shown}, placed by the first two principal components of the features of both models ({why})."
        return FeatureMap(rows, *quantise(first[:, :2], second[:, :2]), told)
    picked = np.sort(np.random.default_rng(seed).permutation(len(rows))[:fitted])
    flat_first, flat_second = _embedded(first[picked], second[picked], library, seed)
    told = f"{shown}; t-SNE ({library}, on {first.shape[1]} principal components) placed {fitted:,} of them, both models in one layout"
    if fitted < len(rows):
        pool, spots = np.concatenate([first[picked], second[picked]]), np.concatenate([flat_first, flat_second])
        flat_first, flat_second = (_among(points, pool, spots, picked, own) for points, own in ((first, flat_first), (second, flat_second)))
        told += f", and the other {len(rows) - fitted:,} stand at the mean of the {NEIGHBOURS} nearest of these"
    return FeatureMap(rows, *quantise(flat_first, flat_second), f"{told}.")


def quantise(before: Floats, after: Floats) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return places (M, 2) each as whole numbers from 0 to 65535 in one square box; the order along each axis is kept."""
    both = np.concatenate([before, after]).astype(np.float64)
    low, high = both.min(axis=0), both.max(axis=0)
    side = float((high - low).max())
    start = (low + high) / 2 - side / 2
    scaled = (both - start) / side * TOP if side > 0 else np.full_like(both, TOP / 2)
    whole = np.clip(np.rint(scaled), 0, TOP).astype(np.uint16)
    return whole[: len(before)], whole[len(before) :]


def _chosen(total: int, wanted: Tensor) -> NDArray[np.int64]:
    """Return up to MOST_POINTS of `total` places, ascending: those that are wanted, and others evenly spaced."""
    if total <= MOST_POINTS:
        return np.arange(total, dtype=np.int64)
    needed = np.unique(wanted.numpy()[:MOST_POINTS]).astype(np.int64)
    others = np.setdiff1d(np.arange(total, dtype=np.int64), needed, assume_unique=True)
    count = MOST_POINTS - len(needed)
    return np.sort(np.concatenate([needed, others[np.arange(count) * len(others) // max(count, 1)]]))


def _unit(features: Tensor) -> Floats:
    values: Floats = torch.nn.functional.normalize(features.float(), dim=1).nan_to_num().numpy()
    return values


def _reduced(before: Floats, after: Floats, seed: int) -> tuple[Floats, Floats]:
    """Return both on the same principal components, at most WIDTH, which are found on up to 5,000 points."""
    from sklearn.decomposition import PCA

    both = np.concatenate([before, after])
    sample = both[np.random.default_rng(seed).permutation(len(both))[:5000]]
    width = min(WIDTH, *sample.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # features that are all equal have no variance to explain
        flat = PCA(width, svd_solver="randomized", random_state=seed % 2**32).fit(sample).transform(both).astype(np.float32)
    if width < 2:
        flat = np.concatenate([flat, np.zeros_like(flat)], axis=1)
    return flat[: len(before)], flat[len(before) :]


def _embedded(before: Floats, after: Floats, library: str, seed: int) -> tuple[Floats, Floats]:
    """Return the t-SNE places (n, 2) of both in one layout."""
    options: dict[str, Any] = {"perplexity": max(2.0, min(30.0, (len(before) - 1) / 3)), "random_state": seed % 2**32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "openTSNE":
            from openTSNE import TSNE

            embedding = TSNE(n_jobs=torch.get_num_threads(), n_iter=350, **options).fit(before)
            return np.asarray(embedding, dtype=np.float32), np.asarray(embedding.transform(after, n_iter=50), dtype=np.float32)
        from sklearn.manifold import TSNE as Together

        flat = Together(init="pca", max_iter=500, **options).fit_transform(np.concatenate([before, after]))
    return flat[: len(before)], flat[len(before) :]


def _among(points: Floats, pool: Floats, spots: Floats, picked: NDArray[np.int64], own: Floats) -> Floats:
    """Return a place for each of `points` (M, P): that of its own where t-SNE gave one, else the mean place of its nearest in `pool`."""
    found = np.empty((len(points), 2), np.float32)
    known, places = torch.from_numpy(pool), torch.from_numpy(spots)
    for start in range(0, len(points), 4096):
        near = torch.cdist(torch.from_numpy(points[start : start + 4096]), known).topk(min(NEIGHBOURS, len(pool)), largest=False).indices
        found[start : start + 4096] = places[near].mean(dim=1).numpy()
    found[picked] = own
    return found
