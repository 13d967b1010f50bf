"""A folder as people have them: odd files that must be read, files that are no image, and names and links of every kind."""

import io
import os
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from fspmu.data.arrays import load_images
from fspmu.data.stream import StreamedPixels
from fspmu.errors import InputError
from fspmu.preprocessing import Geometry

SIDE = 16
LEVEL = 80  # of the grey that odd files show, whatever their mode


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(mode="RGB", level=LEVEL, size=SIDE):
    return Image.new("RGB", (size, size), (level,) * 3).convert(mode)


def noise(size=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))


def turned():
    """Lying on its side: upright it is white above black."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:, : SIDE // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=95)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(*chunks, size=(SIDE, SIDE)):
    """A PNG whose header says `size` (width, height), with more chunks behind the header."""
    header, rest = encoded(grey())[:8], encoded(grey())[33:]
    return header + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)) + b"".join(chunks) + rest


def palette(transparent=False):
    image = grey().quantize(4)
    return encoded(image, transparency=bytes([0, 128, 255, 255])) if transparent else encoded(image)


def animated():
    frames = [grey(), grey(level=240)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def pages():
    return encoded(grey(), "TIFF", save_all=True, append_images=[grey(level=240, size=9)])


def with_profile():
    return encoded(grey(), "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


def bad_exif():
    return encoded(grey(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40)


def text_chunk():
    text = PngImagePlugin.PngInfo()
    text.add_text("about", "x" * 100_000, zip=True)
    return encoded(grey(), pnginfo=text)


def big_tiff_tag():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "y" * 50_000
    return encoded(grey(), "TIFF", tiffinfo=tags)


READABLE = {
    "cmyk.jpg": encoded(grey("CMYK"), "JPEG"),
    "deep.png": encoded(Image.fromarray(np.full((SIDE, SIDE), LEVEL * 257, np.uint16))),
    "palette.png": palette(),
    "clear palette.png": palette(transparent=True),
    "moving.gif": animated(),
    "alpha.png": encoded(grey("RGBA")),
    "greyalpha.png": encoded(grey("LA")),
    "grey.jpg": encoded(grey("L"), "JPEG"),
    "pages.tif": pages(),
    "badexif.jpg": bad_exif(),
    "text.png": text_chunk(),
    "tag.tiff": big_tiff_tag(),
    "profile.jpg": with_profile(),
    "tiny.png": encoded(grey(size=1)),
    "oblong.png": encoded(grey().resize((3, 200))),
    "lossless.webp": encoded(grey(), "WEBP", lossless=True),
    "png inside.jpg": encoded(grey()),
    "upper.PNG": encoded(grey()),
    "-rf.png": encoded(grey()),
    "new\nline.png": encoded(grey()),
    "quo\"te's.png": encoded(grey()),
    "größe 猫.png": encoded(grey()),
    "x" * 250 + ".png": encoded(grey()),
    "%s{0}$HOME;.png": encoded(grey()),
}
UNREADABLE = {
    "cut.jpg": (encoded(noise(), "JPEG")[:1500], "truncated"),
    "cut.png": (encoded(noise())[:2000], "truncated"),
    "empty.png": (b"", "empty"),
    "words.jpg": (b"not an image at all\n", "no image of a known format"),
    "page.png": (b"<!DOCTYPE html><html><body>404</body></html>", "no image of a known format"),
    "bomb.png": (png_with(size=(50_000, 50_000)), "too many"),
    "large.png": (png_with(size=(10_000, 9_000)), "10000 x 9000 pixels are too many"),
    "eps.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no image of a known format"),
    "pdf.jpg": (b"%PDF-1.4\n1 0 obj\n<< >>\nendobj\n", "no image of a known format"),
    "svg.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no image of a known format"),
    "psd.jpg": (b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x10\0\0\0\x10\0\x08\0\3" + bytes(40), "no image of a known format"),
    "array.png": (b"\x93NUMPY\1\0v\0{'descr': '|u1'}" + bytes(64), "no image of a known format"),
    "pickle.jpg": (pickle.dumps({"a": 1}), "no image of a known format"),
    "float.tif": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
    "textbomb.png": (png_with(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(30_000_000)))), ""),
}
ODD = {"pipe.png": "no regular file", "dangling.png": "leads to no file", "circle.png": "leads to no file", "folder.png": "a folder"}


@pytest.fixture
def messy(tmp_path, monkeypatch):
    """Twenty good images in two classes, and among the cats everything else."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    root = tmp_path / "pets"
    for place in (root / "cat", root / "dog", tmp_path / "home", tmp_path / "tmp", tmp_path / "elsewhere"):
        place.mkdir(parents=True)
    for number in range(10):
        for label, level in (("cat", number), ("dog", 200 + number)):
            (root / label / f"good{number}.png").write_bytes(encoded(grey(level=level)))
    for name, content in READABLE.items():
        (root / "cat" / name).write_bytes(content)
    (root / "cat/turned.jpg").write_bytes(turned())
    (root / "cat/bits.png").write_bytes(encoded(Image.new("1", (SIDE, SIDE), 1)))
    for name, (content, _) in UNREADABLE.items():
        (root / "cat" / name).write_bytes(content)
    (tmp_path / "elsewhere/linked.png").write_bytes(encoded(grey()))
    (root / "cat/link.png").symlink_to(tmp_path / "elsewhere/linked.png")
    (root / "cat/dangling.png").symlink_to(root / "nowhere.png")
    (root / "cat/circle.png").symlink_to(root / "cat/circle.png")
    (root / "cat/loop").symlink_to(root, target_is_directory=True)
    (root / "all").symlink_to(root, target_is_directory=True)
    (root / "cat/folder.png").mkdir()
    os.mkfifo(root / "cat/pipe.png")
    return root


def listing(place):
    return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in place.rglob("*"))


def shown(loaded, name):
    return loaded.train.pixels[loaded.train.ids.index(f"cat/{name}")]


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_a_folder_as_people_have_them(messy, tmp_path, storage):
    before = listing(tmp_path)
    loaded = load_images(messy, geometry=Geometry((SIDE, SIDE)), storage=storage)
    images = loaded.train
    assert isinstance(images.pixels, StreamedPixels) == (storage == "disk")
    expected = {f"cat/{name}" for name in (*READABLE, "turned.jpg", "bits.png", "link.png")} | {
        f"{label}/good{i}.png" for label in ("cat", "dog") for i in range(10)
    }
    assert set(images.ids) == expected and images.class_names == ("cat", "dog")
    for name in READABLE:
        assert (shown(loaded, name).int() - LEVEL).abs().max() <= 5, name
    assert (shown(loaded, "link.png") == LEVEL).all() and (shown(loaded, "bits.png") == 255).all()
    upright = shown(loaded, "turned.jpg")
    assert upright[:, : SIDE // 2 - 1].min() > 240 and upright[:, SIDE // 2 + 1 :].max() < 15

    reasons = dict(loaded.unreadable)
    assert set(reasons) == {f"cat/{name}" for name in (*UNREADABLE, *ODD)}
    for name, (_, reason) in UNREADABLE.items():
        assert reason in reasons[f"cat/{name}"] and reasons[f"cat/{name}"], name
    for name, reason in ODD.items():
        assert reason in reasons[f"cat/{name}"], name
    assert any(f"left out {len(reasons)} images that cannot be read" in note for note in loaded.notes)
    assert listing(tmp_path) == before


def test_memory_and_disk_say_the_same(messy):
    kept, streamed = (load_images(messy, geometry=Geometry((SIDE, SIDE)), storage=storage) for storage in ("memory", "disk"))
    assert kept.unreadable == streamed.unreadable and kept.train.ids == streamed.train.ids
    assert torch.equal(kept.train.pixels, streamed.train.pixels[:]) and torch.equal(kept.train_hashes, streamed.train_hashes)
    assert kept.train.preprocessing == streamed.train.preprocessing and kept.train.fingerprint() == streamed.train.fingerprint()


def test_without_leave_to_skip_they_are_named(messy):
    with pytest.raises(InputError, match=r"19 images cannot be read: .*circle\.png \(a link that leads to no file\).*; and 14 more; mend or remove them"):
        load_images(messy, geometry=Geometry((SIDE, SIDE)), skip_unreadable=False)


def test_a_name_that_is_no_utf8(messy):
    try:
        (messy / "cat" / os.fsdecode(b"\xff.png")).write_bytes(encoded(grey()))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert dict(load_images(messy).unreadable)["cat/\\udcff.png"] == "the file name is not UTF-8"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(messy):
    (messy / "cat/secret.png").write_bytes(encoded(grey()))
    (messy / "cat/secret.png").chmod(0)
    (messy / "cat/closed").mkdir(mode=0)
    try:
        reasons = dict(load_images(messy).unreadable)
    finally:
        (messy / "cat/closed").chmod(0o700)
    assert "permission denied" in reasons["cat/secret.png"] and "permission denied" in reasons["cat/closed"]


def test_a_set_of_nothing_readable(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2 of 2 images cannot be read: a/x.png \(no image of a known format\)"):
        load_images(tmp_path, storage="disk")


def test_a_class_of_which_nothing_is_left_is_noted(tmp_path):
    for label, content in (("a", encoded(grey())), ("b", b"no image")):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.png").write_bytes(content)
    loaded = load_images(tmp_path)
    assert loaded.train.class_names == ("a", "b") and loaded.train.class_counts == [1, 0] and "no image of the class b" in loaded.notes


def test_an_oblong_image_cannot_fill_the_memory(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "fine.png").write_bytes(encoded(grey()))
    (tmp_path / "a/line.png").write_bytes(encoded(Image.new("RGB", (1, 9000))))
    loaded = load_images(tmp_path, geometry=Geometry((224, 224), resize="shortest", shortest=256))
    assert len(loaded.train) == 2 and "too oblong" in dict(loaded.unreadable)["a/line.png"]


def test_other_warnings_than_pillows_are_heard(messy):
    before = list(warnings.filters)
    load_images(messy, geometry=Geometry((SIDE, SIDE)))
    assert warnings.filters == before
