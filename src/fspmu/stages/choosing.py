"""Which detector, and which cut: by their names and with all their settings, checked before anything is computed."""

from dataclasses import asdict, dataclass
from typing import Any

from fspmu.detection import DETECTORS
from fspmu.detection.cuts import CUTS
from fspmu.detection.cuts.rule import CutRule, check_signed
from fspmu.detection.evidence import Detector
from fspmu.errors import InputError, check_settings, choose


@dataclass(frozen=True)
class Choice:
    """A detector and a cut by name, each with its settings."""

    detector: str
    settings: Any
    cut: str
    cut_settings: Any

    @property
    def how(self) -> Detector:
        """The detector itself."""
        return DETECTORS[self.detector]

    @property
    def rule(self) -> CutRule:
        """The cut itself."""
        return CUTS[self.cut]

    def config(self) -> dict[str, Any]:
        """Return what a config says of it."""
        found = {"detector": self.detector, "detector_settings": asdict(self.settings)}
        return found | {"cut": self.cut, "cut_settings": asdict(self.cut_settings)}


def choose_detection(detector: str, settings: Any = None, cut: str | None = None, cut_settings: Any = None) -> Choice:
    """Return a detector and a cut with whatever was left open filled in: cut None is the one that suits the detector, settings None are its defaults.

    Raises InputError for a name that is none, settings of another detector or cut or out of bounds, and a cut for scores of another kind.
    """
    if cut is not None and not isinstance(cut, str):
        raise InputError(f"cut is a {type(cut).__name__}, but it must be the name of a cut; known: {', '.join(CUTS)}; threshold and class_floor go into split")
    how = choose(DETECTORS, detector, "detector")
    name = how.cut if cut is None else cut
    rule = choose(CUTS, name, "cut")
    settings, cut_settings = settings or how.settings, cut_settings or rule.settings
    check_kind(settings, how.settings, "detector_settings")
    check_signed(name, rule, detector, how.signed_with(settings))
    check_kind(cut_settings, rule.settings, "cut_settings")
    return Choice(detector, settings, name, cut_settings)


def check_kind(given: Any, known: Any, name: str) -> None:
    """Raise InputError unless the settings `given` are of the kind of those `known`, and within their bounds."""
    if type(given) is not type(known):
        raise InputError(f"{name} is a {type(given).__name__}, but it must be a {type(known).__module__}.{type(known).__qualname__}")
    check_settings(given)
