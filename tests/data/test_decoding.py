"""Pictures to pixels: upright whatever the format, and in the memory there is."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from fspmu.data import storage
from fspmu.data.arrays import load_images
from fspmu.data.decoding import check_memory, common_size, decode, read_image, read_picture
from fspmu.errors import InputError
from fspmu.preprocessing import Geometry

GREY = 77


@pytest.mark.parametrize("options", [{"format": "TIFF"}, {"format": "TIFF", "compression": "tiff_lzw"}, {"format": "JPEG"}, {"format": "PNG"}], ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_once(orientation, options):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)).save(buffer, exif=exif, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    size = upright.shape[:2]
    assert size == ((9, 6) if orientation >= 5 else (6, 9))
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    for picture in (buffer.getvalue(), opened, opened):
        assert common_size(lambda row, picture=picture: picture, 1) == (size, "")
        assert np.array_equal(read_picture(picture, Geometry(size)).transpose(1, 2, 0), upright)


def test_a_deep_grey_file_is_no_white_picture(tmp_path):
    Image.fromarray(np.full((8, 8), GREY * 257, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", 512).getpixel((3, 3)) == (GREY,) * 3


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    for name, content in (("memory.max", "400000\n"), ("memory.current", "300000\n"), ("memory.stat", "inactive_file 0\n")):
        (tmp_path / name).write_text(content)
    check_memory(4, Geometry((100, 100)))
    monkeypatch.setattr(storage, "_CGROUP", tmp_path)
    check_memory(3, Geometry((100, 100)))
    with pytest.raises(InputError, match=r"^4 images of 100 x 100 pixels need 0\.000112 GiB .* 9\.31e-05 GiB are free; give fewer images, or where .* --limit"):
        check_memory(4, Geometry((100, 100)))


@pytest.mark.parametrize("unreadable", [(0,), (3, 4), (7,), (0, 2, 7)])
def test_what_is_left_of_a_set_takes_no_second_memory(tmp_path, unreadable, monkeypatch):
    made, empty = [], np.empty
    monkeypatch.setattr(np, "empty", lambda *given, **named: made.append(empty(*given, **named)) or made[-1])
    files = [tmp_path / "ab"[row % 2] / f"{row}.png" for row in range(8)]
    for row, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (5, 4), row).save(file)
        if row in unreadable:
            file.write_bytes(b"")
    kept = [row for row in range(8) if row not in unreadable]
    decoded = decode(files.__getitem__, [str(file) for file in files], (4, 5), skip_unreadable=True)
    assert decoded.kept.tolist() == decoded.pixels[:, 0, 0, 0].tolist() == kept
    loaded = load_images(tmp_path, storage="memory").train.pixels
    assert loaded[:, 0, 3, 3].tolist() == sorted(kept, key=lambda row: (row % 2, row))
    for pixels in (decoded.pixels, loaded):
        assert pixels.shape == (len(kept), 3, 4, 5) and pixels.is_contiguous()
        assert any(array.shape == (8, 3, 4, 5) and np.shares_memory(array, pixels.numpy()) for array in made)
