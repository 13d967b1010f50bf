"""A repaired model back to where it came from: the file, library and module of whoever brought it, with a card that says what was done."""

import contextlib
import copy
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fspmu.engine.checkpoint import save_model, save_tensors
from fspmu.engine.model_card import CardFacts, model_card
from fspmu.engine.public_weights import read_weights_file
from fspmu.engine.rebuilding import hf_config, home_of, tensors_of
from fspmu.errors import InputError
from fspmu.models.adopt import Adopted, Origin, WeightsLayout
from fspmu.models.classifier import drawn_from
from fspmu.models.pixels import RESAMPLES, processor_pixels
from fspmu.preprocessing import Geometry, Preprocessing
from fspmu.results.store import default_mode, replacing, write_json, write_text

PRETRAINED = "pretrained"
"""The folder that the model's own library opens."""


def hand_back(model: Adopted, folder: Path, *, parent_hash: str, facts: CardFacts) -> list[Path]:
    """Write the repaired model into a run folder, in every form in which its owner can use it; return what was written.

    model.safetensors and model.json, as of every run; repaired.* like the file its weights came from, if they came from one; `pretrained` for timm and
    transformers; README.md, the model card. parent_hash: `weights_hash` of the model before. Raises InputError when the model has no description.
    """
    save_model(model, folder)
    written, notes = [folder / "model.safetensors", folder / "model.json"], list(facts.notes)
    version = metadata.version("fspmu")
    place, base = _shown(model.origin), _base_model(model.origin)
    facts = replace(facts, kind=model.origin.kind, origin=place, parent_hash=parent_hash, version=version, base_model=base)
    if (layout := model.origin.layout) is not None:
        about = {"fspmu": version, "parent_sha256": parent_hash, "seed": str(facts.seed), "forgotten": str(facts.forgotten)}
        path = folder / f"repaired{layout.suffix}"
        notes += write_like_source(model, layout, path, about | {"method": facts.method, "detector": facts.detector})
        source = model.origin.weights.name if model.origin.weights else ""
        facts = replace(facts, weights_file=path.name, wrapper=layout.wrapper, prefix=layout.prefix, parent_file=source)
        written.append(path)
    if home := home_of(model.module):
        if reason := write_pretrained(model, folder / PRETRAINED):
            notes.append(f"There is no folder {PRETRAINED} beside this card: {reason}.")
        else:
            facts = replace(facts, pretrained=home)
            written.append(folder / PRETRAINED)
    write_text(folder / "README.md", model_card(replace(facts, notes=tuple(notes))))
    return [*written, folder / "README.md"]


def _shown(origin: Origin) -> str:
    """Return the name of an origin for a card that others read: not where a folder lies."""
    source, mark, name = origin.name.rpartition("local-dir:")
    return f"{source}{mark}{Path(name).name}" if mark or Path(name).is_dir() else name


def _base_model(origin: Origin) -> str:
    """Return the repository on the Hub that a model came from, or nothing: a folder is none."""
    name = origin.name.removeprefix("hf-hub:") if origin.kind == "timm" and origin.name.startswith("hf-hub:") else origin.name if origin.kind == "hf" else ""
    name = name.partition("@")[0]
    return name if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name, re.ASCII) and not Path(name).exists() else ""


def write_like_source(model: Adopted, layout: WeightsLayout, path: Path, about: dict[str, str]) -> list[str]:
    """Write the weights as the file they came from spelt them, in its number types; return what is to be said of it.

    about: strings for the metadata, which only a safetensors file has.
    """
    theirs, notes = _types_of_source(model.origin)
    told = {name: kind for name, word in layout.dtypes.items() if isinstance(kind := getattr(torch, word, None), torch.dtype)}
    weights, rounded = {}, set()
    for name, value in tensors_of(model.module).items():
        if theirs and layout.prefix + name not in theirs and name.endswith("num_batches_tracked"):
            continue  # files before PyTorch 0.4.1 lack these
        kind = theirs.get(layout.prefix + name, told.get(name, value.dtype))
        if value.is_floating_point() and kind.itemsize < value.dtype.itemsize:
            rounded.add(str(kind).removeprefix("torch."))
        weights[layout.prefix + name] = value.detach().to("cpu", kind, memory_format=torch.contiguous_format, copy=True)
    if layout.suffix == ".safetensors":
        save_tensors(path, weights, {"format": "pt", **about})
    else:
        with replacing(path) as temporary, open(temporary, "wb") as file:  # by its name torch would call the archive, and the name is random
            torch.save({layout.wrapper: weights} if layout.wrapper else weights, file)
    return notes + [f"The weights in {path.name} are rounded to {kind}, like those in the file they came from." for kind in sorted(rounded)]


def _types_of_source(origin: Origin) -> tuple[dict[str, torch.dtype], list[str]]:
    """Return the number type of each tensor in the file that the weights came from, by the names there, and what is to be said of it."""
    if origin.weights is None:
        return {}, []
    try:
        weights, layout = read_weights_file(origin.weights, origin.layout.wrapper or None if origin.layout else None)
    except InputError:
        return {}, [f"{origin.weights.name} could not be read again, so its number types are not known for sure."]
    return {layout.prefix + name: value.dtype for name, value in weights.items()}, []


def write_pretrained(model: Adopted, folder: Path) -> str:
    """Write the folder that the module's own library opens, whole or not at all; return why there is none, or nothing.

    What was written is opened again and must answer a random batch as the module does: a module that was changed after its library built it does not.
    """
    waiting, home = folder.with_name(f".{folder.name}-partial"), home_of(model.module)
    shutil.rmtree(waiting, ignore_errors=True)
    try:
        module = _plain_copy(model.module)
        preprocessing = model.description.preprocessing if model.description else None
        write, read = {"timm": (_write_timm, _read_timm), "hf": (_write_hf, _read_hf)}[home]
        with _quiet(home), drawn_from(torch.Generator()):
            write(module, waiting, model, preprocessing)
            again = read(waiting)
        if not _same_answers(module.float(), again.float(), _input_shape(module, model.geometry)):
            return "the model that opens from it gives other answers, so the module is not as its library builds it"
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:  # libraries have many ways to say no
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return f"{'timm' if home == 'timm' else 'transformers'} cannot write or open it ({reason:.200})"
    else:
        for path in waiting.rglob("*"):  # libraries write private files; a run folder is shared like any other output
            path.chmod(default_mode(folder=path.is_dir()))
        shutil.rmtree(folder, ignore_errors=True)
        waiting.rename(folder)
        return ""
    finally:
        shutil.rmtree(waiting, ignore_errors=True)


def _plain_copy(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU in evaluation mode whose tensors lie in memory as files want them."""
    plain = copy.deepcopy(module).cpu().eval()
    for tensor in (*plain.parameters(), *plain.buffers()):
        tensor.grad = None
        tensor.data = tensor.data.contiguous()
    return plain


@contextlib.contextmanager
def _quiet(home: str) -> Iterator[None]:
    """Let transformers show no progress bars of its own."""
    if home != "hf":
        yield
        return
    from transformers.utils import logging as theirs

    logging: Any = theirs
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_timm(module: Any, folder: Path, model: Adopted, preprocessing: Preprocessing | None) -> None:
    from timm.models import save_for_hf

    config = {
        name: value for name, value in module.pretrained_cfg.items() if name not in ("test_input_size", "test_crop_pct", "label_names", "label_descriptions")
    }
    config |= {"num_classes": model.num_classes}
    if preprocessing is not None:
        config |= {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
    if model.geometry is not None:
        config |= timm_geometry(model.geometry, config.get("crop_pct"))
    module.pretrained_cfg = config
    names = {"label_names": list(model.class_names)} if model.class_names else {}
    save_for_hf(module, folder, model_config=names, safe_serialization=True)


def timm_geometry(geometry: Geometry, crop_pct: float | None) -> dict[str, Any]:
    """Return `geometry` in the words of timm's configs; `crop_pct` is kept where it says the same."""
    words = {"input_size": [geometry.channels, *geometry.size], "interpolation": geometry.interpolation}
    if geometry.resize == "squash":
        return words | {"crop_mode": "squash", "crop_pct": min(geometry.size) / geometry.shortest if geometry.shortest else 1.0}
    side = min(geometry.size)
    shortest = geometry.shortest or side
    if not crop_pct or math.floor(side / crop_pct) != shortest:
        crop_pct = side / shortest
        while math.floor(side / crop_pct) < shortest:  # timm rounds down what the division may have made a little too small
            crop_pct = math.nextafter(crop_pct, 0)
    return words | {"crop_mode": "center", "crop_pct": crop_pct}


def _read_timm(folder: Path) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return module.eval()


def _write_hf(module: Any, folder: Path, model: Adopted, preprocessing: Preprocessing | None) -> None:
    names = hf_config(module, model.class_names)
    if model.class_names:
        module.config.id2label = {int(place): name for place, name in names["id2label"].items()}
        module.config.label2id = names["label2id"]
    module.save_pretrained(folder)
    if model.origin.processor is not None and preprocessing is not None:
        write_json(folder / "preprocessor_config.json", processor_as_used(model.origin.processor, module, preprocessing, model.geometry))


def processor_as_used(processor: dict[str, Any], module: nn.Module, preprocessing: Preprocessing, geometry: Geometry | None) -> dict[str, Any]:
    """Return the image processor's settings, or others where these are not what the model was repaired with."""
    with contextlib.suppress(InputError):  # of a processor that is not understood, and was overridden
        known = processor_pixels(processor, module)
        if (known.geometry, known.mean, known.std) == (geometry, preprocessing.mean, preprocessing.std):
            return processor
    normalised = {"do_normalize": True, "image_mean": list(preprocessing.mean), "image_std": list(preprocessing.std)}
    plain = {"do_rescale": True, "rescale_factor": 1 / 255, **normalised}
    if geometry is None:
        return plain | {"image_processor_type": "ViTImageProcessor", "do_resize": False}
    height, width = geometry.size
    plain |= {"do_resize": True, "resample": next(number for number, name in RESAMPLES.items() if name == geometry.interpolation)}
    if geometry.resize == "squash" and not geometry.shortest:
        return plain | {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    cropped = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    if geometry.resize == "squash":
        return plain | cropped | {"image_processor_type": "DeiTImageProcessor", "size": {"height": geometry.shortest, "width": geometry.shortest}}
    return plain | cropped | {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": geometry.shortest or max(geometry.size)}}


def _read_hf(folder: Path) -> nn.Module:
    from transformers import AutoModelForImageClassification

    module, told = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True, local_files_only=True, use_safetensors=True)
    if wrong := [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in told.get(kind) or ()]:
        raise ValueError(f"{len(wrong)} weights do not fit: {wrong[0]}")
    built: nn.Module = module
    return built.eval()


def _input_shape(module: Any, geometry: Geometry | None) -> tuple[int, ...]:
    if geometry is not None:
        return (geometry.channels, *geometry.size)
    if home_of(module) == "timm":
        return tuple(module.pretrained_cfg["input_size"])
    size = getattr(module.config, "image_size", 224)
    return (getattr(module.config, "num_channels", 3), *((size, size) if isinstance(size, int) else size))


def _same_answers(module: nn.Module, again: nn.Module, shape: tuple[int, ...]) -> bool:
    batch = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        left, right = _logits(module(batch)), _logits(again(batch))
    return left.shape == right.shape and bool(torch.allclose(left, right, rtol=1e-3, atol=1e-4, equal_nan=True))


def _logits(answer: Any) -> Tensor:
    logits: Tensor = answer if isinstance(answer, Tensor) else answer.logits
    return logits


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and values of a module's state dict, 64 hexadecimal digits, whatever its device and layout."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors_of(module.module if isinstance(module, Adopted) else module).items()):
        plain = value.detach().cpu().contiguous().reshape(-1)
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def restore_flags(original: nn.Module, repaired: nn.Module) -> None:
    """Give `repaired` the training modes and the requires_grad of `original`, a module of the same structure.

    Raises ValueError when the two are not built alike.
    """
    theirs, ours = (dict(module.named_modules(remove_duplicate=False)) for module in (original, repaired))
    if theirs.keys() != ours.keys() or tensors_of(original).keys() != tensors_of(repaired).keys():
        raise ValueError("the repaired module has other parts than the original")
    for name, module in theirs.items():
        ours[name].training = module.training
    parameters = dict(repaired.named_parameters(remove_duplicate=False))
    for name, parameter in original.named_parameters(remove_duplicate=False):
        parameters[name].requires_grad_(parameter.requires_grad)


def like(original: nn.Module, repaired: nn.Module) -> nn.Module:
    """Return `repaired`, changed in place: on the device, in the number types and memory layouts, modes and requires_grad of `original`, tensor by tensor.

    Raises ValueError when the two are not built alike.
    """
    restore_flags(original, repaired)
    for pick in (nn.Module.named_parameters, nn.Module.named_buffers):
        ours = dict(pick(repaired, remove_duplicate=False))
        for name, theirs in pick(original, remove_duplicate=False):
            ours[name].grad = None  # of the type it had in training
            ours[name].data = torch.empty_like(theirs.data).copy_(ours[name].data)
    return repaired
