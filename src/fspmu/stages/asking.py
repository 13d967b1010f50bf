"""How a repair is asked for, and what its result depends on."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fspmu.data.split import Split
from fspmu.detection import DEFAULT
from fspmu.detection.given_split import read_forget_set
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.handing_back import weights_hash
from fspmu.engine.run import Run
from fspmu.errors import DetectionWarning, InputError, check_settings, choose
from fspmu.models.adopt import Adopted
from fspmu.models.classifier import Classifier
from fspmu.stages.choosing import Choice, check_kind, choose_detection
from fspmu.stages.deciding import read_decided
from fspmu.stages.gathering import Beside
from fspmu.stages.mending import suitable_settings
from fspmu.stages.rounds import Rounds, check_rounds, config_of_rounds
from fspmu.stages.taking_in import Taken
from fspmu.unlearning import METHODS as UNLEARNING

KEEPS = {"better": "hand back the model as it was where the repair did not pay", "always": "hand back the repaired model, come what may"}


@dataclass(frozen=True)
class Asked:
    """How to find and how to forget. Settings that are None: the defaults, made to fit the model."""

    detector: str = DEFAULT
    detector_settings: Any = None
    cut: str | None = None
    """How the detector's scores become P(clean); None: what suits the detector."""
    cut_settings: Any = None
    split: SplitSettings = SplitSettings()
    forget: Any = None
    """What somebody else found to be wrong, in place of a detector: whatever `read_forget_set` reads."""
    truth: Tensor | None = None
    """True labels (N,), for experiments: see `find_label_issues`."""
    history: Tensor | None = None
    """Margins (E, N) of the given labels in every epoch of the model's own training, where somebody kept them."""
    method: str = "fspmu"
    preset: str | None = None
    settings: Any = None
    keep: str = "better"
    """A key of KEEPS."""
    fit: bool = True
    """Whether the learning rate may be lowered to fit the model."""
    corrections: Path | None = None
    """A table of what a person decided of labels: it beats detector and forget set."""
    rounds: Rounds = Rounds()

    @property
    def choice(self) -> Choice:
        """Detector and cut with all their settings; raises InputError as `choose_detection` does."""
        return choose_detection(self.detector, self.detector_settings, self.cut, self.cut_settings)

    def settings_for(self, network: Classifier) -> Any:
        """Return how to unlearn: as asked for, or as it suits the network and what is known of its labels."""
        return self.settings or suitable_settings(self.method, network, self.preset, known=self.forget is not None)


def check_given(forget: Any, finding: Sequence[str]) -> None:
    """Raise InputError where somebody says what is wrong, and how to find it is asked for too, under these names."""
    if forget is not None and finding:
        raise InputError(f"forget says already what is wrong, and {' and '.join(finding)} would say how to find it; leave one of them out")


def check_repeated(rounds: Rounds, choice: Choice, forget: Any) -> None:
    """Raise InputError for rounds that cannot be: not at all, not with this detector, or not with a forget set, which no round may find anew."""
    check_rounds(rounds, choice)
    if forget is not None and rounds.rounds > 1:
        raise InputError(f"forget says already what is wrong, and {rounds.rounds} rounds would find it anew; leave one of them out")


def forget_set(taken: Taken, asked: Asked, run: Run | None = None) -> Split:
    """Return the split that somebody else gives of all images, held out or not; the run, if any, is told what is remarkable about it."""
    images = taken.images
    if isinstance(asked.forget, Split):
        return asked.forget
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DetectionWarning)
        split = read_forget_set(asked.forget, images.ids, images.paths, images.given_labels.cpu(), images.class_names)
    if run is not None:
        for remark in caught:
            run.notice(str(remark.message))
    return split


def settled(taken: Taken, asked: Asked, run: Run) -> tuple[Taken, Asked]:
    """Return both with a forget set of somebody else's read, and none of it held out: what is wrong for sure could prove nothing."""
    if asked.forget is None:
        return taken, asked
    split = forget_set(taken, asked, run)
    asked, spared = replace(asked, forget=split), int((taken.held & split.forget).sum())
    if not spared:
        return taken, asked
    held = taken.held & ~split.forget
    told = f"{spared:,} of the images that were to be held out are in the forget set: they are forgotten, and {int(held.sum()):,} are held out"
    run.notice(told)
    left = bool(held.any())
    evaluation = taken.images.subset(held.nonzero().squeeze(1)) if left else None
    return replace(taken, held=held, evaluation=evaluation, kind=taken.kind if left else "", notes=(*taken.notes, told)), asked


def config_of(taken: Taken, asked: Asked, run: Run) -> dict[str, Any]:
    """Return what the result depends on: a folder that holds another config is not gone on with.

    Raises InputError for whatever is wrong about what is asked, before anything is computed.
    """
    choose(KEEPS, asked.keep, "value of keep")
    method = choose(UNLEARNING, asked.method, "method")
    choice = asked.choice
    check_repeated(asked.rounds, choice, asked.forget)
    network = taken.model
    settings = asked.settings_for(network)
    check_kind(settings, method.settings, "settings")
    check_settings(asked.split)
    Beside(asked.truth, history=asked.history).check(taken.images)
    decided = {} if asked.corrections is None else {"corrections": read_decided(asked.corrections, taken.images, taken.evaluation).digest()}
    forget = None
    if asked.forget is not None:
        split = forget_set(taken, asked)
        forget = _digest(split.forget, split.retain, split.clean_probability)
    return {
        "command": "repair",
        "model": {"origin": _origin_of(network), "head": network.head_name if isinstance(network, Adopted) else "", "weights": weights_hash(taken.given)[:16]},
        "data": {"name": taken.name, "fingerprint": taken.fingerprint},
        "preprocessing": asdict(taken.images.preprocessing),
        "method": asked.method,
        "settings": asdict(settings),
        "fitted": asked.fit and method.fit is not None and isinstance(network, Adopted),
        **choice.config(),
        **({"detector": "given", "detector_settings": {}} if forget else {}),
        "split": asdict(asked.split),
        "forget": forget,
        "truth": None if asked.truth is None else _digest(asked.truth),
        **({} if asked.history is None or forget else {"history": _digest(asked.history)}),
        "keep": asked.keep,
        "seed": run.seed,
        **config_of_rounds(asked.rounds),
        **decided,
    }


def _origin_of(network: Classifier) -> str:
    if isinstance(network, Adopted):
        return f"{network.origin.kind}:{network.origin.name}"
    return network.description.name if network.description else ""


def _digest(*parts: Tensor) -> str:
    """Return 16 hexadecimal digits of the values of some tensors."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
