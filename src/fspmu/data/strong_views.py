"""Strong random views: a few of 14 operations drawn PER IMAGE, each with its own magnitude, then a filled rectangle. On uint8 batches, on any device.

The operations compute what Pillow's do, to the level: nearest sampling, black where the image ends, rounding and all.
The crop and the mirror of a weak view come after them: `augment.apply_views`.
Source: Cubuk et al., RandAugment, 2020, and DeVries and Taylor, Cutout, 2017, with the values of docs/nll_methods.md, "ProMix".
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FILL = (125, 123, 114)
"""Red, green and blue of the rectangle; images without three channels get 123, the grey of this."""

_GREY = (19595, 38470, 7471)
"""Weights of red, green and blue in a grey level, in 65536ths."""


@dataclass(frozen=True)
class StrongViews:
    """One strong view per image.

    ops (B, S) int64 are places in OPERATIONS, amounts (B, S) their magnitudes in units of their own; box (B, 4) int64 the first and last column
    and the first and last row of the rectangle. ops_here are the ops on the CPU: how many images get which must be known without asking the device.
    """

    ops_here: Tensor
    ops: Tensor
    amounts: Tensor
    box: Tensor

    def __getitem__(self, chosen: slice) -> "StrongViews":
        return StrongViews(self.ops_here[chosen], self.ops[chosen], self.amounts[chosen], self.box[chosen])

    def to(self, device: torch.device) -> "StrongViews":
        """Return the same views on `device`."""
        return StrongViews(self.ops_here, *(part.to(device, non_blocking=True) for part in (self.ops, self.amounts, self.box)))


def draw_strong_views(count: int, height: int, width: int, generator: torch.Generator, operations: int = 3) -> StrongViews:
    """Draw `count` views on the CPU for images of `height` x `width`: operations with replacement, magnitudes and the rectangle uniformly.

    The rectangle's side is v = width * U(0, 0.5) and its centre U(1, side of the image] on either axis; it is moved, not cut, at the left and the top.
    """
    low, high = (torch.tensor(bounds) for bounds in zip(*((low, high) for _, low, high in OPERATIONS.values()), strict=True))
    ops = torch.randint(0, len(OPERATIONS), (count, operations), generator=generator)
    amounts = low[ops] + (high - low)[ops] * torch.rand(count, operations, generator=generator)
    side = 0.5 * width * torch.rand(count, 1, generator=generator)
    ends = torch.tensor([width, height])
    centre = ends - (ends - 1) * torch.rand(count, 2, generator=generator)
    near = (centre - side / 2).clamp(min=0).long()
    far = torch.minimum(near + side.long(), ends - 1)
    return StrongViews(ops, ops, amounts, torch.stack([near[:, 0], far[:, 0], near[:, 1], far[:, 1]], dim=1))


def apply_strong_views(pixels: Tensor, views: StrongViews) -> Tensor:
    """Return `pixels` (B, C, H, W) uint8 after their operations and with their rectangles filled; `views` on the same device."""
    for slot in range(views.ops.shape[1]):
        counts = torch.bincount(views.ops_here[:, slot], minlength=len(OPERATIONS)).tolist()
        order = views.ops[:, slot].argsort(stable=True)  # images with the same operation stand together
        parts, amounts = torch.split(pixels[order], counts), torch.split(views.amounts[order, slot], counts)
        done = [operation(part, amount) for (operation, _, _), part, amount in zip(OPERATIONS.values(), parts, amounts, strict=True) if len(part)]
        pixels = torch.empty_like(pixels).index_copy_(0, order, torch.cat(done)) if done else pixels
    return fill_boxes(pixels, views.box)


def fill_boxes(pixels: Tensor, box: Tensor) -> Tensor:
    """Return `pixels` (B, C, H, W) with FILL in the rectangle `box` (B, 4) of each: first and last column, first and last row."""
    channels, height, width = pixels.shape[1:]
    columns, rows = torch.arange(width, device=pixels.device), torch.arange(height, device=pixels.device)
    left, right, top, bottom = (edge[:, None] for edge in box.unbind(dim=1))
    inside = ((rows >= top) & (rows <= bottom))[:, :, None] & ((columns >= left) & (columns <= right))[:, None, :]
    levels = FILL if channels == 3 else (123,) * channels
    filled = [torch.where(inside, level, channel) for level, channel in zip(levels, pixels.unbind(dim=1), strict=True)]
    return torch.stack(filled, dim=1)


# The operations: (b, C, H, W) uint8 and amounts (b,) -> (b, C, H, W) uint8. What they do with images that have not three channels is our own:
# the grey level is then the mean over the channels.


def autocontrast(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Stretch each channel to all levels from 0 to 255; one of a single level stays."""
    low, high = (edge.to(_wide(pixels.device)) for edge in (pixels.amin(dim=(2, 3), keepdim=True), pixels.amax(dim=(2, 3), keepdim=True)))
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)  # a number over a tensor would be its reciprocal, rounded twice
    stretched = (pixels * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, pixels)


def equalise(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Spread each channel's levels so that its histogram becomes flat, as far as whole levels allow."""
    levels = pixels.flatten(0, 1).flatten(1).long()
    histogram = torch.zeros(len(levels), 256, dtype=torch.int32, device=pixels.device)
    histogram.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.int32))
    highest = histogram.gather(1, levels.amax(dim=1, keepdim=True))
    step = (levels.shape[1] - highest) // 255
    below = histogram.cumsum(dim=1) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    spread = table.gather(1, levels).to(torch.uint8)
    return torch.where(step > 0, spread, levels.to(torch.uint8)).view_as(pixels)  # no step: too few pixels, or a single level


def identity(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Leave the images as they are."""
    return pixels


def brightness(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Blend with black; amount 1 keeps the image, as in all blends."""
    return _blend(torch.zeros_like(pixels), pixels, amounts)


def colour(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(_grey(pixels), pixels, amounts)


def contrast(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Blend with the mean grey level."""
    grey = _grey(pixels)
    places = grey[0].numel()
    mean = (2 * grey.sum(dim=(1, 2, 3), keepdim=True) + places) // (2 * places)  # rounded half up
    return _blend(mean, pixels, amounts)


def sharpness(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Blend with the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13, whose border stays as it is."""
    nine = F.avg_pool2d(pixels.float(), 3, stride=1, padding=1, divisor_override=1).int()
    smooth = (2 * (nine + 4 * pixels.int()) + 13) // 26  # rounded; a 13th is never half a level
    border = torch.ones(pixels.shape[2:], dtype=torch.bool, device=pixels.device)
    border[1:-1, 1:-1] = False
    return _blend(torch.where(border, pixels, smooth), pixels, amounts)


def posterise(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Keep the whole number of `amounts` bits of each level."""
    kept = (256 - 2.0 ** (8 - amounts.floor())).to(torch.uint8)
    return pixels & kept[:, None, None, None]


def rotate(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Turn the images counter-clockwise about their centre, in degrees."""
    angle = -amounts.to(_wide(pixels.device)) * (torch.pi / 180)
    x, y = pixels.shape[3] / 2, pixels.shape[2] / 2
    cos, sin = angle.cos(), angle.sin()
    return _sample(pixels, (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y))


def shear_x(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Take the column x + amount * y."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _sample(pixels, (one, amounts, zero), (zero, one, zero))


def shear_y(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Take the row y + amount * x."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _sample(pixels, (one, zero, zero), (amounts, one, zero))


def solarise(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Invert the levels at or above the amount."""
    return torch.where(pixels < amounts[:, None, None, None], pixels, 255 - pixels)


def translate_x(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Take the column x + amount * width."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _sample(pixels, (one, zero, _whole(amounts, pixels.shape[3])), (zero, one, zero))


def translate_y(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Take the row y + amount * height."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _sample(pixels, (one, zero, zero), (zero, one, _whole(amounts, pixels.shape[2])))


OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "autocontrast": (autocontrast, 0.0, 1.0),
    "brightness": (brightness, 0.05, 0.95),
    "colour": (colour, 0.05, 0.95),
    "contrast": (contrast, 0.05, 0.95),
    "equalise": (equalise, 0.0, 1.0),
    "identity": (identity, 0.0, 1.0),
    "posterise": (posterise, 4.0, 8.0),
    "rotate": (rotate, -30.0, 30.0),
    "sharpness": (sharpness, 0.05, 0.95),
    "shear_x": (shear_x, -0.3, 0.3),
    "shear_y": (shear_y, -0.3, 0.3),
    "solarise": (solarise, 0.0, 256.0),
    "translate_x": (translate_x, -0.3, 0.3),
    "translate_y": (translate_y, -0.3, 0.3),
}
"""Each operation with the bounds of its magnitude, which those without one do not look at."""


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _grey(pixels: Tensor) -> Tensor:
    """Return the grey levels (b, 1, H, W) int32."""
    if pixels.shape[1] != 3:
        return (pixels.float().mean(dim=1, keepdim=True) + 0.5).int()
    red, green, blue = (channel[:, None] for channel in pixels.int().unbind(dim=1))
    return (red * _GREY[0] + green * _GREY[1] + blue * _GREY[2] + 0x8000) >> 16


def _blend(other: Tensor, pixels: Tensor, amounts: Tensor) -> Tensor:
    """Return other + amount * (pixels - other), the fraction dropped; in float32, as Pillow computes it."""
    start = other.float()
    return (start + amounts[:, None, None, None] * (pixels.float() - start)).to(torch.uint8)


def _whole(share: Tensor, side: int) -> Tensor:
    """Return by how many pixels nearest sampling moves an image that is moved by a share of its side."""
    return (share.to(_wide(share.device)) * side + 0.5).floor()


def _sample(pixels: Tensor, column: tuple[Tensor, Tensor, Tensor], row: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return at (x, y) the pixel whose column is floor(c0 x' + c1 y' + c2), x' = x + 1/2 and y' = y + 1/2, and whose row likewise; black outside.

    In fixed point with 16 binary places, which is how Pillow settles what is near a boundary.
    """
    height, width = pixels.shape[2:]
    x, y = torch.arange(width, device=pixels.device), torch.arange(height, device=pixels.device)[:, None]
    places = []
    for factors in (column, row):
        by_x, by_y, start = (factor.to(_wide(pixels.device)) for factor in factors)
        steps = [(part * 65536 + 0.5).floor().long()[:, None, None] for part in (by_x, by_y, start + by_x * 0.5 + by_y * 0.5)]
        places.append((steps[2] + steps[1] * y + steps[0] * x) >> 16)
    inside = (places[0] >= 0) & (places[0] < width) & (places[1] >= 0) & (places[1] < height)
    chosen = torch.where(inside, places[1] * width + places[0], 0).flatten(1)
    sampled = pixels.flatten(2).gather(2, chosen[:, None].expand(-1, pixels.shape[1], -1)).view_as(pixels)
    return sampled * inside[:, None]
