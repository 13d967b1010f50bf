"""An adopted model from what its folder says: built by the library it came from, by code that is named again, or handed over."""

import contextlib
import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fspmu.errors import InputError
from fspmu.models.adopt import Adopted, Origin, WeightsLayout
from fspmu.models.classifier import Description, drawn_from
from fspmu.models.named import build_named
from fspmu.preprocessing import Geometry

Json = dict[str, Any]

HOMES = ("timm", "hf")
"""Kinds of origin whose library builds the module again from what is written down."""


def origin_entry(model: Adopted) -> Json:
    """Return, as JSON, what `rebuild` needs beside weights and description."""
    origin = model.origin
    home = "" if origin.kind == "code" else home_of(model.module)
    recipe = {"timm": _timm_recipe, "hf": _hf_recipe}.get(home, _code_recipe)(model)
    if home and not _builds(home, recipe, model.module):
        home = ""  # it was changed after its library had built it
    return {
        "kind": origin.kind,
        "name": origin.name,
        "home": home,
        "recipe": recipe,
        "head": model.head_name,
        "num_classes": model.num_classes,
        "geometry": asdict(model.geometry) if model.geometry else None,
        "layout": asdict(origin.layout) if origin.layout else None,
        "processor": None if origin.processor is None else _as_json(origin.processor),
    }


def home_of(module: nn.Module) -> str:
    """Return the library that a module is from, whoever built it: timm, hf (transformers), or none."""
    place = type(module).__module__
    if place.startswith("transformers.") and hasattr(module, "save_pretrained"):
        return "hf"
    config = getattr(module, "pretrained_cfg", None)
    return "timm" if place.startswith("timm.") and isinstance(config, Mapping) and config.get("architecture") else ""


def _timm_recipe(model: Adopted) -> Json:
    """Return the architecture and the arguments with which timm builds the module."""
    module: Any = model.module
    recorded = {name: value for name, value in getattr(module, "_model_args", {}).items() if name != "pretrained_model_args"}
    try:
        from timm.models._input import get_model_args  # newer versions know what was changed after construction

        recorded |= get_model_args(module)
    except ImportError:
        recorded |= {"num_classes": module.num_classes}
    arguments = {name: value for name, value in _as_json({**model.origin.arguments, **recorded}).items() if value is not None}
    return {"architecture": module.pretrained_cfg["architecture"], "arguments": arguments}


def _hf_recipe(model: Adopted) -> Json:
    return {"config": hf_config(model.module, model.class_names)}


def _code_recipe(model: Adopted) -> Json:
    return {"arguments": _as_json(model.origin.arguments)}


def _builds(home: str, recipe: Json, module: nn.Module) -> bool:
    """Whether the library builds from `recipe` what `module` is, by all that they show of themselves."""
    try:
        with drawn_from(torch.Generator()):
            return repr(_build_at_home(home, recipe)) == repr(module)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # libraries have many ways to say no
        return False


def _build_at_home(home: str, recipe: Json) -> nn.Module:
    return build_timm(recipe["architecture"], recipe["arguments"]) if home == "timm" else build_hf(recipe["config"])


def _as_json(arguments: Mapping[str, Any]) -> Json:
    """Return the arguments that JSON can hold; that others are missing shows when the module is built."""
    kept = {}
    for name, value in arguments.items():
        with contextlib.suppress(TypeError, ValueError):
            kept[name] = json.loads(json.dumps(value, allow_nan=False))
    return kept


def hf_config(module: nn.Module, class_names: tuple[str, ...]) -> Json:
    """Return the config of a transformers model with these class names, without where it lay and without code of others."""
    theirs: Any = module.config
    config: Json = json.loads(theirs.to_json_string(use_diff=False))
    config = {name: value for name, value in config.items() if name not in ("_name_or_path", "auto_map")}
    if class_names:
        config |= {"id2label": {str(place): name for place, name in enumerate(class_names)}}
        config |= {"label2id": {name: place for place, name in enumerate(class_names)}}
    return config


def rebuild(entry: Json, description: Description, weights: dict[str, Tensor], folder: Path, module: nn.Module | None, code: str | None) -> Adopted:
    """Return the adopted model that `entry` tells of, with `weights` in it.

    Raises InputError when it takes a module or code that was not given, or when the weights do not fit.
    """
    builder = _builder(entry, folder, code) if module is None else None
    with drawn_from(torch.Generator()):
        module = builder() if builder else copy.deepcopy(module)
    assert module is not None
    lay_in(module, weights, folder)
    model = Adopted(module, entry["head"])
    layout = WeightsLayout(**entry["layout"]) if entry["layout"] else None
    file = folder / f"repaired{layout.suffix}" if layout else None
    weights_file = file if file and file.is_file() else None
    model.origin = Origin(entry["kind"], entry["name"], layout, entry["processor"], weights_file, dict(entry["recipe"].get("arguments", {})))
    wanted = entry["geometry"]
    model.geometry = Geometry(**{**wanted, "size": tuple(wanted["size"])}) if wanted else None
    model.description, model.names = description, description.class_names
    model.rebuild = builder if entry["kind"] != "code" else None  # somebody's own builder may load trained weights
    model.mean, model.std = description.preprocessing.mean, description.preprocessing.std
    return model


def _builder(entry: Json, folder: Path, code: str | None) -> Callable[[], nn.Module]:
    """Return what builds the module with fresh weights."""
    if entry["kind"] == "code":
        if not code:
            raise InputError(f"{folder} holds a model that {entry['name']} builds, and no code is run that is not named: add --model {entry['name']}")
        return partial(_build_by_code, code, entry["num_classes"], entry["recipe"]["arguments"])
    if entry["home"] in HOMES:
        return partial(_build_at_home, entry["home"], entry["recipe"])
    where = "was handed over in Python" if entry["kind"] not in HOMES else f"was changed after {entry['kind']} had built it"
    raise InputError(f"{folder} holds the weights of a module that {where}; build it as before and use fspmu.load({str(folder)!r}, module=...)")


def _build_by_code(code: str, num_classes: int, arguments: Json) -> nn.Module:
    return build_named(code, num_classes, arguments, know_pixels=False).module


def build_timm(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return timm's network with fresh weights.

    Raises InputError without timm, or when it does not know the network.
    """
    try:
        import timm
    except ImportError:
        raise InputError(f"the network {architecture} is timm's, which is not installed: pip install -e '.[timm]'") from None
    try:
        module: nn.Module = timm.create_model(architecture, pretrained=False, **arguments)
    except RuntimeError as error:
        raise InputError(f"this timm ({timm.__version__}) cannot build {architecture}: {error}; install the version that the model was made with") from None
    return module


def build_hf(config: Json) -> nn.Module:
    """Return the network of a transformers config with fresh weights; code beside a config is never run.

    Raises InputError without transformers, or when it does not know the network.
    """
    try:
        from transformers import CONFIG_MAPPING, AutoModelForImageClassification
    except ImportError:
        raise InputError("the network is from transformers, which is not installed: pip install -e '.[hf]'") from None
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise InputError(f"this transformers does not know the network {kind!r}; build the module yourself and use fspmu.load(FOLDER, module=...)")
    try:
        auto: Any = AutoModelForImageClassification
        module: nn.Module = auto.from_config(CONFIG_MAPPING[kind].from_dict(config), trust_remote_code=False)
    except ValueError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"transformers cannot build {kind!r} again ({reason:.200}); build the module yourself and use fspmu.load(FOLDER, module=...)"
        ) from None
    return module


def lay_in(module: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Fill `module` with weights of its own names, in the types in which they were saved.

    Raises InputError when the names or shapes are not the module's.
    """
    own = tensors_of(module)
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}" for name in own.keys() & weights.keys() if weights[name].shape != own[name].shape
    ]
    parts = [(missing, "missing"), (foreign, "that the module does not have"), (sorted(shapes), "of another shape")]
    if faults := [f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" for names, what in parts if names]:
        raise InputError(f"the weights in {folder} do not fit the module: {'; '.join(faults)}; build it exactly as when it was repaired")
    for name, value in own.items():
        value.data = value.data.to(weights[name].dtype)
    module.load_state_dict(dict(weights), strict=False)  # compared above; strict would ask for what is no tensor too


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of `module` without entries that are no tensors."""
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
