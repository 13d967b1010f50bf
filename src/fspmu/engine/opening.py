"""From a model's name, or a module handed over in Python, to a classifier that can be repaired."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fspmu.engine.public_weights import load_into, read_weights_file, renamed_for
from fspmu.errors import InputError
from fspmu.models.adopt import Adopted, NotTaken, Origin, WeightsLayout, adopt, input_channels
from fspmu.models.named import Named, build_named, what_is_known
from fspmu.preprocessing import Geometry

SIDES = (224, 32, 64, 28, 96, 128, 256, 384, 299, 512)
"""Sizes that are tried on a model which says nothing of its own."""


@dataclass(frozen=True)
class OpenedModel:
    """A classifier, and what is known of its classes and images; geometry, mean and std are None where that is nothing."""

    model: Adopted
    class_names: tuple[str, ...]
    geometry: Geometry | None
    """None: images at their own size."""
    mean: tuple[float, ...] | None
    """Per channel; None: images as they are, from 0 to 1."""
    std: tuple[float, ...] | None
    notes: tuple[str, ...] = ()
    channels: int = 3
    """How many the images need: 1 grey, 3 RGB, 4 RGB and alpha."""


def open_model(
    spec: str,
    *,
    weights: str | Path | None = None,
    key: str | None = None,
    num_classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    head: str | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> OpenedModel:
    """Return the classifier that `spec` names (timm:..., hf:..., package.module:build), with the weights of a file or its own.

    `key` names one of several state dicts in the file; the number of classes is that of the weights. size (pixels), mean and std (per channel, of
    pixels from 0 to 1) are used instead of what the model's configuration says.
    Raises InputError for names, files, classes and sizes that do not belong together.
    """
    know_pixels = size is None or mean is None or std is None
    if weights is None:
        named = build_named(spec, num_classes, arguments, know_pixels=know_pixels)
        layout, notes = named.origin.layout, named.notes
    else:
        path = Path(weights)
        tensors, spelt = read_weights_file(path, key)
        named = _build_for(spec, tensors, spelt, path, num_classes, arguments, know_pixels)
        layout, told = load_into(named.module, tensors, path, spelt)
        named, notes = replace(named, origin=replace(named.origin, weights=path)), named.notes + told
    named = replace(named, origin=replace(named.origin, layout=layout), notes=notes)
    return _opened(named, None, num_classes, head, size, mean, std)


def adopted_from(
    module: nn.Module,
    example: Tensor | None = None,
    num_classes: int | None = None,
    *,
    head: str | None = None,
    class_names: Sequence[str] = (),
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> OpenedModel:
    """Return a module handed over in Python as `open_model` does; `example` (B, C, H, W), B >= 2, is a batch it takes.

    Modules of timm and transformers say how they want their images; any other gets RGB from 0 to 1 at the images' own size, not normalised. A model that
    was adopted before keeps what is known of it. Raises InputError when the module makes its logits by no linear layer.
    """
    if isinstance(module, Adopted):
        named = Named(module.module, module.class_names, module.geometry, module.mean, module.std, module.origin, (), module.rebuild)
        head = head or module.head_name
    else:
        names, pixels, notes = what_is_known(module, know_pixels=size is None or mean is None or std is None)
        named = Named(module, names, pixels.geometry, pixels.mean, pixels.std, Origin(), notes + pixels.notes)
    if class_names:
        named, num_classes = replace(named, class_names=tuple(class_names)), num_classes or len(class_names)
    return _opened(named, example, num_classes, head, size, mean, std)


def _opened(
    named: Named,
    example: Tensor | None,
    num_classes: int | None,
    head: str | None,
    size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> OpenedModel:
    """Wrap a module, with what was asked for in place of what it says of its images."""
    geometry, notes = _resized(named.geometry, size, named.module), named.notes
    if example is None:
        model, fixed = _try_sizes(named.module, geometry, num_classes, head)
    else:
        model, fixed = adopt(named.module, example, num_classes, head=head), geometry
    if fixed is not None and geometry is None:
        notes += (f"the model takes images of {fixed.size[0]} x {fixed.size[1]} pixels, found by trying; give --size for another",)
    channels = fixed.channels if fixed is not None else example.shape[1] if example is not None else input_channels(named.module) or 3
    if named.class_names and len(named.class_names) != model.num_classes:
        notes += (f"the model tells {model.num_classes} classes apart, and its configuration names {len(named.class_names)}: the names are left out",)
    model.names = named.class_names if len(named.class_names) == model.num_classes else ()
    model.mean, model.std = _per_channel(mean, named.mean, channels, "mean"), _per_channel(std, named.std, channels, "std")
    if (model.mean is None) != (model.std is None):
        raise InputError("--mean and --std belong together: give both")
    model.origin, model.geometry, model.rebuild = named.origin, fixed, named.rebuild
    return OpenedModel(model, model.names, fixed, model.mean, model.std, notes, channels)


def _build_for(
    spec: str, tensors: dict[str, Tensor], layout: WeightsLayout, path: Path, num_classes: int | None, arguments: Mapping[str, Any] | None, know_pixels: bool
) -> Named:
    """Build the network with as many classes as the classifier in the weights has.

    Raises InputError when these are not `num_classes`.
    """
    matrices = [value for name, value in tensors.items() if value.ndim == 2 and name.endswith("weight")]
    guess = num_classes or (len(matrices[-1]) if matrices else 2)  # mostly right: classifiers come last
    named = build_named(spec, guess, arguments, load=False, know_pixels=know_pixels)
    found = _classes_in(named.module, tensors, layout, guess)
    if found is None:
        return named
    if num_classes is not None:
        raise InputError(f"{num_classes} classes were asked for, and the weights in {path} are of {found}; leave num_classes out, or give other weights")
    return build_named(spec, found, arguments, load=False, know_pixels=know_pixels)


def _classes_in(module: nn.Module, tensors: dict[str, Tensor], layout: WeightsLayout, built_with: int) -> int | None:
    """Return the number of classes in the weights where it is all that parts them from a module built with another; None: it is not."""
    own, found = module.state_dict(), renamed_for(module, tensors, layout)[0]
    shapes = [(own[name].shape, value.shape) for name, value in found.items() if name in own and own[name].shape != value.shape]
    rows = {theirs[0] if theirs and ours[:1] == (built_with,) and ours[1:] == theirs[1:] else -1 for ours, theirs in shapes}
    return rows.pop() if len(rows) == 1 and -1 not in rows else None


def _try_sizes(module: nn.Module, geometry: Geometry | None, num_classes: int | None, head: str | None) -> tuple[Adopted, Geometry | None]:
    """Wrap a module by an example of its size, or of the first that it takes; return the size it is held to, None: it takes others as well."""
    if geometry is not None:
        return adopt(module, _example(geometry.channels, *geometry.size), num_classes, head=head), geometry
    channels = input_channels(module)
    for side in SIDES:
        for depth in (channels,) if channels else (3, 1):
            try:
                model = adopt(module, _example(depth, side, side), num_classes, head=head)
            except NotTaken:
                continue
            free = side == SIDES[0] and _takes(module, _example(depth, side + 32, side + 32), model.head_name)
            return model, None if free else Geometry((side, side), depth)
    raise InputError(f"the model takes images of none of the sizes {', '.join(map(str, SIDES))}; give its --size")


def _takes(module: nn.Module, example: Tensor, head: str) -> bool:
    try:
        adopt(module, example, head=head)
    except InputError:
        return False
    return True


def _example(channels: int, height: int, width: int) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def _resized(geometry: Geometry | None, size: int | None, module: nn.Module) -> Geometry | None:
    """Return the geometry at another size: without a border that is cut off."""
    if size is None:
        return geometry
    if size < 1:
        raise InputError(f"--size is {size}, but it is a number of pixels: give at least 1")
    if geometry is None:
        return Geometry((size, size), input_channels(module) or 3)
    return replace(geometry, size=(size, size), shortest=size if geometry.resize == "shortest" else 0)


def _per_channel(given: Sequence[float] | None, known: tuple[float, ...] | None, channels: int, name: str) -> tuple[float, ...] | None:
    """Return one number per channel: as given, else as known.

    Raises InputError for another number of numbers, one that is not finite, and a standard deviation of nought.
    """
    if given is None:
        return known
    values = tuple(float(value) for value in given)
    values = values * channels if len(values) == 1 else values
    if len(values) != channels:
        raise InputError(f"--{name} has {len(values)} numbers, and the model takes {channels} channel{'s' * (channels > 1)}; give one for each, or one for all")
    if bad := [value for value in values if not math.isfinite(value)]:
        raise InputError(f"--{name} holds {bad[0]:g}: give finite numbers")
    if name == "std" and min(values) <= 0:
        raise InputError(f"--std holds {min(values):g}, and pixels are divided by it: give numbers above 0")
    return values
