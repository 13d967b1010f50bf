"""Strong views: every operation against Pillow's own, image by image, and the draws."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from fspmu.data.strong_views import FILL, OPERATIONS, StrongViews, apply_strong_views, draw_strong_views, fill_boxes


def affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


PILLOW = {
    "autocontrast": lambda image, v: ImageOps.autocontrast(image),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "colour": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "equalise": lambda image, v: ImageOps.equalize(image),
    "identity": lambda image, v: image,
    "posterise": lambda image, v: ImageOps.posterize(image, int(v)),
    "rotate": lambda image, v: image.rotate(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "shear_x": lambda image, v: affine(image, (1, v, 0, 0, 1, 0)),
    "shear_y": lambda image, v: affine(image, (1, 0, 0, v, 1, 0)),
    "solarise": lambda image, v: ImageOps.solarize(image, v),
    "translate_x": lambda image, v: affine(image, (1, 0, v * image.width, 0, 1, 0)),
    "translate_y": lambda image, v: affine(image, (1, 0, 0, 0, 1, v * image.height)),
}
BLENDS = ("brightness", "colour", "contrast", "sharpness")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_pixels(count, channels=3, height=32, width=32):
    """Return noise, noise of a narrow range, coarse patches, and images of one level in a channel, in turn."""
    pixels = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=seeded(1))
    pixels[1::4] = pixels[1::4] // 5 + 90
    pixels[2::4] = pixels[2::4, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :height, :width]
    pixels[3::4, 0] = pixels[3::4, 0, :1, :1]
    return pixels


def by_pillow(pixels, operation, amount):
    array = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(array if len(pixels) == 3 else array[:, :, 0])
    return torch.from_numpy(np.array(operation(image, amount)).reshape(array.shape)).permute(2, 0, 1)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 8, 8), (3, 20, 28), (1, 16, 16)])
def test_an_operation_is_pillows(name, shape):
    operation, low, high = OPERATIONS[name]
    pixels = make_pixels(240, *shape)
    amounts = low + (high - low) * torch.rand(240, generator=seeded(2))
    if name.startswith("translate"):
        amounts[:8] = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.5]) / shape[2 if name.endswith("x") else 1]  # by half pixels: ties
    result = operation(pixels, amounts)
    assert result.dtype == torch.uint8 and result.shape == pixels.shape
    expected = torch.stack([by_pillow(image, PILLOW[name], float(amount)) for image, amount in zip(pixels, amounts, strict=True)])
    if name in BLENDS:  # a CPU that fuses multiply and add may round a product otherwise than Pillow's build did
        assert int((result.int() - expected.int()).abs().max()) <= 1 and float((result != expected).float().mean()) < 1e-3
    else:  # to the level, the geometric ones at boundaries too
        assert torch.equal(result, expected)


def test_the_operations_and_their_ranges():
    ranges = {name: (low, high) for name, (_, low, high) in OPERATIONS.items()}
    assert len(ranges) == 14 and set(ranges) == set(PILLOW)
    assert {ranges[name] for name in BLENDS} == {(0.05, 0.95)}
    assert {ranges[name] for name in ("shear_x", "shear_y", "translate_x", "translate_y")} == {(-0.3, 0.3)}
    assert (ranges["rotate"], ranges["posterise"], ranges["solarise"]) == ((-30, 30), (4, 8), (0, 256))


def test_each_image_gets_its_own_three_and_its_rectangle():
    pixels = make_pixels(120)
    views = draw_strong_views(120, 32, 32, seeded(3))
    result, before = apply_strong_views(pixels, views), pixels.clone()
    names, equal = list(OPERATIONS), 0
    for row in range(120):
        image = pixels[row]
        for op, amount in zip(views.ops[row].tolist(), views.amounts[row].tolist(), strict=True):
            image = by_pillow(image, PILLOW[names[op]], amount)
        left, right, top, bottom = views.box[row].tolist()
        image = image.clone()
        image[:, top : bottom + 1, left : right + 1] = torch.tensor(FILL, dtype=torch.uint8)[:, None, None]
        equal += torch.equal(result[row], image)
    assert equal >= 118  # see BLENDS: what follows a blend may widen a difference of one level
    assert torch.equal(pixels, before)
    again = torch.cat([apply_strong_views(pixels[part], views[part]) for part in (slice(0, 50), slice(50, 120))])
    assert torch.equal(again, result)


def test_draws_are_uniform_and_per_image():
    count = 20_000
    views = draw_strong_views(count, 32, 32, seeded())
    assert views.ops.shape == views.amounts.shape == (count, 3)
    found = torch.bincount(views.ops.flatten(), minlength=14).double() / (3 * count)
    assert float((found - 1 / 14).abs().max()) < 5 * (1 / 14 / (3 * count)) ** 0.5
    for op, (_, low, high) in enumerate(OPERATIONS.values()):
        drawn = views.amounts[views.ops == op].double()
        assert low <= float(drawn.min()) and float(drawn.max()) <= high
        assert abs(float(drawn.mean()) - (low + high) / 2) < 5 * (high - low) / 12**0.5 / len(drawn) ** 0.5
    assert abs(float(np.corrcoef(views.ops[:, 0], views.ops[:, 1])[0, 1])) < 5 / count**0.5
    first, again, other = (draw_strong_views(50, 32, 32, seeded(seed)) for seed in (3, 3, 4))
    for name in ("ops", "amounts", "box"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert draw_strong_views(5, 32, 32, seeded(), operations=2).ops.shape == (5, 2)


def test_the_rectangle():
    views = draw_strong_views(20_000, 32, 32, seeded(5))
    left, right, top, bottom = views.box.double().unbind(1)
    for near, far in ((left, right), (top, bottom)):
        assert 0 <= int(near.min()) and int(far.max()) == 31 and bool((far >= near).all())
        assert int((far - near).max()) == 15  # v below 16 pixels, both ends counted
    inside = (right < 31) & (bottom < 31)  # neither shortened by the far border: a square
    assert torch.equal((right - left)[inside], (bottom - top)[inside])
    pixels = make_pixels(60)
    filled = fill_boxes(pixels, views.box[:60])
    for row in range(60):
        image = Image.fromarray(pixels[row].permute(1, 2, 0).numpy())
        first, last, upper, lower = views.box[row].tolist()
        ImageDraw.Draw(image).rectangle((first, upper, last, lower), fill=FILL)
        assert torch.equal(filled[row], torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert fill_boxes(make_pixels(1, 1), torch.tensor([[0, 3, 0, 3]]))[0, 0, 0, 0] == 123


def test_the_rectangle_of_given_draws():
    """v = 32 u, centre 32 - 31 t: near edge int(max(0, centre - v / 2)), pixels up to near + floor(v), 31 at most."""
    draw = seeded(7)
    views = draw_strong_views(200, 32, 32, draw)
    draw = seeded(7)
    torch.randint(0, 14, (200, 3), generator=draw)
    torch.rand(200, 3, generator=draw)
    v = 16 * torch.rand(200, 1, generator=draw)[:, 0].double().numpy()
    centre = 32 - 31 * torch.rand(200, 2, generator=draw).double().numpy()
    for axis in (0, 1):
        near = np.floor(np.maximum(0, centre[:, axis] - v / 2)).astype(int)
        far = np.minimum(31, near + np.floor(v).astype(int))
        assert np.array_equal(views.box[:, 2 * axis], near) and np.array_equal(views.box[:, 2 * axis + 1], far)


def test_an_empty_batch_and_images_of_two_rows():
    views = draw_strong_views(0, 32, 32, seeded())
    assert apply_strong_views(make_pixels(4)[:0], views).shape == (0, 3, 32, 32)
    small = make_pixels(64, 3, 2, 2)
    assert apply_strong_views(small, draw_strong_views(64, 2, 2, seeded())).shape == small.shape
    one = StrongViews(*(torch.zeros(1, 1, dtype=torch.int64),) * 2, torch.zeros(1, 1), torch.tensor([[2, 2, 2, 2]]))
    assert int((apply_strong_views(make_pixels(1), one) != make_pixels(1)).any(dim=1).sum()) >= 1
