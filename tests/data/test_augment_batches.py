"""Random views against one image at a time in numpy, and the one path from a set of images to batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.data.augment import Views, apply_views, draw_views, normalise
from fspmu.data.batches import Batch, Batches, join
from fspmu.data.images import Images
from fspmu.preprocessing import Preprocessing

PLAIN = Preprocessing()
CIFAR = Preprocessing((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "crop-flip", 4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_images(count, preprocessing=PLAIN, side=4):
    pixels = torch.randint(1, 256, (count, 3, side, side), dtype=torch.uint8, generator=seeded(1))
    return Images(pixels, torch.arange(count) % 3, ("a", "b", "c"), [str(row) for row in range(count)], preprocessing=preprocessing)


@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=60)
def test_views_equal_one_image_at_a_time(count, channels, height, width, padding, mirror, seed):
    pixels = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=seeded(seed))
    views = draw_views(count, Preprocessing(augment="crop-flip" if mirror else "crop", padding=padding), seeded(seed))
    result = apply_views(pixels, views, padding)
    assert result.dtype == torch.uint8 and result.shape == pixels.shape
    for row in range(count):
        padded = np.pad(pixels[row].numpy(), ((0, 0), (padding, padding), (padding, padding)))
        top, left = int(views.top[row]), int(views.left[row])
        crop = padded[:, top : top + height, left : left + width]
        crop = crop[:, :, ::-1] if bool(views.flip[row]) else crop
        assert np.array_equal(result[row].numpy(), crop)
    assert mirror or not views.flip.any()


def test_the_border_is_black_and_normalised_like_any_black_pixel():
    images = make_images(1, CIFAR)
    views = Views(torch.tensor([0]), torch.tensor([0]), torch.tensor([False]))  # the whole 4x4 crop lies in the padding
    seen = normalise(apply_views(images.pixels, views, 4), CIFAR)
    for channel in range(3):
        assert float(seen[0, channel, 0, 0]) == pytest.approx(-CIFAR.mean[channel] / CIFAR.std[channel], rel=1e-6)
    white = Images(torch.full((40, 3, 4, 4), 255, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64), ("a",), [str(i) for i in range(40)], None, CIFAR)
    levels = torch.cat([batch.images for batch in Batches(white, torch.arange(40), 40, seeded())]).permute(1, 0, 2, 3).flatten(1)
    for channel in range(3):
        expected = [-CIFAR.mean[channel] / CIFAR.std[channel], (1 - CIFAR.mean[channel]) / CIFAR.std[channel]]
        np.testing.assert_allclose(np.unique(levels[channel].numpy()), expected, rtol=1e-5)


def test_draws_are_per_image_and_uniform():
    count, offsets = 18_000, 9
    views = draw_views(count, CIFAR, seeded())
    for part in (views.top, views.left):
        found = np.bincount(part.numpy(), minlength=offsets)
        assert len(found) == offsets
        assert np.abs(found - count / offsets).max() < 5 * np.sqrt(count / offsets)
    assert abs(float(views.flip.float().mean()) - 0.5) < 5 * 0.5 / np.sqrt(count)
    together = np.corrcoef([views.top.numpy(), views.left.numpy(), views.flip.numpy()])
    assert np.abs(together - np.eye(3)).max() < 5 / np.sqrt(count)


def test_the_generator_alone_decides():
    first, again, other = (draw_views(50, CIFAR, seeded(seed)) for seed in (3, 3, 4))
    for name in ("top", "left", "flip"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.top, other.top)
    assert draw_views(50, Preprocessing(augment="none", padding=4), seeded()) is None


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=30)
def test_normalise(count, channels, side, seed):
    draw = np.random.default_rng(seed)
    mean, std = draw.uniform(0, 1, channels), draw.uniform(0.05, 1, channels)
    pixels = torch.tensor(draw.integers(0, 256, (count, channels, side, side)), dtype=torch.uint8)
    before = pixels.clone()
    result = normalise(pixels, Preprocessing(tuple(mean), tuple(std)))
    expected = (pixels.numpy() / 255 - mean[:, None, None]) / std[:, None, None]
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(pixels, before)


@given(st.integers(0, 40), st.integers(1, 12), st.booleans())
@settings(max_examples=80)
def test_every_sample_once(count, size, shuffled):
    images = make_images(50)
    indices = torch.arange(count) + 7
    batches = Batches(images, indices, size, seeded() if shuffled else None)
    seen = list(batches)
    index = torch.cat([batch.index for batch in seen]) if seen else torch.empty(0, dtype=torch.int64)
    assert sorted(index.tolist()) == indices.tolist()
    assert len(seen) == len(batches) and batches.samples == count
    lengths = [len(batch) for batch in seen]
    if count > 1 and (count - 1) % size == 0:  # a lone sample is left over
        assert lengths == [size] * ((count - 1) // size - 1) + [size + 1]
    else:
        assert lengths == [size] * (count // size) + [count % size] * (count % size > 0)
    for batch in seen:
        assert torch.equal(batch.given_labels, images.given_labels[batch.index])
        assert torch.equal(batch.images, normalise(images.pixels[batch.index], images.preprocessing))
    if not shuffled:
        assert index.tolist() == indices.tolist()


def test_without_generator_images_are_plain_and_in_dataset_order():
    images = make_images(20, CIFAR)
    (batch,) = Batches(images, torch.arange(20), 64)
    assert torch.equal(batch.images, normalise(images.pixels, CIFAR))
    assert torch.equal(batch.index, torch.arange(20))


def test_with_generator_samples_are_shuffled_and_seen_through_their_own_views():
    images = make_images(60, CIFAR)
    first, again = (list(Batches(images, torch.arange(60), 25, seeded(5))) for _ in range(2))
    other = list(Batches(images, torch.arange(60), 25, seeded(6)))
    for left, right in zip(first, again, strict=True):
        assert torch.equal(left.images, right.images) and torch.equal(left.index, right.index)
    assert not torch.equal(first[0].index, other[0].index)
    assert not torch.equal(first[0].index, torch.arange(25))
    plain = normalise(images.pixels, CIFAR)
    changed = torch.cat([(batch.images != plain[batch.index]).flatten(1).any(dim=1) for batch in first])
    assert changed.float().mean() > 0.9


def test_a_pass_in_order_can_still_have_views():
    images = make_images(30, CIFAR)
    batches = list(Batches(images, torch.arange(30), 8, seeded(), shuffle=False))
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(30))
    assert not torch.equal(torch.cat([batch.images for batch in batches]), normalise(images.pixels, CIFAR))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_put_together_are_the_batch(joint, count):
    draw = seeded()
    batch = Batch(torch.randn(11, 3, 2, 2, generator=draw), torch.arange(11), torch.arange(11) + 100)
    if joint:
        batch = join(batch.rows(slice(0, 7)), batch.rows(slice(7, 11)), 0.9, -0.1)
    parts = batch.parts(count)
    assert len(parts) == count
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for name in ("images", "given_labels", "index"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    if joint:
        torch.testing.assert_close(torch.cat([part.weight for part in parts]), torch.tensor([0.9 * 11 / 7] * 7 + [-0.1 * 11 / 4] * 4))
    else:
        assert all(part.weight is None for part in parts)


def test_the_mean_over_a_joint_batch_is_the_weighted_sum_of_means():
    retain, forget = (Batch(torch.full((count, 1, 1, 1), float(count)), torch.full((count,), count), torch.arange(count)) for count in (3, 2))
    joint = join(retain, forget, 0.75, -0.25)
    values = torch.tensor([1.0, 2.0, 6.0, 4.0, 8.0])
    assert float((joint.weight * values).mean()) == pytest.approx(0.75 * 3 - 0.25 * 6)
    assert joint.given_labels.tolist() == [3, 3, 3, 2, 2] and joint.index.tolist() == [0, 1, 2, 0, 1]
    assert joint.images.flatten().tolist() == [3, 3, 3, 2, 2]
