"""Flags into options: what a frozen dataclass asks for, filled from the command line."""

import argparse
import contextlib
import dataclasses
import io
from typing import Any

from fspmu.errors import InputError, launched


def parse(command: str, base: type, flags: list[str], **families: Any) -> Any:
    """Return `base` filled from `flags`; `families` are fields whose type depends on the flags, each with its default value."""
    import tyro

    kind = base
    if families:
        fields = [(name, type(value), dataclasses.field(default=value, kw_only=True)) for name, value in families.items()]
        kind = dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True, namespace={"__doc__": base.__doc__})
    shape = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    with contextlib.ExitStack() as quiet:
        if launched()[0] > 0:  # of several processes one prints help and complaints
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        return tyro.cli(kind, prog=f"fspmu {command}", description=base.__doc__, args=flags, config=shape)


def first_look(flags: list[str], **defaults: str | None) -> dict[str, str | None]:
    """Return the values of a few flags before the rest is parsed: they decide which other flags there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", default=default)
    try:
        return vars(parser.parse_known_args(flags)[0])
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
