"""gmm: a wrong label costs a high loss; two Gaussians tell high from low.

score    cross-entropy of the model on the given label
cut      posterior of the component with the lower mean, in a two-component 1-D Gaussian mixture
Two forms: the sound one (evaluation mode, plain images, losses scaled to [0, 1], several seeded starts), and `gmm-reference`, which
repeats the published statistics pass (one augmented view, batch norm in training mode, raw losses, one start from seed 0).
Source: docs/method.md, "Which samples look wrong".
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from fspmu.detection.evidence import Evidence
from fspmu.errors import DetectionWarning


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
    """Added to each component's variance (of scaled losses; of raw ones in gmm-reference)."""


REFERENCE = Settings(starts=1)


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return the loss of each sample on its given label, (N,); HIGH = looks wrong."""
    return F.cross_entropy(evidence.need("logits"), evidence.given_labels, reduction="none")


def reference_score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return the losses of the published statistics pass, (N,); HIGH = looks wrong."""
    return evidence.need("reference_losses")


def cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return P(clean) (N,): the posterior of the component with the lower mean, fitted to scores scaled to [0, 1].

    Warns when the two components are no two groups (Ashman's D below 2), or the fit did not converge. Scores that are all equal say nothing:
    every label then counts as clean, with a warning.
    """
    low, high = score.min(), score.max()
    return posterior((score - low) / (high - low) if high > low else score, settings, int(torch.randint(0, 2**31 - 1, (), generator=generator)))


def reference_cut(score: Tensor, given_labels: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return P(clean) (N,) as published: fitted to raw losses, its start drawn from seed 0 whatever the run's seed."""
    return posterior(score, settings, 0)


def posterior(score: Tensor, settings: Settings, random_state: int) -> Tensor:
    """Return the posterior (N,) of the component with the lower mean, fitted to `score` (N,) as it is; all ones, with a warning, when all are equal."""
    values = score.double().numpy().reshape(-1, 1)
    if np.ptp(values) < 1e-12 * max(1.0, float(np.abs(values).max())):
        warnings.warn("all scores are equal: no label looks worse than another, all count as clean", DetectionWarning, stacklevel=3)
        return torch.ones(len(score))
    mixture = GaussianMixture(
        n_components=2,
        max_iter=settings.max_iterations,
        tol=settings.tolerance,
        reg_covar=settings.variance_floor,
        n_init=settings.starts,
        random_state=random_state,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # normal after ten rounds; said below in words
        mixture.fit(values)
    _comment(mixture, settings)
    posterior = mixture.predict_proba(values)[:, mixture.means_.argmin()]
    return torch.from_numpy(posterior).float().clamp(0, 1)


def separation(means: np.ndarray, variances: np.ndarray) -> float:
    """Return Ashman's D = sqrt(2) |m1 - m2| / sqrt(v1 + v2); above 2 two Gaussians are clearly two groups."""
    return float(np.sqrt(2) * abs(means[0] - means[1]) / np.sqrt(variances.sum()))


def _comment(mixture: GaussianMixture, settings: Settings) -> None:
    if not mixture.converged_:
        warnings.warn(f"the loss mixture had not converged after {settings.max_iterations} rounds", DetectionWarning, stacklevel=4)
    distance = separation(mixture.means_.ravel(), mixture.covariances_.ravel())
    if distance < 2:
        warnings.warn(
            f"the losses do not form two groups (Ashman's D = {distance:.2f}, below 2): the split between clean and wrong labels is a guess",
            DetectionWarning,
            stacklevel=4,
        )
