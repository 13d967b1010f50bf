"""Ways to find labels that look wrong. One line here adds a detector; `fspmu detect --detector` is driven by this dict."""

from fspmu.detection import at_random, known, loss_mixture
from fspmu.detection.evidence import Detector

LOSS = "loss on the given label"

DETECTORS = {
    "gmm": Detector(
        loss_mixture.score,
        loss_mixture.cut,
        loss_mixture.Settings(),
        frozenset({"logits"}),
        "two Gaussians over the model's losses",
        mixture=loss_mixture.mixture,
        axis=LOSS,
    ),
    "gmm-reference": Detector(
        loss_mixture.reference_score,
        loss_mixture.reference_cut,
        loss_mixture.REFERENCE,
        frozenset({"reference_losses"}),
        "the same with the published statistics pass",
        mixture=loss_mixture.reference_mixture,
        axis=LOSS,
    ),
    "gmm-probe": Detector(
        loss_mixture.score,
        loss_mixture.cut,
        loss_mixture.ProbeSettings(),
        frozenset({"logits", "probe_losses"}),
        "gmm for models of dividemix, promix and longremix: a briefly trained probe says what they memorised all the same",
        early=loss_mixture.probe_score,
    ),
    "gmm-probe-reference": Detector(
        loss_mixture.score,
        loss_mixture.reference_cut,
        loss_mixture.PROBE_REFERENCE,
        frozenset({"logits", "reference_probe_losses"}),
        "the same with the published probe",
        early=loss_mixture.reference_probe_score,
    ),
    "known": Detector(
        known.score, known.cut, known.Settings(), frozenset({"truth"}), "the true labels, or a simulated detector of a stated quality", floor=False
    ),
    "random": Detector(at_random.score, at_random.cut, at_random.Settings(), frozenset(), "a coin for every sample", floor=False),
}

DEFAULT = "gmm"
"""What finds wrong labels when nobody says how."""
