"""Ways to tell from scores which labels count as clean. One line here adds a cut; `fspmu detect --cut` is driven by this dict."""

from fspmu.detection.cuts import as_is, beta, bounded, log_odds, mixture, noise_rate, otsu, per_class, sign
from fspmu.detection.cuts.rule import CutRule

CUTS = {
    "mixture": CutRule(mixture.cut, mixture.Settings(), "two Gaussians over the scores"),
    "mixture-reference": CutRule(mixture.reference_cut, mixture.REFERENCE, "the same as published, over raw scores from one start"),
    "bounded-mixture": CutRule(bounded.cut, bounded.Settings(), "two Gaussians over scores squashed between 0 and 1"),
    "sign": CutRule(sign.cut, sign.Settings(), "0 divides right from wrong: for detectors marked margin alone", signed_only=True),
    "log-odds": CutRule(log_odds.cut, log_odds.Settings(), "the score is the log-odds of a wrong label already", signed_only=True),
    "per-class": CutRule(per_class.cut, per_class.Settings(), "two groups in every class that has two, however skewed"),
    "beta": CutRule(beta.cut, beta.Settings(), "two Beta distributions over scores between 0 and 1"),
    "otsu": CutRule(otsu.cut, otsu.Settings(), "the threshold with the most variance between its two sides"),
    "noise-rate": CutRule(noise_rate.cut, noise_rate.Settings(), "as many as there seem to be, or as --rate says, those with the highest scores"),
    "as-is": CutRule(as_is.cut, as_is.Settings(), "the score is the probability of a wrong label already"),
}
