"""The record of a run: every figure that a table or a page shows, in one JSON object."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from fspmu.errors import InputError

SCHEMA = 1
"""Version of the files in a run folder; a reader refuses what is newer than itself."""

SECTIONS = ("config", "data", "pretraining", "detection", "unlearning", "test_accuracy", "evaluation", "seconds")

_PACKAGES = ("torch", "numpy", "scikit-learn", "safetensors", "accelerate")


def versions() -> dict[str, str]:
    """Return the versions that the figures may depend on."""
    found = {"python": platform.python_version(), "fspmu": metadata.version("fspmu")}
    return found | {name: metadata.version(name) for name in _PACKAGES}


def make_record(**sections: Any) -> dict[str, Any]:
    """Return a record with every section present, the missing ones None."""
    unknown = sections.keys() - set(SECTIONS) - {"warnings", "machine", "passes"}
    if unknown:
        raise TypeError(f"no such section of a record: {sorted(unknown)}")
    record = {name: sections.get(name) for name in SECTIONS}
    return record | {
        "schema": SCHEMA,
        "versions": versions(),
        "machine": sections.get("machine"),
        "passes": sections.get("passes") or {},
        "warnings": sections.get("warnings", []),
    }


def up_to_date(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config as it would be written today: before cuts had names, `cut` was what is called `split` now."""
    if not isinstance(config.get("cut"), dict):
        return config
    return {name: value for name, value in config.items() if name != "cut"} | {"split": config["cut"]}


def held_out(record: dict[str, Any]) -> bool:
    """Return whether the evaluation images were held out of the training set as it came, so that their labels may be as wrong as the others.

    Where noise was injected, that was after they were held out: what came is then taken for true.
    """
    kind = (record.get("evaluation") or {}).get("kind") or record["data"].get("evaluation")
    return bool(kind == "held out" and not record["data"].get("flip_rate"))


def check_schema(content: dict[str, Any], path: Path) -> None:
    """Raise InputError when a file was written by a newer version of this package."""
    schema = content.get("schema")
    if not isinstance(schema, int):
        raise InputError(f"{path} names no schema: it was not written by fspmu")
    if schema > SCHEMA:
        raise InputError(f"{path} has schema {schema}, newer than the {SCHEMA} this fspmu reads; upgrade fspmu")
