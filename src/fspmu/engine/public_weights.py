"""Weights that other programs wrote, read without running anything in them, and laid into one of our networks.

`torch.save` files are pickles. The reader here looks up the few names that tensors and arrays are made of, and puts an inert placeholder in the place of
every other one, so that a checkpoint that drags a function or an optimiser along still gives its weights.
"""

import collections
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fspmu.engine.checkpoint import load_tensors
from fspmu.errors import InputError, suggestion
from fspmu.models.classifier import Classifier

WRAPPERS = ("state_dict", "model", "net", "model_state_dict", "state_dict_ema", "state_dict1")
"""Keys under which checkpoints keep their weights, the likeliest first."""
PREFIXES = ("module.", "_orig_mod.", "model.")


class Placeholder:
    """Stands for whatever a file names that is neither tensor, array nor plain container. It does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> "Placeholder":
        """Return itself."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Take nothing in."""

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
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a file of weights with --weights")
    if path.suffix == ".safetensors":
        return _without_prefixes(load_tensors(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_Reader)
    except Exception as error:  # a damaged or hostile file raises nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} cannot be read as weights: {reason:.200}; save its state_dict as safetensors and give that") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds no state dict; save model.state_dict() as safetensors and give that")
    wrapped = [name for name in ([key] if key else WRAPPERS) if isinstance(content.get(name), Mapping)]
    if key and not wrapped:
        raise InputError(f"{path} has no state dict {key!r}; {suggestion(key, [str(name) for name, value in content.items() if isinstance(value, Mapping)])}")
    found = content[wrapped[0]] if wrapped else content
    weights = {str(name): value.detach() for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        raise InputError(f"{path} holds no weights; its keys are {', '.join(map(str, list(content)[:8]))}")
    return _without_prefixes(weights)


def _without_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


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
