"""Classifiers by name: `timm:NAME`, `hf:NAME_OR_PATH` and `package.module:build`, with the classes and the images they know of."""

import contextlib
import difflib
import importlib
import inspect
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fspmu.errors import InputError, suggestion
from fspmu.models.adopt import Origin, WeightsLayout
from fspmu.models.classifier import drawn_from
from fspmu.models.pixels import OVERRIDE, Pixels, processor_pixels, timm_pixels
from fspmu.preprocessing import Geometry

FORMS = "timm:NAME, timm:local-dir:FOLDER, timm:hf-hub:NAME, hf:NAME_OR_FOLDER or package.module:build"
TIMM_SOURCES = ("local-dir:", "hf-hub:")
TIMM_REFUSED = frozenset({"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "features_only", "num_classes"})
HF_ALLOWED = frozenset({"revision", "subfolder", "attn_implementation"})


@dataclass(frozen=True)
class Named:
    """A module, what it says of itself, and notes; geometry, mean and std are None where it says nothing."""

    module: nn.Module
    class_names: tuple[str, ...]
    geometry: Geometry | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    origin: Origin
    notes: tuple[str, ...] = ()
    rebuild: Callable[[], nn.Module] | None = None
    """Builds the module anew with weights that nobody trained, where that is known."""


def build_named(spec: str, num_classes: int | None = None, arguments: Mapping[str, Any] | None = None, *, load: bool = True, know_pixels: bool = True) -> Named:
    """Return the module that `spec` names, on the CPU, in float32 and evaluation mode, with the weights that belong to the name, if any.

    `load` False: fresh weights, since others follow; `know_pixels` False: do not ask how it wants its images.
    Raises InputError for a name that nobody knows, an absent package, and a model that cannot be built so.
    """
    given = dict(arguments or {})
    kind, _, name = spec.partition(":")
    with drawn_from(torch.Generator()):
        if kind == "timm" and name:
            named = _build_timm(name, num_classes, given, load, know_pixels)
        elif kind == "hf" and name:
            named = _build_hf(name, num_classes, given, load, know_pixels)
        elif re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", spec):
            named = _build_code(spec, num_classes, given)
        else:
            raise InputError(f"{spec!r} names no model; give {FORMS}")
    named.module.float().eval()
    return named


def what_is_known(module: nn.Module, *, know_pixels: bool = True) -> tuple[tuple[str, ...], Pixels, tuple[str, ...]]:
    """Return class names and images of a module from its own configuration, as timm and transformers attach it, and notes."""
    if isinstance(getattr(module, "pretrained_cfg", None), dict):
        names, notes = _timm_names(module)
        return names, timm_pixels(module) if know_pixels else Pixels(), notes
    if isinstance(getattr(getattr(module, "config", None), "id2label", None), dict):
        names, notes = _labels_of(module.config)
        pixels, found = _hf_pixels(module, str(getattr(module.config, "_name_or_path", "")), know_pixels, offline=True)
        if know_pixels and pixels == Pixels() and found is None:
            notes += (f"how this {type(module).__name__} wants its images is not known: they are given to it from 0 to 1, unless --mean and --std say more",)
        return names, pixels, notes
    return (), Pixels(), ()


def unique_names(names: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names of which no two are the same, those that were being told apart by their place, and a note."""
    plain = [str(name) for name in names]
    twice = {name for name, count in Counter(plain).items() if count > 1}
    told = (f"the model has several classes of one name, told apart by their place: {', '.join(sorted(twice)[:5])}",) if twice else ()
    return tuple(f"{name} ({place})" if name in twice else name for place, name in enumerate(plain)), told


def _build_timm(name: str, num_classes: int | None, given: dict[str, Any], load: bool, know_pixels: bool) -> Named:
    try:
        import timm
    except ImportError:
        raise InputError(f"timm:{name} needs timm; pip install -e '.[timm]'") from None
    if refused := sorted(TIMM_REFUSED & given.keys()):
        raise InputError(f"the argument {refused[0]} of timm models is set here; weights are named by --weights, and the classes are those of the weights")
    path, stored = _timm_folder(name), name.startswith(TIMM_SOURCES)
    if not stored and not timm.is_model(name):
        near = " or ".join(difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5))
        raise InputError(f"timm knows no model {name!r}; {f'did you mean {near}? ' if near else ''}timm.list_models() shows them all")
    if not stored and num_classes is None:
        raise InputError(f"how many classes timm:{name} is to tell apart is not known; give its weights with --weights")
    source = f"local-dir:{path}" if path else name
    classes = {} if num_classes is None or (stored and load) else {"num_classes": num_classes}

    def build(pretrained: bool = False) -> nn.Module:
        module: nn.Module = timm.create_model(source, pretrained=pretrained, **classes, **given)
        return module

    file = path / "model.safetensors" if path else None
    if stored and load and file is not None and not file.is_file():
        raise InputError(f"{path} holds no model.safetensors; give its weights with --weights")
    try:
        module = build(pretrained=stored and load)
    except Exception as error:  # somebody else's constructors may raise anything
        raise InputError(f"timm:{name} cannot be built: {_first_line(error)}; check the name and its arguments") from error
    names, notes = _timm_names(module)
    pixels = timm_pixels(module, given.get("img_size")) if know_pixels else Pixels()
    if not stored and load:
        notes += (f"timm:{name} has fresh weights: nothing was loaded",)
    layout = WeightsLayout() if stored and load else None
    rebuild = partial(_timm_again, source, {"num_classes": getattr(module, "num_classes", None), **given})
    origin = Origin("timm", name, layout, None, file if layout else None, given)
    return Named(module, names, pixels.geometry, pixels.mean, pixels.std, origin, notes + pixels.notes, rebuild)


def _timm_names(module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class names that a timm model carries, none where they are of another number of classes, and a note."""
    theirs: Any = module
    names, notes = unique_names(dict(theirs.pretrained_cfg).get("label_names") or ())
    return (names, notes) if len(names) == getattr(module, "num_classes", -1) else ((), ())


def _timm_again(source: str, arguments: dict[str, Any]) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(source, pretrained=False, **arguments)
    return module


def _timm_folder(name: str) -> Path | None:
    """Return the folder of a stored timm model, fetched from the Hub where it lies there; None for a name of timm's own list."""
    source = next((source for source in TIMM_SOURCES if name.startswith(source)), None)
    if source is None:
        return None
    place = name.removeprefix(source)
    if source == "local-dir:":
        if not (Path(place) / "config.json").is_file():
            raise InputError(f"{place} is no folder of a timm model (no config.json); save it with timm.models.save_for_hf")
        return Path(place)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = place.partition("@")
    try:
        config = Path(hf_hub_download(repository, "config.json", revision=revision or None))
        with contextlib.suppress(EntryNotFoundError):  # pickles alone: --weights can name one
            hf_hub_download(repository, "model.safetensors", revision=revision or None)
    except Exception as error:  # of the network, of the Hub, of the name
        raise InputError(f"timm:{name} cannot be fetched: {_first_line(error)}; check the name, or give timm:local-dir:FOLDER") from error
    return config.parent


def _build_hf(name: str, num_classes: int | None, given: dict[str, Any], load: bool, know_pixels: bool) -> Named:
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError:
        raise InputError(f"hf:{name} needs transformers; pip install -e '.[hf]'") from None
    if unknown := sorted(given.keys() - HF_ALLOWED):
        raise InputError(f"hf: models take no argument {unknown[0]!r} here; known: {', '.join(sorted(HF_ALLOWED))}")
    folder, auto = Path(name), cast(Any, AutoModelForImageClassification)
    if folder.is_dir() and not (folder / given.get("subfolder", "") / "config.json").is_file():
        raise InputError(f"{name} is no folder of a Hugging Face model (no config.json); save it with save_pretrained")
    fixed = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(name, **fixed, **given)
        if load:
            module, report = auto.from_pretrained(name, use_safetensors=True, output_loading_info=True, **fixed, **given)
        else:
            if num_classes not in (None, config.num_labels):
                config.num_labels = num_classes
            module, report = auto.from_config(config, **fixed), {}
    except Exception as error:  # of the network, of the Hub, of the files, of a model that is no classifier
        hint = "weights that are no safetensors can be given by --weights, and code that comes with a model is not run"
        raise InputError(f"hf:{name} cannot be opened: {_first_line(error)}; {hint}") from error
    if absent := sorted(report.get("missing_keys", ())):
        raise InputError(f"hf:{name} has no trained {', '.join(absent[:3])}: it is no finished classifier; train it first, or give its --weights")
    names, notes = _labels_of(config)
    pixels, processor = _hf_pixels(module, name, know_pixels)
    if know_pixels and processor is None and pixels == Pixels():
        raise InputError(f"hf:{name} has no preprocessor_config.json, so that its normalisation is not known; {OVERRIDE}")
    file = folder / "model.safetensors"
    origin = Origin("hf", name, None, processor, file if load and file.is_file() else None, given)
    rebuild = partial(auto.from_config, config, **fixed)
    return Named(module, names, pixels.geometry, pixels.mean, pixels.std, origin, notes + pixels.notes, rebuild)


def _hf_pixels(module: nn.Module, name: str, know_pixels: bool, *, offline: bool = False) -> tuple[Pixels, dict[str, Any] | None]:
    """Return what the image processor stored with a Hugging Face model does, and its settings; None: there is none."""
    if isinstance(wrapped := getattr(module, "timm_model", None), nn.Module):
        return timm_pixels(wrapped) if know_pixels else Pixels(), None
    try:
        from transformers import AutoImageProcessor

        if not name or (offline and not Path(name).is_dir()):
            return Pixels(), None
        processor = json.loads(cast(Any, AutoImageProcessor).from_pretrained(name, trust_remote_code=False).to_json_string())
    except (ImportError, OSError, ValueError):
        return Pixels(), None
    return processor_pixels(processor, module) if know_pixels else Pixels(), processor


def _labels_of(config: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class names of a transformers config, none where they are its LABEL_0, LABEL_1, ..., and a note."""
    labels = {int(place): str(label) for place, label in config.id2label.items()}
    if sorted(labels) != list(range(len(labels))) or all(label == f"LABEL_{place}" for place, label in labels.items()):
        return (), ()
    return unique_names(labels[place] for place in range(len(labels)))


def _build_code(spec: str, num_classes: int | None, given: dict[str, Any]) -> Named:
    """Import the user's own function or class and call it."""
    place, _, name = spec.partition(":")
    with _working_folder_importable():
        found: Any = _imported(place)
        for part in name.split("."):
            if not hasattr(found, part):
                known = [word for word, value in vars(found).items() if callable(value) and not word.startswith("_")]
                raise InputError(f"{place} has no {name!r}; {suggestion(part, known)}")
            found = getattr(found, part)
        if not callable(found):
            raise InputError(f"{spec} is no function or class that builds a network, but a {type(found).__name__}")
        classes = {"num_classes": num_classes} if num_classes is not None and _takes_classes(found) else {}
        try:
            module = found(**classes, **given)
        except Exception as error:  # the user's own code may raise anything
            raise InputError(f"{spec}({_spelt({**classes, **given})}) failed: {type(error).__name__}: {_first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{spec} returned a {type(module).__name__} and no torch.nn.Module; let it return the network")
    return Named(module, (), None, None, None, Origin("code", spec, arguments=given))


def _imported(place: str) -> Any:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise InputError(f"there is no Python module {place!r} here; run from the folder that holds it, or install it") from None
        raise InputError(f"importing {place} failed: {error}; install what it needs") from error
    except Exception as error:  # the user's own code may raise anything
        raise InputError(f"importing {place} failed: {type(error).__name__}: {_first_line(error)}") from error


@contextlib.contextmanager
def _working_folder_importable() -> Iterator[None]:
    """Let imports find the modules of the working folder, as `python -m` does and an installed command does not."""
    place, before = os.getcwd(), list(sys.path)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        if sys.path[:1] == [place] and sys.path[1:] == before:
            del sys.path[0]


def _takes_classes(build: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):
        return False
    return "num_classes" in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _spelt(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.40}" for name, value in arguments.items())


def _first_line(error: Exception) -> str:
    return f"{(str(error).strip() or type(error).__name__).splitlines()[0]:.300}"
