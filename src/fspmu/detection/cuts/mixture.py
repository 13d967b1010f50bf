"""mixture: wrong labels score high; two Gaussians tell high from low.

P(clean) is the posterior of the component with the lower mean, in a two-component 1-D Gaussian mixture. Two forms: the sound one (scores scaled to [0, 1],
several seeded starts), and `mixture-reference`, the published fit (raw scores, one start from seed 0). In both the wider component claims both ends, so
that P(clean) may fall again among the lowest scores: the published behaviour, which the cut `bounded-mixture` mends.
Source: docs/detection.md, "Cuts".
"""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fspmu.detection.cuts.rule import check_scores, say_all_equal
from fspmu.detection.evidence import Component, Mixture
from fspmu.errors import DetectionWarning

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture  # two seconds of import, which only a fit should cost


@dataclass(frozen=True)
class Settings:
    """Published values, but for the starts."""

    starts: int = 10
    """Starting points of the mixture fit; the likeliest wins."""
    max_iterations: int = 10
    """Rounds of expectation and maximisation."""
    tolerance: float = 1e-2
    """Gain in mean log-likelihood per sample below which the fit stops."""
    variance_floor: float = 5e-4
    """Added to each component's variance (of scaled scores; of raw ones in mixture-reference)."""


REFERENCE = Settings(starts=1)

_COMPARED = 50_000
"""Of more scores than this, that many are drawn to compare the starts on; the fit is to all of them either way."""


def cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Mixture:
    """Return the mixture fitted to scores (N,) scaled to [0, 1], its components on the axis of the scores.

    Warns when the two components are no two groups (Ashman's D below 2), or the fit did not converge. Scores that are all equal say nothing:
    every label then counts as clean, with a warning. Raises InputError for a score that is not finite.
    """
    check_scores(score)
    low, high = score.min(), score.max()
    random_state = int(torch.randint(0, 2**31 - 1, (), generator=generator))
    many = settings.starts > 1 and len(score) > _COMPARED
    compared = torch.randperm(len(score), generator=generator)[:_COMPARED] if many else None
    found = fit((score - low) / (high - low) if high > low else score, settings, random_state, compared)
    return found._replace(components=tuple(part.moved(float(low), float(high - low)) for part in found.components))


def reference_cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Mixture:
    """Return the mixture as published: fitted to raw scores (N,), its start drawn from seed 0 whatever the run's seed.

    Raises and warns as `cut` does.
    """
    check_scores(score)
    return fit(score, settings, 0)


def posterior(score: Tensor, settings: Settings, random_state: int, compared: Tensor | None = None) -> Tensor:
    """Return the posterior (N,) of the component with the lower mean, as `fit` finds it."""
    return fit(score, settings, random_state, compared).clean


def fit(score: Tensor, settings: Settings, random_state: int, compared: Tensor | None = None) -> Mixture:
    """Return the mixture fitted to `score` (N,) as it is; all clean and no components, with a warning, when all are equal.

    The starts are compared on the scores at `compared` (M,); None: on all.
    """
    from sklearn.exceptions import ConvergenceWarning

    values = score.double().numpy().reshape(-1, 1)
    if np.ptp(values) < 1e-12 * max(1.0, float(np.abs(values).max())):
        return say_all_equal(score)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # normal after ten rounds; said below in words
        fitted = _likeliest(values, settings, random_state) if compared is None else _likeliest_of_many(values, compared.numpy(), settings, random_state)
    _comment(fitted, settings)
    order = fitted.means_.ravel().argsort()
    lower = fitted.predict_proba(values)[:, order[0]]
    parts = tuple(
        Component(label, float(fitted.weights_[k]), float(fitted.means_[k, 0]), float(np.sqrt(fitted.covariances_[k].item())))
        for label, k in zip(("clean", "wrong"), order, strict=True)
    )
    return Mixture(torch.from_numpy(lower).float().clamp(0, 1), parts)


def _likeliest(values: np.ndarray, settings: Settings, random_state: int, **start: Any) -> "GaussianMixture":
    """Return the mixture fitted to `values` (N, 1): from the given start alone, or the likeliest from several drawn ones."""
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(
        n_components=2,
        max_iter=settings.max_iterations,
        tol=settings.tolerance,
        reg_covar=settings.variance_floor,
        n_init=1 if start else settings.starts,
        random_state=random_state,
        **start,
    ).fit(values)


def _likeliest_of_many(values: np.ndarray, compared: np.ndarray, settings: Settings, random_state: int) -> "GaussianMixture":
    """Return the mixture fitted to all `values` (N, 1) from one start: the one that was likeliest on those at `compared` (M,).

    The start is found again on all values by k-means, as scikit-learn finds its own. Going on from the parameters fitted to the few would add
    rounds to those that `settings` allow, and at so loose a tolerance more rounds give other posteriors.
    """
    from sklearn.cluster import KMeans

    means = _likeliest(values[compared], settings, random_state).means_
    near = KMeans(n_clusters=2, init=means, n_init=1).fit(values).labels_
    groups = [values[near == k] for k in (0, 1)]
    return _likeliest(
        values,
        settings,
        random_state,
        weights_init=[len(group) / len(values) for group in groups],
        means_init=[group.mean(axis=0) for group in groups],
        precisions_init=[[[1 / (group.var() + settings.variance_floor)]] for group in groups],
    )


def separation(means: np.ndarray, variances: np.ndarray) -> float:
    """Return Ashman's D = sqrt(2) |m1 - m2| / sqrt(v1 + v2); above 2 two Gaussians are clearly two groups."""
    return float(np.sqrt(2) * abs(means[0] - means[1]) / np.sqrt(variances.sum()))


def _comment(mixture: "GaussianMixture", settings: Settings) -> None:
    if not mixture.converged_:
        warnings.warn(f"the mixture had not converged after {settings.max_iterations} rounds", DetectionWarning, stacklevel=4)
    distance = separation(mixture.means_.ravel(), mixture.covariances_.ravel())
    if distance < 2:
        warnings.warn(
            f"the scores do not form two groups (Ashman's D = {distance:.2f}, below 2): the split between clean and wrong labels is a guess",
            DetectionWarning,
            stacklevel=4,
        )
