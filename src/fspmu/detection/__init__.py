"""Ways to find labels that look wrong. One line here adds a detector; `fspmu detect --detector` is driven by this dict."""

from dataclasses import dataclass

from fspmu.detection import at_random, combined, confident, feature_margin, fine, known, loss_mixture, nearest, noise_transition, trajectory, views_margin
from fspmu.detection.evidence import DepthSettings, Detector, FoldSettings, ProbeSettings, ViewSettings

LOSS = "loss on the given label"


# What a score is set to, with what is said of how its evidence is gathered.


@dataclass(frozen=True)
class FeatureMargin(DepthSettings, feature_margin.Settings):
    """How the discriminant is estimated, and from features taken where."""


@dataclass(frozen=True)
class NoiseTransition(DepthSettings, noise_transition.Settings):
    """How the discriminant and the transition matrix are estimated, and from features taken where."""


@dataclass(frozen=True)
class Nearest(DepthSettings, nearest.Settings):
    """Which neighbours vote, and among features taken where."""


@dataclass(frozen=True)
class ViewsMargin(ViewSettings, views_margin.Settings):
    """What the margin is taken of, and over how many views."""


@dataclass(frozen=True)
class Combined(DepthSettings, combined.Settings):
    """How the discriminant and the transition matrix are estimated, what counts beside them for how much, and from features taken where."""


@dataclass(frozen=True)
class Probe(ProbeSettings, trajectory.Settings):
    """How the fresh network is trained, and what is read off its margins."""


@dataclass(frozen=True)
class Confident(FoldSettings, confident.Settings):
    """What cleanlab is asked for, and how the networks are trained that never saw a sample."""


def _is_a_count(settings: trajectory.Settings) -> bool:
    """Return whether a trajectory's score is a share of epochs, which 0 does not divide."""
    return settings.kind == "wrong-events"


DETECTORS = {
    "gmm": Detector(
        loss_mixture.score,
        loss_mixture.Settings(),
        frozenset({"logits"}),
        "two Gaussians over the model's losses",
        cut="mixture",
        axis=LOSS,
    ),
    "gmm-reference": Detector(
        loss_mixture.reference_score,
        loss_mixture.Settings(),
        frozenset({"reference_losses"}),
        "the same with the published statistics pass",
        cut="mixture-reference",
        axis=LOSS,
    ),
    "gmm-probe": Detector(
        loss_mixture.score,
        ProbeSettings(),
        frozenset({"logits", "probe_losses"}),
        "gmm for models of dividemix, promix and longremix: a briefly trained probe says what they memorised all the same",
        cut="mixture",
        early=loss_mixture.probe_score,
    ),
    "gmm-probe-reference": Detector(
        loss_mixture.score,
        loss_mixture.PROBE_REFERENCE,
        frozenset({"logits", "reference_probe_losses"}),
        "the same with the published probe",
        cut="mixture-reference",
        early=loss_mixture.reference_probe_score,
    ),
    "feature-margin": Detector(
        feature_margin.score,
        FeatureMargin(),
        frozenset({"block"}),
        "among features inside the network, another class is nearer than the given one",
        cut="sign",
        signed=True,
        axis="distance to the given class less that to the nearest other",
    ),
    "noise-transition": Detector(
        noise_transition.score,
        NoiseTransition(),
        frozenset({"block"}),
        "the same, weighed by how often these two classes are taken for each other",
        cut="log-odds",
        signed=True,
        axis="log-odds of a wrong label",
    ),
    "knn": Detector(
        nearest.score,
        Nearest(),
        frozenset({"block"}),
        "among features inside the network, more of the nearest images bear another label",
        cut="sign",
        signed=True,
        axis="share of neighbours with another label less share with the given one",
    ),
    "fine": Detector(
        fine.score,
        fine.Settings(),
        frozenset({"features"}),
        "the features do not lie along the main direction of their class",
        cut="mixture",
        axis="turn away from the direction of the class",
    ),
    "views-margin": Detector(
        views_margin.score,
        ViewsMargin(),
        frozenset(),
        "over random views the network prefers another class",
        cut="mixture",
        signed=True,
        also_needs=views_margin.needs_of,
        axis="lead of another class over the given one, over views",
    ),
    "trajectory": Detector(
        trajectory.score,
        trajectory.Settings(),
        frozenset({"history"}),
        "over the epochs of its training the network mostly preferred another class",
        cut="mixture",
        signed=True,
        unsigned_with=_is_a_count,
        axis="disagreement with the given label over the training",
    ),
    "probe": Detector(
        trajectory.probe_score,
        Probe(),
        frozenset({"probe_history"}),
        "the same of a fresh network, trained for a few epochs: for models whose training nobody recorded",
        cut="mixture",
        signed=True,
        unsigned_with=_is_a_count,
        axis="disagreement with the given label over a probe's training",
    ),
    "confident-learning": Detector(
        confident.score,
        Confident(),
        frozenset(),
        "what cleanlab calls an issue, by the network's probabilities or those of networks that never saw the image",
        cut="sign",
        signed=True,
        also_needs=confident.needs_of,
        axis="confident learning: issues above 0",
    ),
    "combined": Detector(
        combined.score,
        Combined(),
        combined.NEEDS,
        "noise-transition and the recorded training, or random views where nobody recorded it, together",
        cut="log-odds",
        signed=True,
        optional=combined.OPTIONAL,
        axis="log-odds of a wrong label, all parts together",
    ),
    "known": Detector(
        known.score,
        known.Settings(),
        frozenset({"truth"}),
        "the true labels, or a simulated detector of a stated quality",
        cut="as-is",
        floor=False,
    ),
    "random": Detector(at_random.score, at_random.Settings(), frozenset(), "a coin for every sample", cut="as-is", floor=False),
}

DEFAULT = "noise-transition"
"""What finds wrong labels when nobody says how."""
