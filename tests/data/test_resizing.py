"""What a network's own transform makes of a picture, to the pixel."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fspmu.data.decoding import decode, read_picture
from fspmu.errors import InputError
from fspmu.preprocessing import INTERPOLATIONS, RESIZES, Geometry


def picture(height, width, seed=0, mode="RGB"):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["bilinear", "bicubic"]), st.sampled_from([1.0, 0.95, 0.875]), st.sampled_from([32, 65]))
@settings(max_examples=40)
def test_pixels_are_those_of_timms_transform(height, width, interpolation, crop_pct, side):
    timm = pytest.importorskip("timm")
    image = picture(height, width, seed=height * 300 + width)
    transform = timm.data.create_transform((3, side, side), interpolation=interpolation, crop_pct=crop_pct, normalize=False)
    geometry = Geometry((side, side), resize="shortest", shortest=int(side / crop_pct), interpolation=interpolation)
    assert np.array_equal(read_picture(image, geometry), transform(image).numpy())


@given(st.integers(2, 200), st.integers(2, 200), st.integers(5, 40), st.integers(5, 40))
@settings(max_examples=30)
def test_just_covering_is_timms_too(height, width, rows, columns):
    timm = pytest.importorskip("timm")
    image = picture(height, width)
    transform = timm.data.create_transform((3, rows, columns), interpolation="bilinear", crop_pct=1.0, normalize=False)
    assert np.array_equal(read_picture(image, Geometry((rows, columns), resize="shortest")), transform(image).numpy())


def test_a_middle_larger_than_the_picture_is_black_around():
    transforms = pytest.importorskip("torchvision.transforms")
    image, geometry = picture(50, 71), Geometry((33, 40), resize="shortest", shortest=21)
    whole = transforms.Compose([transforms.Resize(21), transforms.CenterCrop((33, 40)), transforms.PILToTensor()])
    found = read_picture(image, geometry)
    assert np.array_equal(found, whole(image).numpy()) and not found[:, 0].any()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_squashed_with_every_filter_and_channel_count(interpolation, channels, mode):
    image = picture(20, 31, mode="RGBA")
    expected = np.asarray(image.convert(mode).resize((7, 9), Image.Resampling[interpolation.upper()])).reshape(9, 7, channels).transpose(2, 0, 1)
    assert np.array_equal(read_picture(image, Geometry((9, 7), channels, interpolation=interpolation)), expected)


def test_what_can_be_seen_through_shows_its_colour():
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert read_picture(image, Geometry((4, 4)))[:, 0, 0].tolist() == [10, 20, 30]
    assert read_picture(image, Geometry((4, 4), 4))[:, 0, 0].tolist() == [10, 20, 30, 0]


def test_arrays_of_other_channels_stay_or_are_refused():
    bands = np.random.default_rng(0).integers(0, 256, (6, 7, 12), np.uint8)
    assert np.array_equal(read_picture(bands, Geometry((6, 7), 12)), bands.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="12 channels"):
        read_picture(bands, Geometry((3, 3), 12))


def test_a_size_is_a_geometry():
    buffer = io.BytesIO()
    picture(12, 18).save(buffer, "PNG")
    plain, spelt = (decode(lambda row: buffer.getvalue(), ["a", "b"], wanted, skip_unreadable=False) for wanted in ((6, 6), Geometry((6, 6))))
    assert torch.equal(plain.pixels, spelt.pixels) and plain.notes == spelt.notes == ("2 of 2 images resized to 6 x 6 pixels",)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (Geometry((0, 4)), "image size is"),
        (Geometry((4, 4), 0), "at least 1 channel"),
        (Geometry((4, 4), resize="crop"), "unknown resize 'crop'"),
        (Geometry((4, 4), interpolation="cubic"), "did you mean 'bicubic'"),
        (Geometry((4, 4), shortest=-1), "no negative side"),
    ],
)
def test_geometries_that_are_none(geometry, message):
    assert RESIZES.keys() == {"squash", "shortest"}
    with pytest.raises(InputError, match=message):
        decode(lambda row: b"", ["a"], geometry, skip_unreadable=False)
