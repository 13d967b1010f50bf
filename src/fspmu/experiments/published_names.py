"""What the flags of the published commands mean here: names, settings, and the parts of a folder's name."""

import hashlib
import re
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fspmu.data.label_noise import MODES
from fspmu.data.sources import NAMES
from fspmu.detection import DETECTORS
from fspmu.detection.splitting import SplitSettings
from fspmu.errors import InputError, choose, suggestion
from fspmu.pretraining import METHODS as PRETRAINING
from fspmu.unlearning import METHODS as UNLEARNING

NOISE_MODES = {name: name for name in MODES if name != "human"} | {"SDN": "subclass"}
METHODS = {name: name for name in UNLEARNING} | {"pro": "fspmu", "scrub": "scrub-reference"}
TRAINING_FIELDS = {"epochs": "epochs", "batch_size": "batch_size", "lr": "lr", "step_size": "lr_step"}
UNLEARNING_FIELDS = {
    "gamma": "gamma",
    "delta": "delta",
    "zeta": "zeta",
    "eta": "eta",
    "kd_T": "temperature",
    "t": "t",
    "e_n": "forget_epochs",
    "e_r": "epochs",
    "forget_bs": "forget_batch",
    "retain_bs": "retain_batch",
}
FIELDS = TRAINING_FIELDS | UNLEARNING_FIELDS
"""Published flag: field of the settings."""


def dataset_of(flags: Namespace) -> str:
    """Return the data set in our spelling.

    Raises InputError when it is missing or unknown, as the functions below do for theirs.
    """
    name: str = flags.dataset or ""
    if not name:
        raise InputError(f"--dataset is missing; known: {', '.join(NAMES)}")
    if Path(name).expanduser().is_dir() or name.startswith("hf:"):
        return name
    if name.lower() not in NAMES:
        raise InputError(f"unknown --dataset {name!r}; {suggestion(name.lower(), NAMES)}, hf:NAME_OR_PATH, or a folder")
    return name.lower()


def noise_mode_of(flags: Namespace) -> str:
    """Return the noise mode in its published spelling."""
    if flags.noise_mode is None:
        raise InputError("--noise_mode is missing; give sym, asym or SDN")
    spelled = {name.lower(): name for name in NOISE_MODES} | {"subclass": "SDN"}
    mode = spelled.get(flags.noise_mode.lower())
    if mode is None:
        raise InputError(f"unknown --noise_mode {flags.noise_mode!r}; {suggestion(flags.noise_mode, NOISE_MODES.keys() - {'subclass'})}")
    if flags.noise_rate is None and mode != "none":
        raise InputError(f"--noise_rate is missing; noise of the mode {mode} needs one, such as 0.5")
    if mode == "SDN" and flags.dataset.lower() in NAMES and flags.dataset.lower() != "cifar100":
        raise InputError(f"--noise_mode SDN needs cifar100, which it turns into 20 superclasses; {flags.dataset} has none")
    return mode


def pretrain_method_of(name: str | None) -> str:
    """Return our name of a training method: letters decide, so LongRe-Mix is LongReMix."""
    key = re.sub(r"[^a-z0-9]", "", (name or "").lower())
    if key in ("", "none"):
        return "ce"
    ours = {re.sub(r"[^a-z0-9]", "", method): method for method in PRETRAINING}
    if key not in ours:
        raise InputError(f"fspmu has no training method for --pretrain_method {name}; {suggestion(key, ours)} (ce is cross-entropy, as without the flag)")
    return ours[key]


def method_of(flags: Namespace) -> str:
    """Return our name of the unlearning method."""
    if flags.scratch:
        if flags.method is not None:
            print(f"note: --scratch trains a fresh network, --method {flags.method} has no part in it")
        return "retrain-reference"
    return choose(METHODS, (flags.method or "pro").lower(), "--method")


def detector_of(flags: Namespace) -> tuple[str, Any, SplitSettings]:
    """Return what finds the samples to forget: its name, its settings, and how its probabilities become a split."""
    name = (flags.pred or "none").lower()
    name = "known" if name == "none" else name
    settings = choose(DETECTORS, name, "--pred").settings
    if flags.random:
        if name not in ("known", "random"):
            raise InputError(f"--random True forgets by chance and --pred {flags.pred} does not; give one of the two")
        if flags.sample_rate is None:
            raise InputError("--random True needs --sample_rate, the probability with which each sample is forgotten")
        name, settings = "random", DETECTORS["random"].settings
    if flags.sample_rate is not None:
        share = {"random": "share", "known": "quality"}.get(name)
        if share is None:
            raise InputError(f"--sample_rate has no meaning with --pred {flags.pred}; it is for --random True, or for known labels")
        settings = replace(settings, **{share: flags.sample_rate})
    if name == "gmm" and pretrain_method_of(flags.pretrain_method) != "ce":
        name, settings = "gmm-probe", DETECTORS["gmm-probe"].settings
    if flags.gmm_threshhold is not None and not name.startswith("gmm"):
        raise InputError("--gmm_threshhold has no meaning without --pred gmm: nothing but the mixture gives probabilities")
    if name == "known" and flags.noise_mode.lower() == "none":
        raise InputError("without noise the wrong labels are not known; give --pred gmm")
    return name, settings, SplitSettings() if flags.gmm_threshhold is None else SplitSettings(threshold=flags.gmm_threshhold)


def training_settings(flags: Namespace, method: str) -> Any:
    """Return the settings of a training method with the flags that were given."""
    return _apply(PRETRAINING[method].settings, _given(flags, TRAINING_FIELDS), TRAINING_FIELDS, f"training by {method}")


def settings_of(flags: Namespace, method: str, base: Any) -> Any:
    """Return the settings `base` of an unlearning method with the flags that were given; retraining obeys the training flags."""
    given = _given(flags, UNLEARNING_FIELDS)
    if not method.startswith("retrain"):
        return _apply(base, given, UNLEARNING_FIELDS, f"the method {method}")
    return _apply(base, given or _given(flags, TRAINING_FIELDS), TRAINING_FIELDS, "retraining from scratch")


def _given(flags: Namespace, known: dict[str, str]) -> dict[str, Any]:
    """Return the flags of `known` that were given; --epochs E means the epochs 0 to E, so one more."""
    return {name: value + (name == "epochs") for name in known if (value := getattr(flags, name)) is not None}


def _apply(base: Any, given: dict[str, Any], known: dict[str, str], owner: str) -> Any:
    present = {field.name for field in fields(base)}
    for name in given:
        if known.get(name) not in present:
            has = ", ".join(f"--{flag}" for flag, field in known.items() if field in present)
            raise InputError(f"--{name} has no meaning for {owner}, which has {has}")
    return replace(base, **{known[name]: value for name, value in given.items()})


def changes_of(settings: Any, base: Any, names: Iterable[str] = tuple(UNLEARNING_FIELDS)) -> dict[str, Any]:
    """Return the flags in whose values two settings differ."""
    pairs = {name: FIELDS[name] for name in names if hasattr(base, FIELDS[name])}
    return {name: getattr(settings, field) for name, field in pairs.items() if getattr(settings, field) != getattr(base, field)}


def name_parts(values: dict[str, Any]) -> list[str]:
    """Return parts for the name of a folder."""
    return [f"{name}{value:.12g}" if isinstance(value, float) else f"{name}{value}" for name, value in values.items()]


def folder_name_of(dataset: str) -> str:
    """Return a name for a folder: that of the data set; for one's own images with six digits of where they lie."""
    if dataset in NAMES:
        return dataset
    place = dataset if dataset.startswith("hf:") else str(Path(dataset).expanduser().resolve())
    return f"{re.sub(r'[^A-Za-z0-9_.]', '_', Path(place).name)}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"
