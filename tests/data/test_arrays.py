"""Images of one's own from every kind of place: tables, arrays, tensors, data sets of other libraries."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fspmu.data.arrays import duplicates_between, load_images
from fspmu.data.images import Images
from fspmu.data.sources import DataOptions, load_source
from fspmu.data.stream import StreamedPixels
from fspmu.errors import InputError
from fspmu.preprocessing import Geometry, Preprocessing


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(path, value=0, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        write(tmp_path / "pets/cat" / f"{number}.png", number)
        write(tmp_path / "pets/dog" / f"{number}.png", 100 + number)
    return tmp_path / "pets"


def write_table(path, rows, header=("file_name", "label")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# Places.


def test_a_folder_is_what_load_source_finds(folder):
    loaded, source = load_images(folder), load_source(str(folder), DataOptions(test_share=0))
    assert loaded.test is None and loaded.name == "pets" and loaded.unreadable == () and loaded.test_hashes is None
    assert torch.equal(loaded.train.pixels, source.train.pixels) and list(loaded.train.ids) == list(source.train.ids)
    assert list(loaded.train.paths) == list(source.train.paths) == [str(folder / name) for name in loaded.train.ids]
    assert loaded.train.preprocessing == source.train.preprocessing and loaded.train.fingerprint() == source.train.fingerprint()


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_train_and_test_parts(tmp_path, storage):
    for name in ("train/a/1", "train/b/1", "test/b/1", "test/b/2"):
        write(tmp_path / f"{name}.png", len(name) + int(name[-1]), (9, 9))
    (tmp_path / "test/b/3.png").write_bytes(b"no image")
    loaded = load_images(tmp_path, geometry=Geometry((4, 4)), storage=storage)
    assert loaded.test.given_labels.tolist() == [1, 1] and loaded.test.ids == ["test/b/1.png", "test/b/2.png"]
    assert loaded.test.preprocessing == loaded.train.preprocessing and loaded.unreadable == (("test/b/3.png", "no image of a known format"),)
    assert any("training part: 2 of 2 images resized to 4 x 4" in note for note in loaded.notes)


@pytest.mark.parametrize("column", ["file_name", "path", "image"])
def test_a_table_by_itself(folder, column):
    table = write_table(folder / "mine.csv", [("dog/1.png", "zebra", "x"), ("./cat//0.png", "ape", "y")], (column, "label", "note"))
    loaded = load_images(str(table))
    assert loaded.name == "mine" and loaded.train.class_names == ("ape", "zebra") and loaded.train.given_labels.tolist() == [1, 0]
    assert loaded.train.ids == ["dog/1.png", "cat/0.png"] and loaded.train.pixels[:, 0, 0, 0].tolist() == [101, 0]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "cat/../../secret.png", "link.png", "away/secret.png", "x\0.png"])
def test_a_table_cannot_leave_its_folder(folder, name):
    write(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "away").symlink_to(folder.parent)
    table = write_table(folder / "mine.csv", [("cat/0.png", "a"), (name, "b")])
    with pytest.raises(InputError, match=r"line 3: .* (leads out of|is no file name)"):
        load_images(table)


def test_the_hubs_table_in_a_folder(folder):
    write_table(folder / "metadata.csv", [("dog/0.png", "x"), ("cat/1.png", "y")])
    assert load_images(folder).train.ids == ["dog/0.png", "cat/1.png"]
    assert len(load_source(str(folder), DataOptions(test_share=0)).train) == 6  # the older door reads labels.csv alone
    write_table(folder / "metadata.csv", [("dog/0.png", "x")], ("file_name", "caption"))
    assert len(load_images(folder).train) == 6


def test_tables_that_say_too_little(folder):
    with pytest.raises(InputError, match="needs the columns file_name and label, and has photo, label"):
        load_images(write_table(folder / "mine.csv", [("cat/0.png", "a")], ("photo", "label")))
    with pytest.raises(InputError, match="is a file; give the folder"):
        (folder / "mine.txt").write_text("x")
        load_images(folder / "mine.txt")
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        load_images("cifar-10")


def test_a_path_is_a_place_whatever_it_is_called(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.parent / "digits")
    assert load_images(Path("digits")).train.class_names == ("cat", "dog") and len(load_images("digits").train.class_names) == 10
    assert set(load_images(Path("digits"), limit=4).train.given_labels.tolist()) == {0, 1}  # of each class: the first four are all cats
    with pytest.raises(InputError, match="--limit is 0"):
        load_images(Path("digits"), limit=0)


def test_known_sets():
    loaded = load_images("digits", limit=50, geometry=Geometry((8, 8), 1))
    assert loaded.train.pixels.shape == (50, 1, 8, 8) and loaded.train.preprocessing.augment == "crop" and len(loaded.train.preprocessing.mean) == 1


# Arrays.


@given(st.sampled_from(["NHW", "NHWC", "NCHW"]), st.sampled_from([1, 3, 4]), st.booleans(), st.sampled_from(["uint8", "float", "int64"]), st.integers(0, 99))
@settings(max_examples=40)
def test_arrays_of_every_layout_keep_their_pixels(layout, channels, tensor, kind, seed):
    pixels = draw(5, channels if layout != "NHW" else 1, 6, 7, seed=seed)
    given_pixels = {"NHW": pixels[:, 0], "NHWC": pixels.transpose(0, 2, 3, 1), "NCHW": pixels}[layout]
    given_pixels = {"uint8": given_pixels, "float": given_pixels.astype(np.float32) / 255, "int64": given_pixels.astype(np.int64)}[kind]
    labels = np.array([2, 0, 1, 1, 0])
    loaded = load_images((torch.tensor(given_pixels) if tensor else given_pixels, torch.tensor(labels) if tensor else labels))
    assert np.array_equal(loaded.train.pixels.numpy(), pixels)
    assert loaded.train.given_labels.tolist() == labels.tolist() and loaded.train.class_names == ("0", "1", "2")


def test_arrays_take_a_geometry_and_names():
    pixels = draw(4, 20, 30, 3)
    loaded = load_images((pixels, ["b", "a", "b", "c"]), geometry=Geometry((5, 5), 1, interpolation="bicubic"))
    expected = [np.asarray(Image.fromarray(image).convert("L").resize((5, 5), Image.Resampling.BICUBIC)) for image in pixels]
    assert np.array_equal(loaded.train.pixels[:, 0].numpy(), np.stack(expected))
    assert loaded.train.class_names == ("a", "b", "c") and loaded.train.given_labels.tolist() == [1, 0, 1, 2]


def test_many_bands_stay_as_they_are():
    bands = draw(4, 8, 9, 6)
    assert np.array_equal(load_images((bands, [0, 1, 0, 1])).train.pixels.numpy(), bands.transpose(0, 3, 1, 2))


def test_a_memory_mapped_array_can_be_streamed(tmp_path):
    pixels = draw(6, 8, 9, 3)
    np.save(tmp_path / "x.npy", pixels)
    loaded = load_images((np.load(tmp_path / "x.npy", mmap_mode="r"), [0, 1] * 3), storage="disk")
    assert isinstance(loaded.train.pixels, StreamedPixels) and np.array_equal(loaded.train.pixels[:].numpy(), pixels.transpose(0, 3, 1, 2))


def test_lists_of_files_and_images(tmp_path):
    write(tmp_path / "1.png", 50)
    loaded = load_images(([str(tmp_path / "1.png"), tmp_path / "1.png", Image.new("L", (8, 6), 50), np.full((6, 8, 3), 50, np.uint8)], [0, 1, 0, 1]))
    assert loaded.train.pixels.shape == (4, 3, 6, 8) and loaded.train.pixels.unique().tolist() == [50]


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (draw(2, 4, 4, 3).astype(np.float32), [0, 1], "pixels are floats from .* must lie from 0 to 1: divide by 255"),
        (torch.randn(2, 3, 4, 4), [0, 1], "floats must lie from 0 to 1"),
        (np.full((2, 4, 4), np.nan), [0, 1], "floats from nan to nan"),
        (draw(2, 4, 4).astype(np.int32) * 300, [0, 1], "whole numbers must lie from 0 to 255"),
        (draw(2, 4), [0, 1], r"must be \(N, H, W\).*not \(2, 4\)"),
        (draw(0, 4, 4, 3), [], "none of them 0"),
        (draw(2, 9, 9, 9), [0, 1], "do not say which dimension is their channels"),
        (np.array([[["x"]]] * 2), [0, 1], "pixels must be numbers"),
        (draw(2, 4, 4), [0, 1, 1], "2 images need 2 labels"),
        (draw(2, 4, 4), [[0, 1], [1, 0]], "a number or a name each"),
        (draw(2, 4, 4), [0.5, 1.0], "whole numbers or names, not 0.5"),
        (draw(2, 4, 4), [None, "a"], "whole numbers or names, not None"),
        (draw(2, 4, 4), [-1, 1], "labels run from -1 to 1"),
        (draw(2, 4, 4), [0, 10**7], "labels run from 0 to 10000000"),
        (draw(2, 4, 4), [0, 0], r"has 1 class \(0\)"),
        ({1: 2}, [0, 0], "must be an array, a tensor or a list"),
    ],
)
def test_pairs_that_do_not_fit(pixels, labels, message):
    with pytest.raises(InputError, match=message):
        load_images((pixels, labels))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (draw(2, 4, 4), "pixels alone have no labels"),
        ({"image": 1}, "a dict is no set of labelled images"),
        (7, "an? int is no set"),
        (torch.utils.data.DataLoader(torch.arange(4)), "DataLoader is no set .*; of a DataLoader give its .dataset"),
        ([], "list is empty"),
        ([1, 2], "item 0 of the list is no pair"),
    ],
)
def test_objects_that_are_no_set(source, message):
    with pytest.raises(InputError, match=message):
        load_images(source)


def test_images_go_through_or_are_resized():
    images = Images(torch.from_numpy(draw(4, 3, 8, 8)), torch.tensor([0, 1, 2, 0]), ("a", "b", "c"), list("wxyz"), preprocessing=Preprocessing(padding=1))
    same = load_images(images)
    assert same.train is images and same.train_hashes.unique().numel() == 4
    assert load_images(images, limit=3, preprocessing=Preprocessing()).train.ids == ["w", "x", "y"]
    assert load_images(images, limit=2).train.ids == ["w", "y"]
    smaller = load_images(images, geometry=Geometry((4, 4)), storage="disk")
    again = load_images(smaller.train, geometry=Geometry((2, 2), 1))
    assert again.train.pixels.shape == (4, 1, 2, 2) and again.train.ids == list("wxyz") and again.train.class_names == ("a", "b", "c")


# Data sets of others.


class Set(torch.utils.data.Dataset):
    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        item = self.items[row]
        if isinstance(item, Exception):
            raise item
        return item


def test_a_data_set_of_ones_own():
    pixels = draw(6, 3, 8, 8)
    labels = [torch.tensor(1), np.int64(0), 2, 1, 0, 2]
    items = [(torch.from_numpy(image).float() / 255, label) for image, label in zip(pixels, labels, strict=True)]
    loaded = load_images(Set(items, classes=["x", "y", "z", "rare"]))
    assert np.array_equal(loaded.train.pixels.numpy(), pixels) and loaded.train.given_labels.tolist() == [1, 0, 2, 1, 0, 2]
    assert loaded.train.class_names == ("x", "y", "z", "rare") and "no image of the class rare" in loaded.notes
    part = torch.utils.data.Subset(Set(items, classes=["x", "y", "z", "rare"], targets=[1, 0, 2, 1, 0, 2]), [5, 0, 3])
    loaded = load_images(part, storage="disk")
    assert loaded.train.given_labels.tolist() == [2, 1, 1] and np.array_equal(loaded.train.pixels[:].numpy(), pixels[[5, 0, 3]])
    assert loaded.train.class_names == ("x", "y", "z", "rare")
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(pixels), torch.tensor([0, 1] * 3))
    assert np.array_equal(load_images(tensors).train.pixels.numpy(), pixels)


def test_targets_are_believed_only_when_the_items_agree():
    items = [(Image.new("RGB", (4, 4), (value,) * 3), 1 - value % 2) for value in range(6)]
    assert load_images(Set(items, targets=[0, 1] * 3)).train.given_labels.tolist() == [1, 0] * 3


def test_items_that_cannot_be_read_are_left_out():
    items = [(Image.new("RGB", (4, 4), (value,) * 3), value % 2) for value in range(8)]
    items[5], items[6] = OSError("the archive is damaged"), ("nowhere.png", 0)
    for attributes in ({}, {"targets": [0, 1] * 4}):
        loaded = load_images(Set(items, **attributes))
        assert loaded.train.ids == [f"train/{row}" for row in (0, 1, 2, 3, 4, 7)] and loaded.train.given_labels.tolist() == [0, 1, 0, 1, 0, 1]
        assert loaded.unreadable == (("train/5", "the archive is damaged"), ("train/6", "no such file"))
        assert loaded.train.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 7]


def test_transforms_that_hide_the_pixels_are_refused():
    with pytest.raises(InputError, match="floats from -2 to -2.*drop Normalize"):
        load_images(Set([(torch.full((3, 4, 4), -2.0), 0), (torch.zeros(3, 4, 4), 1)]))
    late = [(torch.zeros(3, 4, 4), row % 2) for row in range(9)] + [(torch.full((3, 4, 4), 3.0), 1)]
    with pytest.raises(InputError, match="drop Normalize"):  # not left out as unreadable
        load_images(Set(late))

    class Random(Set):
        def __getitem__(self, row):
            return torch.rand(3, 4, 4), row % 2

    with pytest.raises(InputError, match="item 0 of the Random differs each time it is read; drop what is random"):
        load_images(Random([0] * 4))
    with pytest.raises(InputError, match="labels run from 0 to 5, .* because there are 2 class names"):
        load_images(Set([(torch.zeros(3, 4, 4), label) for label in (0, 5)], classes=["a", "b"]))


@pytest.mark.parametrize("transformed", [False, True])
def test_torchvisions_folder(folder, transformed):
    torchvision = pytest.importorskip("torchvision")
    dataset = torchvision.datasets.ImageFolder(folder, transform=torchvision.transforms.ToTensor() if transformed else None)
    loaded = load_images(dataset)
    plain = load_images(folder)
    assert torch.equal(loaded.train.pixels, plain.train.pixels) and list(loaded.train.ids) == list(plain.train.ids)
    assert loaded.train.class_names == ("cat", "dog") and list(loaded.train.paths) == list(plain.train.paths)
    turned = torchvision.datasets.ImageFolder(folder, target_transform=lambda label: 1 - label)
    assert load_images(turned).train.given_labels.tolist() == [1, 1, 1, 0, 0, 0]


def hub_set(count=6, **columns):
    import datasets

    def content(value):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 6), (value,) * 3).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    return datasets.Dataset.from_dict({"image": [content(value) for value in range(count)], "label": [value % 2 for value in range(count)]}, features=kinds)


def test_a_hub_data_set_as_an_object():
    import datasets

    for given_set in (hub_set(), hub_set().with_format("torch"), hub_set().with_transform(lambda rows: {"x": [0] * len(rows["label"])})):
        loaded = load_images(given_set)
        assert loaded.train.class_names == ("no", "yes") and loaded.train.given_labels.tolist() == [0, 1] * 3
        assert loaded.train.pixels[:, 0, 0, 0].tolist() == list(range(6)) and loaded.test is None
    both = load_images(datasets.DatasetDict(train=hub_set(), test=hub_set(2)), storage="disk")
    assert len(both.test) == 2 and duplicates_between(both.train_hashes, both.test_hashes) == [(0, 0), (1, 1)]
    with pytest.raises(InputError, match="streaming=False"):
        load_images(hub_set().to_iterable_dataset())


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_a_local_hub_set_leaves_nothing_behind(tmp_path, monkeypatch, storage):
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    hub_set().to_parquet(tmp_path / "rows.parquet")
    loaded = load_images(f"hf:{tmp_path / 'rows.parquet'}", storage=storage)
    assert loaded.train.pixels[:][:, 0, 0, 0].tolist() == list(range(6))
    del loaded
    assert not list((tmp_path / "scratch").iterdir())


# What a reading tells.


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12))
@settings(max_examples=50)
def test_duplicates_are_every_test_image_that_was_trained_on(train, test):
    pairs = duplicates_between(torch.tensor(train, dtype=torch.int64), torch.tensor(test, dtype=torch.int64))
    assert pairs == [(train.index(value), row) for row, value in enumerate(test) if value in train]


def test_equal_pixels_are_found_whatever_the_file(tmp_path):
    image = Image.fromarray(draw(6, 8, 3))
    for name in ("train/a/1.png", "train/b/2.png", "test/a/copy.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (image if name != "train/b/2.png" else image.transpose(Image.Transpose.ROTATE_180)).save(tmp_path / name)
    loaded = load_images(tmp_path)
    assert duplicates_between(loaded.train_hashes, loaded.test_hashes) == [(0, 0)]
