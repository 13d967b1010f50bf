"""Data sets from every kind of place, on small generated images; damaged and ambiguous ones are refused in words."""

import csv
import io
import os
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fspmu.data import decoding
from fspmu.data.hub import list_splits
from fspmu.data.labelled import list_labelled
from fspmu.data.sources import DataOptions, channel_statistics, check_outside, hold_out, load_source, load_unlabelled
from fspmu.errors import InputError
from fspmu.preprocessing import Preprocessing


def picture(value=0, size=(6, 8), **options):
    """One colour, `size` is (height, width)."""
    image = Image.fromarray(np.full((*size, 3), value, np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


def write(path, content=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(**options) if content is None else content)


@pytest.fixture
def folder(tmp_path):
    """Five cats and five dogs, all of one size, without a test part."""
    for number in range(5):
        write(tmp_path / "pets/cat" / f"{number}.png", value=number)
        write(tmp_path / "pets/dog" / f"{number}.png", value=100 + number)
    return tmp_path / "pets"


def test_digits():
    source = load_source("digits", DataOptions())
    assert source.name == "digits" and source.train.class_names == tuple("0123456789")
    assert len(source.train) + len(source.test) == 1797 and source.train_total == len(source.train)
    assert source.train.pixels.shape[1:] == (3, 8, 8) and source.train.pixels.max() == 255
    assert source.train.paths is None and not set(source.train.ids) & set(source.test.ids)
    expected = source.train.pixels.double().div(255)
    assert source.train.preprocessing.mean == pytest.approx(expected.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert source.train.preprocessing.std == pytest.approx(expected.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    assert (source.train.preprocessing.augment, source.train.preprocessing.padding) == ("crop", 1)
    assert source.test.preprocessing == source.train.preprocessing
    assert any("held out" in note for note in source.notes)
    again = load_source("digits", DataOptions(limit=100, test_limit=20))
    assert (len(again.train), len(again.test), again.train_total) == (100, 20, source.train_total)
    assert torch.equal(again.train.pixels, source.train.pixels[:100]) and again.train.ids == source.train.ids[:100]
    assert len(set(again.test.given_labels.tolist())) > 5


def test_digits_match_their_ids():
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    for images in (part := load_source("digits", DataOptions())).train, part.test:
        rows = [int(name.split("/")[1]) for name in images.ids]
        assert images.given_labels.tolist() == labels[rows].tolist()
        assert np.abs(images.pixels[:, 0].flatten(1).double().numpy() * (16 / 255) - values[rows]).max() < 0.05


def test_folder_per_class(folder):
    write(folder / "cat/deep/er.JPG", format="JPEG")
    (folder / "cat/.hidden.png").write_bytes(b"")
    (folder / ".git").mkdir()
    (folder / "notes.txt").write_text("about")
    source = load_source(str(folder), DataOptions(test_share=0))
    assert source.test is None and source.name == "pets" and source.train.class_names == ("cat", "dog")
    assert list(source.train.ids) == [*(f"cat/{i}.png" for i in range(5)), "cat/deep/er.JPG", *(f"dog/{i}.png" for i in range(5))]
    assert source.train.paths[0] == str(folder / "cat/0.png") and os.path.isabs(source.train.paths[0])
    assert source.train.given_labels.tolist() == [0] * 6 + [1] * 5
    assert source.train.pixels.shape == (11, 3, 6, 8)
    assert source.train.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 0, 100, 101, 102, 103, 104]
    assert source.train.preprocessing.augment == "crop-flip"
    assert any("notes.txt" in note for note in source.notes)


def test_held_out_share(folder):
    source = load_source(str(folder), DataOptions(test_share=0.4))
    assert source.train.class_counts == [3, 3] and source.test.class_counts == [2, 2] and source.train_total == 6
    again = load_source(str(folder), DataOptions(test_share=0.4))
    assert source.test.ids == again.test.ids


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 0.99))
def test_hold_out_is_stratified_and_keeps_every_class(labels, share):
    labels = torch.tensor(labels)
    train, test = hold_out(labels, share)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    assert set(labels[train].tolist()) == set(labels.tolist())
    for label in labels.unique().tolist():
        members, held = int((labels == label).sum()), int((labels[test] == label).sum())
        assert abs(held - share * members) <= 1
    assert torch.equal(hold_out(labels, share)[1], test)


@pytest.mark.parametrize("test_name", ["test", "val", "valid", "validation"])
def test_folder_with_test_part(tmp_path, test_name):
    for name in ("a", "b", "c"):
        write(tmp_path / "train" / name / "1.png", value=10)
    write(tmp_path / test_name / "c" / "1.png", size=(12, 16))
    source = load_source(str(tmp_path), DataOptions())
    assert source.train.class_names == source.test.class_names == ("a", "b", "c")
    assert source.test.given_labels.tolist() == [2] and source.test.ids == [f"{test_name}/c/1.png"]
    assert source.test.pixels.shape == (1, 3, 6, 8)
    assert any("test part: 1 of 1 images resized to 6 x 8" in note for note in source.notes)


def test_a_class_named_train_is_a_class(tmp_path):
    for name in ("car", "train"):
        write(tmp_path / name / "1.png")
    assert load_source(str(tmp_path), DataOptions()).train.class_names == ("car", "train")


def test_test_part_with_other_classes(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/x"):
        write(tmp_path / name / "1.png")
    with pytest.raises(InputError, match=r"test part \(a, x\) are not those of the training part \(a, b\)"):
        load_source(str(tmp_path), DataOptions())


def test_unused_folders_are_named(tmp_path):
    for name in ("train/a", "train/b", "test/a", "val/a"):
        write(tmp_path / name / "1.png")
    assert any("passed over: val" in note for note in load_source(str(tmp_path), DataOptions()).notes)


def write_table(folder, rows, header=("file_name", "label")):
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def test_table(folder):
    write_table(folder, [("dog/1.png", "zebra"), ("cat/0.png", "ape"), ("dog/2.png", "ape")])
    source = load_source(str(folder), DataOptions(test_share=0))
    assert source.train.class_names == ("ape", "zebra") and source.train.given_labels.tolist() == [1, 0, 0]
    assert list(source.train.ids) == ["dog/1.png", "cat/0.png", "dog/2.png"]
    assert source.train.pixels[:, 0, 0, 0].tolist() == [101, 0, 102]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "cat/../../secret.png", "link.png"])
def test_table_cannot_leave_its_folder(folder, name):
    write(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    write_table(folder, [("cat/0.png", "a"), (name, "b")])
    with pytest.raises(InputError, match=r"line 3: .* leads out of"):
        load_source(str(folder), DataOptions())


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("cat/0.png", "a")], ("file", "label"), "needs the columns file_name and label, and has file, label"),
        ([], ("file_name", "label"), "holds no row"),
        ([("cat/0.png", "")], ("file_name", "label"), "line 2: a row needs"),
        ([("cat/0.png",)], ("file_name", "label"), "line 2: a row needs"),
        ([("cat/0.png", "a"), ("cat/0.png", "b")], ("file_name", "label"), "more than once"),
        ([("cat/0.png", "a"), ("gone.png", "b")], ("file_name", "label"), r"gone.png \(no such file\)"),
        ([("cat/0.png", "a"), ("x\0.png", "b")], ("file_name", "label"), "no file name|cannot be read"),
    ],
)
def test_bad_tables(folder, rows, header, message):
    write_table(folder, rows, header)
    with pytest.raises(InputError, match=message):
        load_source(str(folder), DataOptions())


def test_table_in_another_encoding(folder):
    (folder / "labels.csv").write_bytes(b"file_name,label\ncat/0.png,\xff\xfe\n")
    with pytest.raises(InputError, match="no CSV file in UTF-8"):
        load_source(str(folder), DataOptions())


def test_one_size_for_images_that_differ(folder):
    for number in range(3):
        write(folder / "cat" / f"large{number}.png", size=(20, 10))
    source = load_source(str(folder), DataOptions(test_share=0))
    assert source.train.pixels.shape == (13, 3, 6, 6)
    assert any("13 of 13 images resized to 6 x 6" in note and "6 to 10" in note for note in source.notes)
    assert load_source(str(folder), DataOptions(size=4)).train.pixels.shape[2:] == (4, 4)


def test_size_is_capped(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}/1.png", size=(300, 301 + number))
    source = load_source(str(tmp_path), DataOptions(test_share=0))
    assert source.train.pixels.shape[2:] == (224, 224) and "capped at 224" in " ".join(source.notes)


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, :4] = 255  # white on the left; turned clockwise, on top
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    pixels, _ = load_unlabelled(tmp_path, (8, 6), False)
    assert pixels[0, 0, :4].min() == 255 and pixels[0, 0, 4:].max() == 0
    write(tmp_path / "a/1.png", size=(8, 6))
    write(tmp_path / "b/1.png", (tmp_path / "turned.png").read_bytes())
    (tmp_path / "turned.png").unlink()
    assert load_source(str(tmp_path), DataOptions()).train.pixels.shape == (2, 3, 8, 6)


@pytest.mark.parametrize(("mode", "expected"), [("L", 77), ("P", 77), ("RGBA", 77), ("LA", 77), ("CMYK", 77), ("1", 255), ("I;16", 77)])
def test_modes_become_rgb(tmp_path, mode, expected):
    grey = Image.new("RGB", (4, 4), (77, 77, 77))
    special = {"I;16": Image.fromarray(np.full((4, 4), 77 * 257, np.uint16)), "1": Image.new("1", (4, 4), 1), "P": grey.quantize(2)}
    image = special[mode] if mode in special else grey.convert(mode)
    image.save(tmp_path / ("image.tif" if mode == "CMYK" else "image.png"))
    pixels, _ = load_unlabelled(tmp_path, (4, 4), False)
    assert (pixels.int() - expected).abs().max() <= 4


def damaged_files():
    whole = picture(size=(64, 64), format="JPEG")
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(noise, format="PNG")
    return {
        "cut.jpg": whole[: len(whole) // 2],
        "cut.png": noise.getvalue()[:2000],
        "text.png": b"no image",
        "empty.png": b"",
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }


def test_unreadable_images_are_named(folder):
    for name, content in damaged_files().items():
        write(folder / "cat" / name, content)
    (folder / "cat" / "pipe.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(
        InputError, match="5 of 15 images cannot be read.*cat/cut.jpg.*cat/cut.png.*cat/empty.png.*cat/script.png.*cat/text.png.*--skip-unreadable"
    ):
        load_source(str(folder), DataOptions(test_share=0))
    source = load_source(str(folder), DataOptions(test_share=0, skip_unreadable=True))
    assert source.train.class_counts == [5, 5] and source.train_total == 15
    assert source.rows.tolist() == [0, 1, 2, 3, 4, *range(10, 15)]
    assert all(name in " ".join(source.notes) for name in damaged_files())
    write(folder / "cat" / "more.png", b"")
    with pytest.raises(InputError, match="and 1 more"):
        load_source(str(folder), DataOptions(test_share=0))


def test_decompression_bomb(folder, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    write(folder / "cat/bomb.png", size=(11, 11))
    with pytest.raises(InputError, match=r"cat/bomb.png \(11 x 11 pixels are too many\)"):
        load_source(str(folder), DataOptions(test_share=0))
    monkeypatch.undo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(InputError, match=r"cat/bomb.png \(too many pixels\)"):
        load_source(str(folder), DataOptions(test_share=0))


def test_images_beyond_memory(folder, monkeypatch):
    monkeypatch.setattr(decoding, "available_memory", lambda: 10)
    with pytest.raises(
        InputError, match="8 images of 6 x 8 pixels need .* GiB are free; give fewer images, or where the command has them --limit or a smaller --size"
    ):
        load_source(str(folder), DataOptions())


def test_a_class_whose_images_are_all_damaged(folder):
    for number in range(5):
        write(folder / "cat" / f"{number}.png", b"no image")
    with pytest.raises(InputError, match="no readable image for the class cat"):
        load_source(str(folder), DataOptions(test_share=0, skip_unreadable=True))


def test_threads_read_the_same(folder, monkeypatch):
    one = load_source(str(folder), DataOptions(test_share=0)).train.pixels
    monkeypatch.setattr(decoding, "SMALL_SIDE", 0)
    assert torch.equal(one, load_source(str(folder), DataOptions(test_share=0)).train.pixels)


def test_limit_decodes_no_more_than_it_needs(folder):
    write(folder / "dog/9.png", b"no image")
    assert len(load_source(str(folder), DataOptions(test_share=0, limit=7)).train) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "--limit is 0"),
        ({"test_limit": -1}, "--test-limit is -1"),
        ({"size": 0}, "--size is 0"),
        ({"test_share": 1.0}, "--test-share is 1.0"),
        ({"test_share": -0.1}, "--test-share is -0.1"),
        ({"test_share": float("nan")}, "--test-share is nan"),
        ({"limit": 2, "test_share": 0}, "first 2 training images have none of the class dog; raise --limit to at least 6"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(InputError, match=message):
        load_source(str(folder), DataOptions(**options))


def test_bad_folders(folder, tmp_path):
    (folder / "ant").mkdir()
    with pytest.raises(InputError, match="for the class ant: remove the folder"):
        load_source(str(folder), DataOptions())
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match="holds no folder with images"):
        load_source(str(tmp_path / "void"), DataOptions())
    write(tmp_path / "single/only/1.png")
    with pytest.raises(InputError, match=r"has 1 class \(only\)"):
        load_source(str(tmp_path / "single"), DataOptions())
    write(tmp_path / "flat/1.png")
    with pytest.raises(InputError, match="holds no folder with images"):
        load_source(str(tmp_path / "flat"), DataOptions())
    with pytest.raises(InputError, match="is a file"):
        load_source(str(tmp_path / "flat/1.png"), DataOptions())
    write(tmp_path / "hub/data/train-0.parquet", b"")
    with pytest.raises(InputError, match="give hf:"):
        load_source(str(tmp_path / "hub"), DataOptions())


def test_unknown_name():
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        load_source("cifar-10", DataOptions())


def test_names_that_are_not_utf8(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "1.png")
    try:
        write(tmp_path / "a" / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InputError, match="not UTF-8"):
        load_source(str(tmp_path), DataOptions())


def hub_data(count=6, features=None, **columns):
    import datasets

    rows = {"image": [{"bytes": picture(value), "path": None} for value in range(count)], "label": [value % 2 for value in range(count)], **columns}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"]), **(features or {})}
    rows = {name: values for name, values in rows.items() if values is not None}
    kinds = {name: kinds[name] for name in rows if kinds.get(name) is not None}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds) if len(kinds) == len(rows) else None)


def put_on_hub(monkeypatch, **splits):
    """Let `load_dataset` return these splits for every name."""
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: datasets.DatasetDict(splits))


def test_hub_data_set(monkeypatch):
    put_on_hub(monkeypatch, train=hub_data(), validation=hub_data(3))
    source = load_source("hf:some/set", DataOptions(test_limit=2))
    assert source.name == "hf:some/set" and source.train.class_names == ("no", "yes")
    assert source.train.ids == [f"train/{row}" for row in range(6)] and source.train.paths is None
    assert source.test.ids == ["test/0", "test/1"]
    assert source.train.given_labels.tolist() == [0, 1] * 3
    assert source.train.pixels[:, 0, 0, 0].tolist() == list(range(6))


def test_hub_labels_as_strings_and_numbers(monkeypatch):
    import datasets

    put_on_hub(monkeypatch, train=hub_data(4, {"label": datasets.Value("int64")}, label=[10, 9, 10, 9]))
    assert load_source("hf:x", DataOptions()).train.class_names == ("9", "10")
    signs = hub_data(4, {"label": datasets.Value("int64")}, label=[-1, 1, -1, 1])
    put_on_hub(monkeypatch, train=signs, test=signs)
    assert load_source("hf:x", DataOptions()).test.given_labels.tolist() == [0, 1, 0, 1]
    put_on_hub(monkeypatch, train=hub_data(4, {"label": datasets.Value("string")}, label=["b", "a", "b", "a"]))
    assert load_source("hf:x", DataOptions(test_share=0)).train.given_labels.tolist() == [1, 0, 1, 0]
    put_on_hub(monkeypatch, train=hub_data(4, {"label": datasets.Value("float32")}, label=[0.5, 0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match="label column of x is not clear.*image, label"):
        load_source("hf:x", DataOptions())
    with pytest.raises(InputError, match="must hold a whole number"):
        load_source("hf:x", DataOptions(label_column="label"))


def test_hub_hidden_test_labels(monkeypatch):
    put_on_hub(monkeypatch, train=hub_data(), test=hub_data(2, label=[-1, -1]), validation=hub_data(4))
    source = load_source("hf:x", DataOptions())
    assert len(source.test) == 4 and any("split test has rows without a label" in note for note in source.notes)


def test_hub_columns(monkeypatch):
    import datasets

    extra = {"mask": datasets.Image(), "coarse": datasets.ClassLabel(names=["p", "q"])}
    masks = [{"bytes": picture(200), "path": None}] * 6
    put_on_hub(monkeypatch, train=hub_data(6, extra, mask=masks, coarse=[0, 0, 0, 1, 1, 1]))
    with pytest.raises(InputError, match="2 image columns; name one with --image-column"):
        load_source("hf:x", DataOptions())
    source = load_source("hf:x", DataOptions(image_column="mask", label_column="coarse", test_share=0))
    assert source.train.pixels.min() == 200 and source.train.given_labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(InputError, match="no column 'imge' .*did you mean 'image'"):
        load_source("hf:x", DataOptions(image_column="imge"))
    with pytest.raises(InputError, match="no column 'labl'"):
        load_source("hf:x", DataOptions(image_column="mask", label_column="labl"))


def test_hub_without_a_training_split(monkeypatch):
    put_on_hub(monkeypatch, some=hub_data(), other=hub_data())
    with pytest.raises(InputError, match="no split named train; its splits: other, some"):
        load_source("hf:x", DataOptions())


def test_hub_damage(monkeypatch):
    put_on_hub(monkeypatch, train=hub_data(3, image=[{"bytes": picture(1), "path": None}, None, {"bytes": b"no", "path": None}]))
    with pytest.raises(InputError, match=r"train/1 \(no image in this row\); train/2 \(no image of a known format\)"):
        load_source("hf:x", DataOptions(test_share=0))


def test_hub_class_without_a_row(monkeypatch):
    import datasets

    put_on_hub(monkeypatch, train=hub_data(4, {"label": datasets.ClassLabel(names=["no", "never", "yes"])}, label=[0, 2, 0, 2]))
    source = load_source("hf:x", DataOptions(test_share=0))
    assert source.train.class_names == ("no", "yes") and "left out: never" in " ".join(source.notes)


def test_many_classes_are_listed_at_once():
    import datasets

    count = 20_000
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"class {label}" for label in range(count + 1)])})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": b"", "path": None}] * count, "label": list(range(count))}, features=kinds)
    started = perf_counter()
    listing, _ = list_splits("many", {"train": rows}, None, None)
    assert perf_counter() - started < 3 and listing.notes == (f"classes without an image, left out: class {count}",)


def test_local_hub_folder_and_parquet_file(folder, tmp_path, monkeypatch):
    import datasets

    datasets.disable_progress_bars()
    for name in os.listdir(folder):
        (tmp_path / "local/train").mkdir(parents=True, exist_ok=True)
        (folder / name).rename(tmp_path / "local/train" / name)
    source = load_source(f"hf:{tmp_path / 'local'}", DataOptions(test_share=0))
    assert source.train.class_names == ("cat", "dog") and source.train.class_counts == [5, 5]
    hub_data().to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").rename(tmp_path / "UPPER.PARQUET")
    with pytest.raises(InputError, match="UPPER.PARQUET is a file; .* hf:PATH for a .parquet file"):
        load_source(str(tmp_path / "UPPER.PARQUET"), DataOptions())
    source = load_source(f"hf:{tmp_path / 'UPPER.PARQUET'}", DataOptions(test_share=0))
    assert source.train.class_names == ("no", "yes") and len(source.train) == 6
    assert list_labelled(str(tmp_path / "UPPER.PARQUET"), DataOptions()).labels == ["no", "yes"] * 3


def write_cifar(root, name="cifar10", column="label", count=12):
    import datasets

    kinds = datasets.Features({"img": datasets.Image(), column: datasets.ClassLabel(names=["a", "b", "c"])})
    for part in ("train", "test"):
        rows = {"img": [{"bytes": picture(value, (32, 32)), "path": None} for value in range(count)], column: [value % 3 for value in range(count)]}
        path = root / name / "data" / f"{part}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(path, batch_size=5)


@pytest.mark.parametrize(("name", "column"), [("cifar10", "label"), ("cifar100", "fine_label")])
def test_cifar_layout(tmp_path, monkeypatch, name, column):
    write_cifar(tmp_path, name, column)
    monkeypatch.setenv("FSPMU_DATA_DIR", str(tmp_path))
    source = load_source(name, DataOptions(limit=7, test_limit=4))
    assert source.train_total == 12 and source.train.given_labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert source.train.pixels[:, 0, 0, 0].tolist() == list(range(7)) and source.test.ids == ["test/0", "test/3", "test/6", "test/9"]
    monkeypatch.setenv("FSPMU_DATA_DIR", "nowhere")
    assert len(load_source(name, DataOptions(data_dir=tmp_path)).train) == 12


def test_cifar_without_files(tmp_path, monkeypatch):
    import datasets

    def refuse(*names, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.delenv("FSPMU_DATA_DIR", raising=False)
    with pytest.raises(InputError, match="uoft-cs/cifar10: no network; put .* --data-dir or FSPMU_DATA_DIR"):
        load_source("cifar10", DataOptions())
    (tmp_path / "cifar10/data").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds no train-\*.parquet"):
        load_source("cifar10", DataOptions(data_dir=tmp_path))
    (tmp_path / "cifar10/data/train-0.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        load_source("cifar10", DataOptions(data_dir=tmp_path))
    write_cifar(tmp_path, "cifar100", "label")
    with pytest.raises(InputError, match="needs the columns img and fine_label, and has img, label"):
        load_source("cifar100", DataOptions(data_dir=tmp_path))


def test_cifar_from_the_hub(monkeypatch):
    import datasets

    monkeypatch.delenv("FSPMU_DATA_DIR", raising=False)
    names = datasets.ClassLabel(names=["baby", "cra"])
    part = hub_data(6, {"label": None, "fine_label": names}, label=None, fine_label=[0, 1] * 3)
    put_on_hub(monkeypatch, train=part, test=part)
    source = load_source("cifar100", DataOptions())
    assert source.train.class_names == ("baby", "crab") and source.train.preprocessing.mean == (0.507, 0.487, 0.441)


@pytest.mark.cifar
@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_real_cifar(data_dir, name, classes):
    source = load_source(name, DataOptions(data_dir=data_dir, limit=1000, test_limit=50))
    assert source.train.pixels.shape == (1000, 3, 32, 32) and source.test.pixels.shape == (50, 3, 32, 32)
    assert source.train.num_classes == classes and source.train_total == 50_000
    assert source.train.preprocessing.padding == 4 and source.train.preprocessing.augment == "crop-flip"
    mean = source.train.pixels.double().div(255).mean((0, 2, 3))
    assert torch.allclose(mean, torch.tensor(source.train.preprocessing.mean, dtype=torch.float64), atol=0.03)


def test_unlabelled(folder, tmp_path):
    pixels, paths = load_unlabelled(folder, (4, 5), False)
    assert pixels.shape == (10, 3, 4, 5) and paths[0] == str(folder / "cat/0.png")
    pixels, paths = load_unlabelled(folder / "dog/1.png", (6, 8), False)
    assert pixels.shape == (1, 3, 6, 8) and pixels.unique().tolist() == [101]
    write(folder / "x.png", b"")
    with pytest.raises(InputError, match=r"x.png .*--skip-unreadable"):
        load_unlabelled(folder, (4, 4), False)
    with pytest.warns(UserWarning, match="left out 1 of 11"):
        assert len(load_unlabelled(folder, (4, 4), True)[1]) == 10
    with pytest.raises(InputError, match="does not exist"):
        load_unlabelled(tmp_path / "gone", (4, 4), False)
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        load_unlabelled(tmp_path / "void", (4, 4), False)


def test_statistics_of_one_colour_are_finite():
    mean, std = channel_statistics(torch.full((3, 3, 2, 2), 51, dtype=torch.uint8))
    assert mean == (0.2, 0.2, 0.2) and std == (1e-3, 1e-3, 1e-3)
    assert isinstance(Preprocessing(mean, std), Preprocessing)


def test_a_folder_named_like_a_known_set_is_ones_own(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "cifar10" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (48, 48), (40 * number, 0, 90)).save(tmp_path / "cifar10" / label / f"{number}.png")
    images = load_source(str(tmp_path / "cifar10"), DataOptions()).train
    assert images.pixels.shape[2:] == (48, 48) and images.preprocessing.mean != (0.4914, 0.4822, 0.4465)


def test_nothing_is_written_among_the_images(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for out, dataset in ((folder / "new", folder), (folder, str(folder)), (Path("runs/x"), "."), (folder / "new", f"hf:{folder}"), (folder, "hf:.")):
        with pytest.raises(InputError, match="lies inside the data set .* give a folder beside it"):
            check_outside(out, dataset)
    for out, dataset in ((folder.parent / "new", folder), (folder / "digits", "digits"), (folder / "new", None), (folder / "new", "hf:some/set")):
        check_outside(out, dataset)
