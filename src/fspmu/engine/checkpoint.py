"""Models and resume states on disk: safetensors and JSON, so that reading a file never runs it."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fspmu.engine.rebuilding import origin_entry, rebuild, tensors_of
from fspmu.errors import InputError, choose
from fspmu.models import MODELS
from fspmu.models.adopt import Adopted
from fspmu.models.classifier import Classifier, Description, drawn_from
from fspmu.preprocessing import Preprocessing
from fspmu.results.record import SCHEMA, check_schema
from fspmu.results.store import read_json, replacing, write_json


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors, whole or not at all; same tensors, same bytes. Those that share memory are written each."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, metadata)
        if metadata and len(metadata) > 1:
            _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in the order of its names: the library writes several entries in no fixed one."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # the same entries in another order; the rest of the header is spaces
            file.seek(8)
            file.write(text.ljust(length))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors.

    Raises InputError when the file is absent or damaged.
    """
    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no safetensors file: {error}") from None


def save_model(model: Classifier, folder: Path) -> None:
    """Write `model.safetensors` and `model.json`.

    An adopted model is written under its module's own names, with where it came from. Raises InputError when the model has no description to build it from
    again.
    """
    if model.description is None:
        raise InputError("this model has no description: it was not made by fspmu.models")
    content = {"schema": SCHEMA, **asdict(model.description)}
    if isinstance(model, Adopted):
        content |= {"adopted": origin_entry(model)}
        save_tensors(folder / "model.safetensors", tensors_of(model.module))
    else:
        save_tensors(folder / "model.safetensors", model.state_dict())
    write_json(folder / "model.json", content)


def load(folder: str | Path, *, module: nn.Module | None = None, code: str | None = None) -> Classifier:
    """Return the model of a run folder, trained or repaired, in evaluation mode on the CPU.

    module: for a model that was handed over in Python, the same module built again; it is copied. code: for a model that an import path builds, that path
    once more, since nothing is imported that was not asked for. Its `description` holds class names and preprocessing.
    Raises InputError when the folder holds no model, one of a newer schema, or one that takes `module` or `code`.
    """
    folder = Path(folder)
    if not (folder / "model.json").exists():
        raise InputError(f"{folder} holds no model (no model.json); give the folder of a finished `fspmu pretrain` or `fspmu unlearn`")
    content = read_json(folder / "model.json")
    check_schema(content, folder / "model.json")
    try:
        wanted = content["preprocessing"]
        preprocessing = Preprocessing(tuple(wanted["mean"]), tuple(wanted["std"]), wanted["augment"], wanted["padding"])
        height_and_width = content.get("size")  # older files have none
        size = tuple(height_and_width) if height_and_width else None
        description = Description(content["name"], content["arguments"], tuple(content["class_names"]), preprocessing, content["trained_by"], size)
        weights = load_tensors(folder / "model.safetensors")
        if entry := content.get("adopted"):
            return rebuild(entry, description, weights, folder, module, code).eval()
        if module is not None:
            raise InputError(f"{folder} holds a network of fspmu's own, {description.name}; leave the module out")
        model = build_model(description)
        model.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{folder} holds a damaged model: {error}") from None
    return model.eval()


def build_model(description: Description, generator: torch.Generator | None = None) -> Classifier:
    """Return the described network with fresh weights, drawn from `generator` alone."""
    builder = choose(MODELS, description.name, "model")
    with drawn_from(generator or torch.Generator()):
        model = builder(len(description.class_names), **description.arguments)
    model.description = description
    return model


def describe(model: Classifier, **changes: Any) -> Classifier:
    """Set some fields of the model's description; return the model."""
    if model.description is not None:
        model.description = replace(model.description, **changes)
    return model


def save_state(path: Path, objects: dict[str, Any], extra: dict[str, Any]) -> None:
    """Write what the objects' `state_dict` hold, and `extra` (JSON), into one file: never half of it."""
    tensors: dict[str, Tensor] = {}
    tree = {name: _encode(thing.state_dict(), name, tensors) for name, thing in objects.items()}
    save_tensors(path, tensors, {"state": json.dumps({"schema": SCHEMA, "tree": tree, "extra": extra})})


def load_state(saved: bytes, objects: dict[str, Any]) -> dict[str, Any]:
    """Give the objects their states back from the content of the file that `save_state` wrote; return `extra`.

    Raises InputError when it is damaged.
    """
    try:
        tensors = safetensors.torch.load(saved)
        header = json.loads(saved[8 : 8 + int.from_bytes(saved[:8], "little")])
        content = json.loads(header["__metadata__"]["state"])  # one entry: safetensors writes several in no fixed order
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"the state of the stopped run is damaged ({error}); run it again from the start with another --out") from None
    for name, thing in objects.items():
        thing.load_state_dict(_decode(content["tree"][name], tensors))
        if isinstance(thing, torch.optim.Optimizer):
            _follow_layout(thing)
    extra: dict[str, Any] = content["extra"]
    return extra


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):  # pairs, because JSON keys are strings and an optimiser's are not
        return {"dict": [[key, _encode(entry, f"{name}.{key}", tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_encode(entry, f"{name}.{number}", tensors) for number, entry in enumerate(value)]}
    return value


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dict" in value:
        return {key: _decode(entry, tensors) for key, entry in value["dict"]}
    return [_decode(entry, tensors) for entry in value["list"]]


def _follow_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay the optimiser's tensors out like their parameters: fused kernels walk both in one order."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
