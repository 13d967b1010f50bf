"""Weights that other programs wrote, read without running anything in them, and laid into one of our networks.

`torch.save` files are pickles. The reader here looks up the few names that tensors and arrays are made of, and puts an inert placeholder in the place of
every other one, so that a checkpoint that drags a function or an optimiser along still gives its weights. Of a whole module the placeholder keeps the
dictionaries that it is made of, and so the tensors in them, by the names that its state_dict would have.
"""

import collections
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fspmu.engine.checkpoint import load_tensors
from fspmu.errors import InputError, suggestion
from fspmu.models.adopt import WeightsLayout
from fspmu.models.classifier import Classifier

WRAPPERS = ("state_dict", "model", "net", "model_state_dict", "state_dict_ema", "state_dict1", "net1")
"""Keys under which checkpoints keep their weights, the likeliest first."""
PAIR = ("net1", "net2")
"""How two networks in one module are called."""
PREFIXES = ("module.", "_orig_mod.", "model.")
CONVERT = "write torch.save(model.state_dict(), FILE), or a safetensors file, in the program that made it, and give that"


class Placeholder:
    """Stands for whatever a file names that is neither tensor, array nor plain container. It does nothing, but keeps the state that a file gives it."""

    state: Any = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> "Placeholder":
        """Return itself."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Keep it, as it is."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take nothing in."""

    def append(self, value: Any) -> None:
        """Take nothing in."""

    def extend(self, values: Any) -> None:
        """Take nothing in."""


def _allowed() -> dict[tuple[str, str], Any]:
    rebuild, scalar = np.empty(0).__reduce__()[0], np.int64(0).__reduce__()[0]
    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
        ("torch", "Size"): torch.Size,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
    }
    names |= {(home, "set"): set for home in ("builtins", "__builtin__")}  # which buffers of a module are no part of its state_dict
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names |= {(home, "_reconstruct"): rebuild, (home, "scalar"): scalar}
    for kind in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"):
        names[("torch", kind)] = getattr(torch, kind)
    return names


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Return how pickles of the old protocol spell bytes."""
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), Placeholder)


_ALLOWED = _allowed()


class _Reader:
    """What torch.load asks of a pickle module."""

    Unpickler = _Unpickler
    __name__ = "restricted"

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        """Return the next object in `file`."""
        return _Unpickler(file, **options).load()


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or torch file by name, wrappers and prefixes taken off; `key` names one of several state dicts.

    Raises InputError when the file holds no weights, or cannot be read.
    """
    return read_weights_file(path, key)[0]


def read_weights_file(path: Path, key: str | None = None) -> tuple[dict[str, Tensor], WeightsLayout]:
    """Return what `read_weights` does, and how the file spelt the names."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a file of weights with --weights")
    if path.suffix == ".safetensors":
        weights, wrapper = load_tensors(path), ""
        if not weights:
            raise InputError(f"{path} holds no weights")
    else:
        weights, wrapper = _unwrapped(_unpickled(path), path, key)
    prefix = _shared_prefix(weights)
    return {name.removeprefix(prefix): value for name, value in weights.items()}, WeightsLayout(path.suffix, wrapper, prefix)


def _unpickled(path: Path) -> Any:
    """Return the content of a torch file, with a Placeholder in place of whatever is no plain data."""
    if _is_script(path):
        raise InputError(f"{path} is a TorchScript program; {CONVERT}")
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_Reader)
    except Exception as error:  # a damaged or hostile file raises nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} cannot be read as weights: {reason:.200}; save its state_dict as safetensors and give that") from None


def _is_script(path: Path) -> bool:
    """Whether `torch.load` would take the file for a program and start PyTorch's reader of programs."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _unwrapped(content: Any, path: Path, key: str | None) -> tuple[dict[str, Tensor], str]:
    """Return the state dict in what a torch file held, and the key it was under; empty: none."""
    if isinstance(content, Placeholder):
        content = tensors_of_pickled(content)
        if not content:
            raise InputError(f"{path} is a pickled object without any weights that could be read without running it; {CONVERT}")
    if isinstance(content, Mapping):
        content = {name: tensors_of_pickled(value) or value if isinstance(value, Placeholder) else value for name, value in content.items()}
        content = _split_pair(content)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds no state dict; save model.state_dict() as safetensors and give that")
    wrapped = [name for name in ([key] if key else WRAPPERS) if isinstance(content.get(name), Mapping)]
    if key and not wrapped:
        others = [str(name) for name, value in content.items() if isinstance(value, Mapping)]
        raise InputError(f"{path} has no state dict {key!r}; {suggestion(key, others) if others else 'it holds a single one: leave --weights-key out'}")
    found = content[wrapped[0]] if wrapped else content
    weights = {str(name): value.detach() for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        raise InputError(f"{path} holds no weights; its keys are {', '.join(map(str, list(content)[:8]))}")
    return weights, wrapped[0] if wrapped else ""


def tensors_of_pickled(module: Placeholder) -> dict[str, Tensor]:
    """Return the parameters and buffers of a pickled module by the names that its state_dict would have; one that stands in two places under the first."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting = [("", module)]
    while waiting:
        prefix, part = waiting.pop()
        if id(part) in seen or not isinstance(part.state, Mapping):
            continue
        seen.add(id(part))
        left_out = part.state.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            for name, value in _items(part.state.get(kind)):
                if isinstance(value, Tensor) and not (isinstance(left_out, set) and name in left_out):
                    found[f"{prefix}{name}"] = value
        waiting += [(f"{prefix}{name}.", child) for name, child in reversed(_items(part.state.get("_modules"))) if isinstance(child, Placeholder)]
    return found


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _split_pair(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the state dict of a module of two networks as one for each, everything else as it is."""
    heads = {str(name).partition(".")[0] for name in content}
    if heads != set(PAIR) or not all(isinstance(value, Tensor) for value in content.values()):
        return content
    return {head: {name.removeprefix(f"{head}."): value for name, value in content.items() if name.startswith(f"{head}.")} for head in PAIR}


def _shared_prefix(names: Iterable[str]) -> str:
    """Return everything from PREFIXES that every name begins with, in the file's order."""
    prefix, rest = "", list(names)
    while found := next((part for part in PREFIXES if all(name.startswith(part) for name in rest)), ""):
        prefix, rest = prefix + found, [name.removeprefix(found) for name in rest]
    return prefix


def renamed_for(module: nn.Module, weights: Mapping[str, Tensor], layout: WeightsLayout) -> tuple[dict[str, Tensor], str]:
    """Return `weights` under the names that fit `module` best, and the prefix they had in the file beside these.

    The wrapping that a training program put around a network looks like a part of a network named so: the module itself decides.
    """
    own = module.state_dict().keys()
    kept = [layout.prefix[place:] for place in range(len(layout.prefix), -1, -1) if place in (0, len(layout.prefix)) or layout.prefix[place - 1] == "."]
    best = max(kept, key=lambda prefix: sum(prefix + name in own for name in weights))  # the first of several: the shortest names
    return {best + name: value for name, value in weights.items()}, layout.prefix.removesuffix(best)


def load_into(module: nn.Module, weights: Mapping[str, Tensor], path: Path, layout: WeightsLayout | None = None) -> tuple[WeightsLayout, tuple[str, ...]]:
    """Fill `module` with the weights of the file `path` by name; return how the file spelt them, and notes.

    Raises InputError when the names or shapes are not the module's own.
    """
    layout = layout or WeightsLayout(path.suffix)
    found, prefix = renamed_for(module, weights, layout)
    own = module.state_dict()
    tied = {own[name].data_ptr() for name in found if name in own}  # safetensors keeps a tensor of two names once
    missing = [name for name, value in own.items() if name not in found and not (value.numel() and value.data_ptr() in tied)]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]  # files from before PyTorch 0.4.1 lack these
    unexpected = [name for name in found if name not in own]
    shaped = [f"{name} {_shape(value)} instead of {_shape(own[name])}" for name, value in found.items() if name in own and value.shape != own[name].shape]
    whole = [name for name, value in found.items() if name in own and own[name].is_floating_point() and not value.is_floating_point()]
    parts = (("it lacks", missing), ("the network has no", unexpected), ("of another shape are", shaped), ("no floating-point numbers are", whole))
    if wrong := [f"{words} {_some(names)}" for words, names in parts if names]:
        raise InputError(f"the weights in {path} are not those of this network: {'; '.join(wrong)}; check the name and arguments of the network")
    module.load_state_dict({name: found.get(name, value) for name, value in own.items()})
    changed = {name: str(value.dtype).removeprefix("torch.") for name, value in found.items() if value.dtype != own[name].dtype}
    kinds = ", ".join(sorted(set(changed.values())))
    notes = (f"{len(changed)} of {len(found)} tensors in {path} are {kinds}; the network works in the type it was built with",) if changed else ()
    return replace(layout, prefix=prefix, dtypes=changed), notes


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a single number"


def _some(names: list[str], most: int = 3) -> str:
    return f"{len(names)} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"


def lay_into(model: Classifier, weights: Mapping[str, Tensor], path: Path) -> Classifier:
    """Fill `model` with weights of the same network under other names; return it.

    Layers are matched in their order by kind and shape, which names do not change: heads beside the primary one (ProMix's pseudo head and projection) are
    passed over. Raises InputError when a layer of `model` finds no partner.
    """
    own = model.state_dict()
    if own.keys() <= weights.keys():
        model.load_state_dict({name: weights[name] for name in own})
        return model
    candidates = iter([(name, value) for name, value in weights.items() if "pseudo" not in name and "proj" not in name])
    filled = {}
    for name, wanted in own.items():
        kind = name.rpartition(".")[2]
        partner = next((value for other, value in candidates if other.rpartition(".")[2] == kind and value.shape == wanted.shape), None)
        if partner is None:
            raise InputError(f"{path} does not fit the network: nothing in it is a {kind} of shape {tuple(wanted.shape)} for {name}; check --model and --width")
        filled[name] = partner.to(wanted.dtype)
    model.load_state_dict(filled)
    return model
