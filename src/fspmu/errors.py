"""What can go wrong in a way that the person at the keyboard can mend."""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

Value = TypeVar("Value")


class InputError(ValueError):
    """A request that cannot be carried out as given; the message names the value and the way out."""


class EmptySplit(InputError):
    """A split with nothing left to learn from."""


class NonFiniteLoss(ArithmeticError):
    """A loss that became NaN or infinite; the last saved epoch is untouched."""


class DetectionWarning(UserWarning):
    """A detector's result that deserves a second look."""


class LostProcess(RuntimeError):
    """Another process of the same job ended, or is out of reach."""


EXPECTED = (InputError, NonFiniteLoss, LostProcess, KeyboardInterrupt, OSError)
"""What ends a command with a sentence instead of a traceback."""


def launched() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many torchrun or `accelerate launch` started; (0, 1) without a launcher."""
    count, rank = os.environ.get("WORLD_SIZE", ""), os.environ.get("RANK", "")
    return (int(rank), int(count)) if rank.isdecimal() and count.isdecimal() and int(count) > 1 else (0, 1)


def leave_after(error: BaseException) -> NoReturn:
    """Say on standard error what ended a command, and leave: 1 failed, 2 bad input, 130 stopped by Ctrl-C, 143 by SIGTERM."""
    if isinstance(error, KeyboardInterrupt):
        code, text = 143 if error.args else 130, "stopped; a run folder keeps its last saved epoch, and a command that has --resume goes on from there"
    elif isinstance(error, OSError):
        code, text = 1, f"stopped: {error.filename or 'the system'}: {error.strerror or error}"
    else:
        code, text = (2, f"error: {error}") if isinstance(error, InputError) else (1, f"stopped: {error}")
    rank, count = launched()
    if rank > 0 and isinstance(error, NonFiniteLoss):
        sys.exit(code)  # all processes know it at the same step, and the main one says it
    speaker = "fspmu" if rank == 0 else f"fspmu (process {rank + 1} of {count})"
    print(f"{speaker}: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


def say_no_more() -> None:
    """Write nothing more to a reader that left early, as `head` does: neither now nor when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):  # whatever stands in for standard output may have no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the ends of a sentence: the nearest known name, if one is near, and all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(names)}"


def choose(family: Mapping[str, Value], name: str, kind: str) -> Value:
    """Return `family[name]`.

    Raises InputError that suggests the nearest name.
    """
    if name not in family:
        raise InputError(f"unknown {kind} {name!r}; {suggestion(name, family)}")
    return family[name]


def check_share(value: float, name: str) -> None:
    """Raise InputError unless `value` is a fraction in [0, 1]."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value}, but it is a fraction: give a number from 0 to 1")


_RULES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("epochs starts max_iterations width search_epochs agreement last_sets loss_epochs ramp_up", lambda value: value >= 1, "at least 1"),
    ("pseudo_epochs strong_ops views probe_epochs neighbours rounds look_views test_every", lambda value: value >= 1, "at least 1"),
    ("folds", lambda value: value >= 2, "at least 2"),
    ("batch_size forget_batch retain_batch warm_up_batch", lambda value: value >= 2, "at least 2: batch norm has no statistics of one sample"),
    ("forget_epochs class_floor lr_step weight_decay variance_floor tolerance milestones seed", lambda value: value >= 0, "at least 0"),
    ("warm_up lambda_u penalty regulariser lr_end debias pseudo_weight agreement_after fmix_decay", lambda value: value >= 0, "at least 0"),
    ("refinements prior_samples common_samples smallest separation unlabelled", lambda value: value >= 0, "at least 0"),
    ("lr probe_lr tsne_lr t temperature clip sharpening mixup fmix", lambda value: value > 0, "above 0"),
    ("share quality threshold beta noise_rate", lambda value: 0 <= value <= 1, "a fraction: from 0 to 1"),
    ("rho_start rho_end tau_conf agreement_share prior_memory", lambda value: 0 <= value <= 1, "a fraction: from 0 to 1"),
    ("rate shrinkage skipped retain_above relabel", lambda value: 0 <= value <= 1, "a fraction: from 0 to 1"),
    ("margin", lambda value: 0 <= value < 0.5, "from 0 to below 0.5: from there on nothing would be retained"),
    ("momentum tau held_out", lambda value: 0 <= value < 1, "from 0 to below 1"),
)


def check_settings(settings: Any) -> None:
    """Raise InputError for a value in a settings dataclass that its type or its name does not allow; each name means the same everywhere."""
    rules = {name: (holds, words) for names, holds, words in _RULES for name in names.split()}
    for entry in fields(settings):
        value, flag = getattr(settings, entry.name), f"--{entry.name.replace('_', '-')}"
        if get_origin(entry.type) is Literal:
            choose(dict.fromkeys(get_args(entry.type)), value, flag)
        for number in value if isinstance(value, tuple | list) else (value,):
            if wanted := _misfit(number, {entry.type, *get_args(entry.type)}):
                raise InputError(f"{flag} is {number!r}, but it must be {wanted}")
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not math.isfinite(number):
                raise InputError(f"{flag} is {number}, but it must be a finite number")
            if (rule := rules.get(entry.name)) and not rule[0](number):
                raise InputError(f"{flag} is {number}, but it must be {rule[1]}")


def _misfit(value: Any, kinds: set[Any]) -> str:
    """Return what a value must be where a field of these kinds takes numbers and this is none of them, else nothing."""
    if not kinds & {int, float} or kinds & {str, bool} or (value is None and NoneType in kinds):
        return ""
    if isinstance(value, bool) or not isinstance(value, Real):
        return "a number"
    return "" if float in kinds or isinstance(value, Integral) else "a whole number"
