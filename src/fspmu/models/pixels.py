"""How a public model wants its images, read from its own configuration: timm's `pretrained_cfg`, or a Hugging Face image processor."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fspmu.errors import InputError
from fspmu.models.adopt import input_channels
from fspmu.preprocessing import INTERPOLATIONS, Geometry

OVERRIDE = "give --size, --mean and --std yourself"
RESAMPLES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, as Hugging Face writes them."""
PROCESSORS = frozenset("ViT DeiT CLIP Bit Beit Siglip MobileNetV1 MobileNetV2 EfficientNet MobileViT ConvNext Levit PoolFormer Pvt Blip Segformer".split())
"""The Hugging Face image processors whose steps are known here: ...ImageProcessor."""


@dataclass(frozen=True)
class Pixels:
    """Geometry, and normalisation (per channel, of pixels from 0 to 1); None: not known."""

    geometry: Geometry | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


def timm_pixels(module: nn.Module, image_size: int | Sequence[int] | None = None) -> Pixels:
    """Return what timm's evaluation transform does for `module`, built for `image_size` where that is not its configuration's.

    Raises InputError for transforms that resize in another way than `Geometry` can.
    """
    from timm.data import resolve_data_config

    theirs: Any = module
    config = resolve_data_config({}, pretrained_cfg=dict(theirs.pretrained_cfg))
    built_for = image_size or getattr(getattr(module, "patch_embed", None), "img_size", None) or config["input_size"][1:]
    height, width = (built_for, built_for) if isinstance(built_for, int) else built_for
    mode, crop, interpolation = config["crop_mode"], config["crop_pct"], config["interpolation"]
    if interpolation not in INTERPOLATIONS or mode not in ("center", "squash") or (crop != 1 and height != width):
        raise InputError(f"timm resizes for this model by {interpolation}, {mode}, {crop:g} of {height} x {width}, which is not known here; {OVERRIDE}")
    channels = input_channels(module) or 3
    scaled = math.floor(height / crop) if height == width else 0
    resize = {"squash": ("squash", 0 if scaled == height else scaled), "center": ("shortest", scaled)}[mode]
    mean, std, notes = _for_channels(config["mean"], config["std"], channels)
    return Pixels(Geometry((height, width), channels, *resize, interpolation), mean, std, notes)


def processor_pixels(processor: Mapping[str, Any], module: nn.Module) -> Pixels:
    """Return what a Hugging Face image processor of these settings does to images for `module`.

    Raises InputError for processors with steps that `Geometry` and a normalisation cannot say.
    """
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(processor.get("image_processor_type", "")))
    odd = [name for name in ("do_pad", "do_flip_channel_order", "do_thumbnail", "do_align_long_axis") if processor.get(name)]
    if kind not in PROCESSORS or odd:
        raise InputError(f"what the {kind or 'unnamed'} image processor{f' with {odd[0]}' if odd else ''} does to images is not known here; {OVERRIDE}")
    channels = input_channels(module) or 3
    geometry = _processor_geometry(kind, processor, channels)
    scale = 255 * (float(processor["rescale_factor"]) if processor.get("do_rescale") else 1.0)
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale
    shift = 1.0 if processor.get("rescale_offset") and processor.get("do_rescale") else 0.0
    plain = not processor.get("do_normalize")
    means = [0.0] if plain else _numbers(processor["image_mean"])
    stds = [1.0] if plain else _numbers(processor["image_std"])
    again = _numbers(processor["image_std"]) if kind == "EfficientNet" and processor.get("include_top") else [1.0] * len(stds)
    if len(again) != len(stds):
        stds = stds * len(again)
    if len(means) != len(stds):
        means = means * len(stds)
    folded = [(mean + shift) / scale for mean in means], [std * more / scale for std, more in zip(stds, again, strict=True)]
    mean, std, notes = _for_channels(*folded, channels)
    return Pixels(geometry, mean, std, notes)


def _processor_geometry(kind: str, processor: Mapping[str, Any], channels: int) -> Geometry | None:
    """Return the resizing of an image processor, and its crop."""
    resizes, crops = bool(processor.get("do_resize")), bool(processor.get("do_center_crop"))
    if not resizes and not crops:
        return None
    size, crop, share = _size(processor.get("size")), _size(processor.get("crop_size")), processor.get("crop_pct")
    interpolation = RESAMPLES.get(int(processor["resample"] if processor.get("resample") is not None else 2), "")
    shortest, squash = size.get("shortest_edge", 0), (size.get("height", 0), size.get("width", 0))
    target = (crop.get("height", 0), crop.get("width", 0)) if crops else (0, 0)
    if kind == "ConvNext" and shortest:
        resize = ("shortest", int(shortest / (share or 224 / 256))) if shortest < 384 else ("squash", 0)
        found = Geometry((shortest, shortest), channels, *resize, interpolation)
        target = found.size if not crops else target
    elif kind == "PoolFormer" and share and squash[0] == squash[1]:
        found = Geometry(target, channels, "shortest", int((shortest or squash[0]) / share), interpolation)
    elif shortest:
        found = Geometry(target, channels, "shortest", int(256 / 224 * shortest) if kind == "Levit" else shortest, interpolation)
    else:
        target = target if crops else squash
        cropped = target != squash and squash[0] == squash[1]
        found = Geometry(target if cropped else squash, channels, "squash", squash[0] if cropped else 0, interpolation)
    too_small = found.shortest and found.shortest < max(found.size)
    if not (resizes and interpolation and all(found.size)) or target != found.size or too_small or {"longest_edge", "max_height"} & size.keys():
        raise InputError(f"the image processor resizes to {size} and crops to {crop if crops else 'nothing'}, which is not known here; {OVERRIDE}")
    return found


def _size(value: Any) -> dict[str, int]:
    """Return a size as Hugging Face writes it, by its names, without those that say nothing."""
    if isinstance(value, int):
        return {"height": value, "width": value}
    return {str(name): int(number) for name, number in dict(value or {}).items() if number}


def _numbers(value: Any) -> list[float]:
    return [float(value)] if isinstance(value, int | float) else [float(number) for number in value]


def _for_channels(mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Return a normalisation for so many channels, and a note where the configuration's was for another number."""
    if len(mean) == 1:
        return tuple(mean) * channels, tuple(std) * channels, ()
    if len(mean) == channels:
        return tuple(mean), tuple(std), ()
    if channels == 4 and len(mean) == 3:
        adapted: tuple[tuple[float, ...], ...] = (*mean, 0.5), (*std, 0.5)
    else:
        adapted = tuple((math.fsum(values) / len(values),) * channels for values in (mean, std))
    told = f"the model takes {channels} channel{'s' * (channels > 1)} and its configuration normalises {len(mean)}: normalised by mean"
    return adapted[0], adapted[1], (f"{told} {_brief(adapted[0])} and std {_brief(adapted[1])}; give --mean and --std if it was trained otherwise",)


def _brief(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
