"""noise-transition: features say what an image shows, a transition matrix says how often that is given this label.

posterior    q_k(f) = softmax over k of log s_k - d_k(f) / (2 t): d_k the distances of discriminant.py, s_k the share of all that is of class k
transition   T_kc, the share of class k that is given label c, by expectation and maximisation
             expect    r_k = T_ky q_k / sum_j T_jy q_j, the probability that a sample labelled y is of class k
             maximise  s_k = mean of r_k (each class one sample more)
                       T_kc = (sum of r_k over samples labelled c + b A_kc) / (sum of r_k over all + b), A = 1 - w on the diagonal and w spread over
                       the other labels, w the share of all samples that counts as wrong: classes of few samples are mislabelled as all are
temperature  t, by which the given labels are likeliest: sum over samples of log sum_k T_ky q_k, less (log10 t)^2 / 2, since a few labels say little of it;
             but at most ROOM times the one that suits the shape of the classes
shape        between two Gaussian classes the log-odds have a variance of twice their mean. Those of (d_c - d_k) / (2 t) over the samples of class k do
             where t = variance / (4 mean) of d_c - d_k: the mean of that over all pairs of classes, samples counting by r_k, which follow from t again
score        log of (1 - r_y) / r_y, the log-odds that the label is wrong
So an image between two classes keeps its label where these are seldom taken for each other, and loses it where they often are; no share of the samples must be
wrong. Only the NEAREST classes of an image, and its own, can be what it shows. The shape is for networks that were shown many wrong labels: they are unsure of
the images that bear these, or lean to what these are called, and at a high temperature such images would be rare ones of their classes, and no label wrong.
Source: docs/detection.md, "Scores".
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fspmu.detection.discriminant import Discriminant, DiscriminantSettings, chunks, fitted_discriminant
from fspmu.detection.evidence import Evidence

NEAREST = 16
"""Classes beside its own that an image may show: beyond these the posterior is as good as nothing."""
MOST_SEARCHED = 20_000
"""Samples by which the temperature is found."""
COOLEST, HOTTEST = 0.05, 500.0
"""Between these the temperature is sought; 1 is where features of a class are one Gaussian, and what is expected of it before any label is seen."""
EXPECTED_WITHIN = math.log(10.0)
"""Standard deviation of what is expected of the logarithm of the temperature."""
ROOM = 1.25
"""How far above what suits their shape the temperature of classes may lie: the samples that count as a class's own are those near to it."""
FEWEST_SHAPED = 10
"""Samples that a class needs to have a shape."""
SHAPE_ROUNDS, SHAPE_CHANGE = 30, 0.02
"""Most rounds of sharing out samples and measuring the shape of classes, and the relative change of the temperature that ends them."""
ROUNDS, CHANGE = 200, 1e-5
"""Most rounds of expectation and maximisation, and the change of no entry of T by more than which ends them."""
FIRST_WRONG = 0.2
"""Share of each class that T calls wrong in the beginning."""
TINY = torch.finfo(torch.float32).tiny
SUREST = 30.0
"""Log-odds beyond which nobody is surer."""


@dataclass(frozen=True)
class Settings(DiscriminantSettings):
    """How the discriminant is estimated, and the transition matrix."""

    refinements: int = 1
    """Rounds of estimating the discriminant again from the samples that look right so far; with more of them more labels are called wrong, right ones too."""
    refine_by: Literal["weights", "masks"] = "masks"
    """masks: samples that look right count, and no others. weights: by how right they look, which finds less where classes are taken for one other."""
    common_samples: float = 200.0
    """How many samples what is known of all classes counts for, in the row of one."""


@dataclass(frozen=True)
class Candidates:
    """What each of N samples may show: classes (N, M) int64, its own first, and their distances (N, M) float32."""

    classes: Tensor
    distances: Tensor
    given_labels: Tensor
    num_classes: int

    def among(self, rows: Tensor) -> "Candidates":
        """Return those of the samples at `rows` (M,) alone."""
        return Candidates(self.classes[rows], self.distances[rows], self.given_labels[rows], self.num_classes)


@dataclass(frozen=True)
class Noise:
    """How labels came about: the share of each class (K,), the transition matrix (K, K) with rows of 1, float64, and the temperature of distances.

    likelihood is the mean log-likelihood of the given labels by which this was found.
    """

    shares: Tensor
    transition: Tensor
    temperature: float
    likelihood: float

    def log_odds(self, found: Candidates) -> Tensor:
        """Return the log-odds (N,) float32 that the given label is wrong, within +-SUREST."""
        joint = self._joint(found)
        return (joint[:, 1:].logsumexp(dim=1) - joint[:, 0]).clamp(-SUREST, SUREST).float()

    def shown(self, found: Candidates) -> Tensor:
        """Return the probability (N, K) float64 of each class that it is what a sample of that label shows."""
        everywhere = torch.zeros(len(found.classes), found.num_classes, dtype=torch.float64)
        return everywhere.scatter_(1, found.classes, self._joint(found).softmax(dim=1))

    def _joint(self, found: Candidates) -> Tensor:
        said = self.transition[found.classes, found.given_labels[:, None]].log()
        return self.shares.log()[found.classes] - found.distances / (2 * self.temperature) + said


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return the log-odds (N,) that each label is wrong, within +-SUREST; HIGH = looks wrong, 0 divides."""
    block, given = evidence.need("block"), evidence.given_labels
    discriminant = fitted_discriminant(block, given, evidence.num_classes, settings)
    found = candidates(discriminant, block, given)
    if found.classes.shape[1] == 1:  # there is no other class
        return torch.full((len(given),), -SUREST)
    rows = torch.randperm(len(given), generator=generator)[:MOST_SEARCHED].sort().values  # every so many-th would follow the order of the data
    some, to_all = found.among(rows), discriminant.relative(block[rows])
    temperature = min(find_temperature(some, settings.common_samples), ROOM * temperature_of_shape(some, to_all, settings.common_samples))
    return estimate_noise(found, temperature, settings.common_samples).log_odds(found)


def candidates(discriminant: Discriminant, features: Tensor, given_labels: Tensor) -> Candidates:
    """Return which classes each sample may show, by features (N, D) and given labels (N,)."""
    num_classes = len(discriminant.means)
    kept = min(NEAREST + 1, num_classes)
    classes = torch.empty(len(features), kept, dtype=torch.int64)
    distances = torch.empty(len(features), kept)
    for rows in chunks(len(features)):
        to_all, own = discriminant.relative(features[rows]), given_labels[rows, None]
        first = to_all.masked_fill(~discriminant.rivals, torch.inf).scatter_(1, own, -torch.inf)
        ranked = first.topk(kept, dim=1, largest=False)
        classes[rows] = ranked.indices
        distances[rows] = ranked.values.scatter(1, torch.zeros_like(own), to_all.gather(1, own))
    return Candidates(classes, distances, given_labels, num_classes)


def find_temperature(found: Candidates, common_samples: float) -> float:
    """Return the likeliest temperature given the labels and what is expected of it, each with the transition matrix that suits it."""
    from scipy.optimize import minimize_scalar

    def unlikelihood(log_temperature: float) -> float:
        unexpected = (log_temperature / EXPECTED_WITHIN) ** 2 / 2
        return unexpected / len(found.given_labels) - estimate_noise(found, math.exp(log_temperature), common_samples).likelihood

    best = minimize_scalar(unlikelihood, bounds=(math.log(COOLEST), math.log(HOTTEST)), method="bounded", options={"xatol": 0.02})
    return math.exp(float(best.x))


def temperature_of_shape(found: Candidates, to_all: Tensor, common_samples: float) -> float:
    """Return the temperature that suits the shape of the classes, by the distances `to_all` (N, K) of their samples; infinity where they have none."""
    temperature = 1.0
    for _ in range(SHAPE_ROUNDS):
        former, temperature = temperature, max(shape(estimate_noise(found, temperature, common_samples).shown(found), to_all), COOLEST)
        if not temperature < HOTTEST or abs(temperature - former) <= SHAPE_CHANGE * temperature:
            break
    return temperature


def shape(shown: Tensor, to_all: Tensor) -> float:
    """Return the mean over pairs of classes of variance / (4 mean) of d_c - d_k, by samples of class k with weights `shown` (N, K).

    Both orders of a pair count together. Infinity where no two classes have a shape.
    """
    distances, counts = to_all.double(), shown.sum(dim=0)
    own = (shown * distances).sum(dim=0)[:, None]
    mean = (shown.T @ distances - own) / counts[:, None]
    square = shown.T @ distances.square() - 2 * (shown * distances).T @ distances + (shown * distances.square()).sum(dim=0)[:, None]
    variance = square / counts[:, None] - mean.square()
    of_pair = (variance + variance.T) / (4 * (mean + mean.T))
    there = (counts >= FEWEST_SHAPED) & (counts[:, None] >= FEWEST_SHAPED) & (mean + mean.T > 0) & ~torch.eye(len(counts), dtype=torch.bool)
    return float(of_pair[there].mean()) if bool(there.any()) else math.inf


def estimate_noise(found: Candidates, temperature: float, common_samples: float) -> Noise:
    """Return how the given labels came about, at this temperature."""
    num_classes = found.num_classes
    nearness = (-found.distances / (2 * temperature)).softmax(dim=1)
    places = found.classes * num_classes + found.given_labels[:, None]
    same = torch.eye(num_classes, dtype=torch.float64)
    borne = torch.bincount(found.given_labels, minlength=num_classes).double()
    others = (1 - same) * (borne > 0)  # nothing is called what nobody is called
    others /= others.sum(dim=1, keepdim=True).clamp(min=1)

    def alike(wrong: float) -> Tensor:
        """Return what every row would be, were all classes mislabelled alike."""
        return (1 - wrong) * same + wrong * others

    shares = (borne + 1) / (len(found.given_labels) + num_classes)
    transition = alike(FIRST_WRONG)
    for _ in range(ROUNDS):
        posterior = shares.float()[found.classes] * nearness
        joint = transition.flatten().float()[places] * posterior
        explained = joint.sum(dim=1, keepdim=True).clamp(min=TINY)
        counts = torch.zeros(num_classes**2, dtype=torch.float64).index_add_(0, places.flatten(), (joint / explained).double().flatten()).view_as(same)
        wrong = 1 - float(counts.diagonal().sum() / counts.sum())
        shares = (counts.sum(dim=1) + 1) / (counts.sum() + num_classes)
        raised = counts + common_samples * alike(wrong) + TINY * same
        former, transition = transition, raised / raised.sum(dim=1, keepdim=True)
        if float((transition - former).abs().max()) < CHANGE:
            break
    likelihood = explained.squeeze(1) / posterior.sum(dim=1).clamp(min=TINY)
    return Noise(shares, transition, temperature, float(likelihood.log().mean()))
