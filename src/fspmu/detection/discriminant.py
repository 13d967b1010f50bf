"""Class means and one covariance within classes: by how far an image lies from each class, as its given label says and as it does not.

discriminant   class means m_k and ONE covariance S within classes, both from the given labels; S shrunk, S' = (1 - a) S + a tr(S)/D I
distance       d_k(f) = (f - m_k)^T S'^-1 (f - m_k)
refinement     some rounds in which means and covariance are estimated again, each sample counting by how right its label looks so far
A mean of few samples is drawn towards what was known before it: (sum + m * former) / (n + m), the mean of all samples first, then that of the round before.
Everything that is estimated follows from sums over samples, so that chunks and processes add up.
Source: docs/detection.md, "Scores".
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fspmu.detection.evidence import check_finite
from fspmu.errors import InputError, check_share

CHUNK = 8192
"""Rows whose distances to all classes exist at once."""
FEWEST = 2
"""Samples that a class needs for other labels to be weighed against it: one sample makes no class."""
ROUNDING = 1e-12
"""Share of the mean square of features below which their variance is taken for a rounding error."""
LEAST_SHRINKAGE = 1e-6
"""A feature that never varies would make the covariance singular."""
USUAL_SHRINKAGE = 0.3
"""Strong, because directions in which the samples of a given label do not vary at all are those along which a network learned them by heart."""


@dataclass(frozen=True)
class DiscriminantSettings:
    """How the discriminant is estimated."""

    refinements: int = 3
    """Rounds of estimating it again from what looks right so far."""
    refine_by: Literal["weights", "masks"] = "weights"
    """weights: samples count by P(clean) of the cut `sign` then. masks: those with a negative margin count, and no others."""
    shrinkage: float | None = None
    """Share of the covariance that its mean diagonal replaces. None: 0.3, and more where the images do not outnumber the features by far."""
    prior_samples: float = 1.0
    """How many samples what was known before counts for, in the mean of a class."""


@dataclass(frozen=True)
class ClassSums:
    """Sums over samples, float64: counts (K,), features (K, D) and outer products of features (D, D); those of two parts add up."""

    counts: Tensor
    features: Tensor
    outer: Tensor

    def __add__(self, other: "ClassSums") -> "ClassSums":
        return ClassSums(self.counts + other.counts, self.features + other.features, self.outer + other.outer)


@dataclass(frozen=True)
class Discriminant:
    """Class means (K, D), the precision S'^-1 (D, D), float64; rivals (K,) bool: the classes with enough samples to be taken for somebody's."""

    means: Tensor
    precision: Tensor
    rivals: Tensor

    @functools.cached_property
    def _linear(self) -> tuple[Tensor, Tensor, Tensor]:
        """What makes d_k(f) - d_c(f) linear in f, for the middle c of the means: c (D,), weights (D, K), offsets (K,)."""
        centre = self.means.mean(dim=0)
        weights = self.precision @ (self.means - centre).T
        return centre.float(), -2 * weights.float(), torch.einsum("kd,dk->k", self.means - centre, weights).float()

    def relative(self, features: Tensor) -> Tensor:
        """Return d_k(f) less a term that is the same for every class, (n, K) float32."""
        centre, weights, offsets = self._linear
        return torch.addmm(offsets, features.float() - centre, weights)

    def predict(self, features: Tensor) -> Tensor:
        """Return the nearest rival of features (n, D), (n,) int64."""
        nearest = [self.relative(features[rows]).masked_fill_(~self.rivals, torch.inf).argmin(dim=1) for rows in chunks(len(features))]
        return torch.cat(nearest) if nearest else torch.empty(0, dtype=torch.int64)

    def margins(self, features: Tensor, given_labels: Tensor) -> Tensor:
        """Return d_y - min_{k != y} d_k of features (n, D), (n,) float32; 0 where there is no other class."""
        margins = torch.empty(len(features))
        for rows in chunks(len(features)):
            distances, labels = self.relative(features[rows]), given_labels[rows, None]
            own = distances.gather(1, labels).squeeze(1)
            other = distances.masked_fill_(~self.rivals, torch.inf).scatter_(1, labels, torch.inf).amin(dim=1)
            margins[rows] = (own - other).masked_fill_(other.isinf(), 0.0)
        return margins


def fitted_discriminant(features: Tensor, given_labels: Tensor, num_classes: int, settings: DiscriminantSettings) -> Discriminant:
    """Return the discriminant of features (N, D), refined on those whose given label (N,) looks right.

    Raises InputError when a feature is not finite, or there is none.
    """
    if not len(features):
        raise InputError("there are no features to tell right labels from wrong ones: give at least one image")
    found = estimate(_sums_of(features, given_labels, num_classes), settings)
    for _ in range(settings.refinements):
        margins = found.margins(features, given_labels)
        weights = right_so_far(margins, settings)
        if not bool((weights > 0).any()):
            break
        found = estimate(_sums_of(features, given_labels, num_classes, weights), settings, found)
    return found


def right_so_far(margins: Tensor, settings: DiscriminantSettings) -> Tensor:
    """Return how much each sample counts in the next round, (N,) in [0, 1], by margins (N,)."""
    typical = margins.abs().median()
    if settings.refine_by == "masks" or not typical > 0:
        return (margins < 0).float()
    return torch.sigmoid(-2 * margins / typical)


def class_sums(chunk: Tensor, given_labels: Tensor, num_classes: int, weights: Tensor | None = None) -> ClassSums:
    """Return what a chunk of features (n, D) with given labels (n,) adds to the sums of all, each row `weights` (n,) times."""
    features, times = chunk.double(), torch.ones(len(chunk), dtype=torch.float64) if weights is None else weights.double()
    weighted = features if weights is None else features * times[:, None]
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64).index_add_(0, given_labels, weighted)
    counts = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, given_labels, times)
    return ClassSums(counts, sums, weighted.T @ features)


def estimate(sums: ClassSums, settings: DiscriminantSettings, former: Discriminant | None = None) -> Discriminant:
    """Return the discriminant of the samples behind `sums`; a class of few keeps near its mean in the `former` one, or else near the mean of all.

    Raises InputError when the sums are not finite.
    """
    check_share(settings.shrinkage or 0.0, "--shrinkage")
    check_finite(sums.outer.diagonal())
    total, counts = sums.counts.sum(), sums.counts[:, None]
    prior = (sums.features.sum(dim=0) / total).expand_as(sums.features) if former is None else former.means
    weight = counts + settings.prior_samples
    means = torch.where(weight > 0, (sums.features + settings.prior_samples * prior) / weight.clamp(min=1e-12), prior)
    plain = sums.features / counts.clamp(min=1e-12)
    present = int((sums.counts > 0).sum())
    within = (sums.outer - plain.T @ sums.features) / max(float(total) - present, 1.0)
    least = ROUNDING * float(sums.outer.diagonal().mean() / total)
    if not float(within.diagonal().mean()) > least:  # no two samples of a class differ: every direction counts alike
        spread = float((sums.outer.diagonal() / total - (sums.features.sum(dim=0) / total).square()).mean())
        within = torch.eye(len(within), dtype=torch.float64) * (spread if spread > least else 1.0)
    rivals = sums.counts >= FEWEST if former is None else former.rivals
    if int(rivals.sum()) < 2:
        rivals = sums.counts > 0 if former is None else former.rivals
    return Discriminant(means, _precision(within, float(total), settings.shrinkage), rivals)


def _precision(covariance: Tensor, samples: float, share: float | None) -> Tensor:
    """Return the inverse of the shrunk covariance (D, D), whose trace is above 0."""
    identity, mean = torch.eye(len(covariance), dtype=torch.float64), float(covariance.diagonal().mean())
    share = max(suitable_shrinkage(samples, len(covariance)) if share is None else share, LEAST_SHRINKAGE)
    shrunk = (1 - share) * (covariance + covariance.T) / (2 * mean) + share * identity
    return torch.cholesky_inverse(torch.linalg.cholesky(shrunk)) / mean


def suitable_shrinkage(samples: float, width: int) -> float:
    """Return the share of the mean diagonal for the covariance of so many features over so many samples.

    Of few samples the discriminant would learn the given labels by heart, as the head did: `samples` of them leave all but so many directions without any
    variance. D samples that vary alike in every direction, beside N real ones, make that share D / (D + N).
    """
    return max(USUAL_SHRINKAGE, width / (width + samples))


def _sums_of(features: Tensor, given_labels: Tensor, num_classes: int, weights: Tensor | None = None) -> ClassSums:
    """Return the sums over all rows, each `weights` (N,) times, without a float64 copy of them all."""
    width = features.shape[1]
    shapes = ((num_classes,), (num_classes, width), (width, width))
    total = ClassSums(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
    for rows in chunks(len(features)):
        if weights is None:
            total = total + class_sums(features[rows], given_labels[rows], num_classes)
            continue
        kept = weights[rows] > 0  # masks leave many rows out
        total = total + class_sums(features[rows][kept], given_labels[rows][kept], num_classes, weights[rows][kept])
    return total


def chunks(count: int) -> Iterator[slice]:
    """Yield slices that cover so many rows, as many at once as fit in memory with their distances to all classes."""
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))
