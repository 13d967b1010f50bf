"""Taking in: any classifier and images from anywhere -> a Classifier and Images that fit each other, and something to measure on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fspmu.data.images import Images
from fspmu.engine.checkpoint import build_model
from fspmu.engine.opening import OpenedModel, adopted_from
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.models.adopt import Adopted
from fspmu.models.classifier import Classifier, Description
from fspmu.preprocessing import Preprocessing
from fspmu.stages.taking_in import MOST_HELD_OUT, Intake, take_in
from memorised_digits import NAMES, build, digits, memorised, same, state_of, write_folder


def colours(count, size=6, seed=0):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)).numpy()


def classifier(classes=3, channels=3):
    """Return a network for images of any size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def take(model, images, evaluation=None, run=None, class_map=None, **intake):
    return take_in(model, images, evaluation, Intake(**intake), run or Run(), class_map=class_map)


def named(count=30, names=("cat", "dog", "owl"), seed=0):
    """Return colour images whose labels are names, each class as often."""
    return colours(count, seed=seed).transpose(0, 2, 3, 1), [names[row % len(names)] for row in range(count)]


# ---- classes


def test_both_lists_of_classes_are_shown():
    with pytest.raises(InputError, match=r"does not know the classes owl; the data's classes: cat, dog, owl; the model's: cat, dog, bird.*--class-map"):
        take(classifier(), named(), class_names=("cat", "dog", "bird"))
    with pytest.raises(InputError, match=r"the model tells 4 classes apart and does not name them, the data has 3 \(cat, dog, owl\).*--class-names"):
        take(classifier(4), named())
    with pytest.raises(InputError, match="2 class names were given, and the model tells 3 classes apart"):
        take(classifier(), named(), class_names=("cat", "dog"))
    with pytest.raises(InputError, match="does not know the classes bat; the data's classes: bat, cat; the model's: cat, dog, owl"):
        take(classifier(), named(), evaluation=named(8, ("cat", "bat")))


def test_the_data_may_lack_classes_and_the_evaluation_others():
    taken = take(classifier(5), named(names=("owl", "cat")), evaluation=named(9, ("dog", "owl", "bat")), class_names=("bat", "cat", "dog", "emu", "owl"))
    assert taken.images.num_classes == 5 and taken.images.class_counts == [0, 15, 0, 0, 15]
    assert taken.evaluation.class_counts == [3, 0, 3, 0, 3] and taken.kind == "given" and not taken.held.any()


@pytest.mark.parametrize("form", ["mapping", "json", "csv"])
def test_a_class_map(form, tmp_path):
    given_map = {"Katze": "cat", "Hund": "dog", "Welpe": "dog"}
    class_map = given_map
    if form == "json":
        class_map = tmp_path / "map.json"
        class_map.write_text(json.dumps(given_map))
    elif form == "csv":
        class_map = str(tmp_path / "map.csv")
        (tmp_path / "map.csv").write_text("data,model\n" + "".join(f"{ours},{theirs}\n" for ours, theirs in given_map.items()))
    evaluation = named(9, ("owl", "Katze", "dog"))  # a part may use only some of the map
    taken = take(classifier(), named(40, ("Katze", "Hund", "Welpe", "owl")), evaluation, class_map=class_map, class_names=("cat", "dog", "owl"))
    assert taken.images.class_counts == [10, 20, 10] and taken.evaluation.class_counts == [3, 3, 3]
    assert any("Hund, Welpe of the data are one class of the model: dog" in note for note in taken.notes)


def test_a_class_map_with_names_that_nobody_has():
    options = {"class_names": ("cat", "dog", "owl")}
    with pytest.raises(InputError, match="the class map names Maus, which no part of the data has; the data's classes: cat, dog, owl"):
        take(classifier(), named(), class_map={"Maus": "cat"}, **options)
    with pytest.raises(InputError, match="the class map names mouse, which the model does not have"):
        take(classifier(), named(), class_map={"cat": "mouse"}, **options)


NUMBERS = ("1", "2", "10")


@pytest.mark.parametrize(("order", "names"), [("string", ("1", "10", "2")), ("natural", ("1", "2", "10")), (None, ("1", "10", "2"))])
def test_how_folders_were_sorted_in_training(tmp_path, order, names):
    root = write_folder(tmp_path / "train", colours(30).transpose(0, 2, 3, 1), torch.arange(30) % 3, NUMBERS)
    run = Run()
    taken = take(classifier(), root, class_order=order, run=run)
    assert taken.images.class_names == names
    right = [names.index(name.split("/")[0]) for name in taken.images.ids]
    assert taken.images.given_labels.tolist() == right
    assert any("--class-order natural if it was trained so" in notice for notice in run.notices) == (order is None)
    with pytest.raises(InputError, match="unknown class order 'naturl'; did you mean 'natural'"):
        take(classifier(), root, class_order="naturl")


def test_timm_sorts_by_value_and_names_come_before_order(tmp_path):
    root = write_folder(tmp_path / "train", colours(30).transpose(0, 2, 3, 1), torch.arange(30) % 3, NUMBERS)
    opened = adopted_from(classifier(), torch.zeros(2, 3, 6, 6))
    opened.model.origin = replace(opened.model.origin, kind="timm")
    assert take(opened, root).images.class_names == NUMBERS
    assert take(opened, root, class_order="string").images.class_names == ("1", "10", "2"), "what an earlier call took it for is forgotten"
    assert take(classifier(), root, class_names=("10", "1", "2"), class_order="natural").images.class_names == ("10", "1", "2")
    own_order = (colours(30).transpose(0, 2, 3, 1), torch.arange(30) % 3)
    assert take(opened, own_order).images.class_names == ("0", "1", "2")


def test_data_with_an_order_of_its_own_keeps_it(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant", "10", "9"])})
    from PIL import Image

    rows = {"image": [Image.fromarray(picture) for picture in colours(12).transpose(0, 2, 3, 1)], "label": [0, 1, 2, 3] * 3}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    opened = adopted_from(classifier(4), torch.zeros(2, 3, 6, 6))
    opened.model.origin = replace(opened.model.origin, kind="timm")
    taken = take(opened, f"hf:{tmp_path / 'train.parquet'}", hold_out=0)
    assert taken.images.class_names == ("zebra", "ant", "10", "9") and taken.images.given_labels.tolist() == [0, 1, 2, 3] * 3


# ---- models


def test_what_was_given_is_left_alone():
    given_model = build().train()
    before = state_of(given_model)
    taken = take(given_model, (digits().pixels, digits().given))
    assert taken.given is given_model and isinstance(taken.model, Adopted) and taken.model.module is given_model  # no copy of what is float32
    assert same(given_model, before) and given_model.training and not hasattr(given_model, "description")
    half = build().half()
    taken = take(half, (digits().pixels, digits().given))
    assert taken.given is half and next(taken.model.parameters()).dtype == torch.float32 and next(half.parameters()).dtype == torch.float16


def test_an_opened_model_is_heard_and_left_alone():
    opened = adopted_from(classifier(), torch.zeros(2, 3, 6, 6), mean=[0.5], std=[0.25])
    opened = replace(opened, notes=("from elsewhere",))
    taken = take(opened, named(), size=9, mean=(0.1, 0.2, 0.3), std=(1.0,))
    assert taken.images.pixels.shape[2:] == (9, 9) and taken.images.preprocessing.mean == (0.1, 0.2, 0.3) and taken.images.preprocessing.std == (1.0,) * 3
    assert "from elsewhere" in taken.notes and taken.given is opened.model.module
    assert opened.model.description is None and opened.model.mean == (0.5,) * 3 and opened.model.geometry is None
    assert take(opened, named()).images.preprocessing.mean == (0.5,) * 3
    assert take(opened, named(names=("x", "y", "z"))).images.class_names == ("x", "y", "z")
    assert take(opened, named(), augment="crop").images.preprocessing.padding == 1
    bigger = (np.zeros((6, 40, 40, 3), np.uint8), [0, 1, 2] * 2)
    assert take(opened, bigger, augment="crop-flip").images.preprocessing == Preprocessing((0.5,) * 3, (0.25,) * 3, "crop-flip", 5)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_get_the_channels_of_the_model(tmp_path, channels, wrapped):
    data, model = digits(), classifier(10, channels)
    folder = write_folder(tmp_path / "train", data.pixels[:60], data.given[:60], [str(label) for label in range(10)])
    if wrapped:
        model = adopted_from(model, torch.zeros(2, channels, 8, 8))
        assert isinstance(model, OpenedModel)
    for source in (folder, (data.pixels, data.given), (np.stack([data.pixels] * 3, 3), data.given)):
        taken = take(model, source)
        assert taken.images.pixels.shape[1:] == (channels, 8, 8) == taken.evaluation.pixels.shape[1:]
        with torch.no_grad():
            assert taken.model(taken.images.pixels[:2].float()).logits.shape == (2, 10)


def test_networks_of_this_package():
    data, run = digits(), Run()
    description = Description("smallcnn", {"width": 4}, tuple("0123456789"), Preprocessing((0.3,) * 3, (0.2,) * 3, "crop", 1), "ce")
    own = build_model(description, run.generator("weights"))
    taken = take(own, (data.pixels, data.given))
    assert taken.model is own is taken.given and taken.images.preprocessing == description.preprocessing
    assert taken.images.pixels.shape[1:] == (3, 8, 8) and not any("nobody says" in note for note in taken.notes)
    assert take(own, (data.pixels, data.given), size=12).images.pixels.shape[1:] == (3, 12, 12)
    own.description = replace(description, size=(6, 10))
    assert take(own, (data.pixels, data.given)).images.pixels.shape[1:] == (3, 6, 10), "as it was trained, whatever size the images have"
    own.description = description
    for name, value in {"mean": (0.1,), "std": (0.1,), "head": "head", "augment": "crop"}.items():
        with pytest.raises(InputError, match=f"{name} is given, but this Classifier says itself how it was trained; leave it out"):
            take(own, (data.pixels, data.given), **{name: value})
    nameless = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), nn.Linear(8, 10))
    taken = take(nameless, (data.pixels, data.given), mean=(0.2,), std=(0.3,))
    assert taken.given is nameless and taken.images.preprocessing.mean == (0.2,) and taken.model(torch.zeros(2, 1, 8, 8)).features.shape == (2, 8)


def test_what_is_no_model():
    with pytest.raises(InputError, match="the model is a str, but it must be a torch.nn.Module"):
        take("resnet18", named())
    with pytest.raises(InputError, match="DataParallel is wrapped around the network"):
        take(nn.DataParallel(classifier()), named())
    with pytest.raises(InputError, match="--mean and --std belong together"):
        take(classifier(), named(), mean=(0.5,))
    with pytest.raises(InputError, match="unknown augmentation 'crops'; did you mean 'crop'"):
        take(classifier(), named(), augment="crops")


# ---- what is held out


@settings(max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.floats(0, 0.95))
def test_the_hold_out_takes_its_share_of_each_class(counts, share):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pixels = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    images = Images(pixels, labels, tuple("abcde"[: len(counts)]), [str(row) for row in range(len(labels))])
    taken = take(classifier(len(counts)), images, hold_out=share)
    for label, count in enumerate(counts):
        held = int(taken.held[labels == label].sum())
        assert held == min(int(share * count + 0.5), count - 1), "the last of a class is never held out"
    assert (taken.kind == "held out") == bool(taken.held.any()) == (taken.evaluation is not None)
    if taken.evaluation is not None:
        assert taken.evaluation.ids == [str(row) for row in taken.held.nonzero().flatten().tolist()]
    assert taken.described()["held_out"] == taken.described()["test"] == int(taken.held.sum())


def test_a_hold_out_has_an_end():
    labels = torch.arange(3).repeat(20_000)
    images = Images(torch.zeros(60_000, 3, 1, 1, dtype=torch.uint8), labels, ("a", "b", "c"), [str(row) for row in range(60_000)])
    assert int(take(classifier(), images).held.sum()) == pytest.approx(MOST_HELD_OUT, abs=3)


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_no_share_of_the_images(share):
    with pytest.raises(InputError, match=f"--hold-out is {share}.*from 0 to below 1"):
        take(classifier(), named(), hold_out=share)


def test_a_test_part_of_the_data_is_measured_on(tmp_path):
    pictures = colours(40).transpose(0, 2, 3, 1)
    write_folder(tmp_path / "train", pictures[:30], torch.arange(30) % 3, ("cat", "dog", "owl"))
    write_folder(tmp_path / "test", np.concatenate([pictures[30:], pictures[:2]]), torch.arange(12) % 3, ("cat", "dog", "owl"))
    run = Run()
    taken = take(classifier(), tmp_path, run=run)
    assert taken.kind == "given" and len(taken.evaluation) == 12 and not taken.held.any() and len(taken.images) == 30
    assert any(note.startswith("2 evaluation images are training images too (train/cat/0000.png, train/dog/0001.png)") for note in run.notices)
    assert taken.evaluation.preprocessing == taken.images.preprocessing
    other = take(classifier(), tmp_path, evaluation=named(9), run=run)
    assert len(other.evaluation) == 9  # what is given comes before what the data has


def test_the_fingerprint_is_of_all_that_counts():
    pixels, labels = named()
    marks = [take(classifier(), (pixels, labels)).fingerprint for _ in range(2)]
    marks += [take(classifier(), (pixels, labels), hold_out=share).fingerprint for share in (0, 0.3)]
    marks.append(take(classifier(), (np.flip(pixels, 1), labels)).fingerprint)
    marks.append(take(classifier(), (pixels, labels[1:] + labels[:1])).fingerprint)
    marks.append(take(classifier(), (pixels, labels), evaluation=named(9)).fingerprint)
    marks.append(take(classifier(), (pixels, labels), limit=21).fingerprint)
    plain = take(classifier(), (pixels, labels))
    marks.append(take(classifier(), (pixels, labels), evaluation=plain.evaluation).fingerprint)  # the same images, and learned from too
    assert marks[0] == marks[1] and len(set(marks)) == len(marks) - 1


def test_everything_is_noticed_once():
    run = Run()
    taken = take(memorised(), (digits().pixels, digits().given), run=run)
    assert run.notices == list(taken.notes) and len(set(run.notices)) == len(run.notices) == 2
    assert taken.described()["notes"] == run.notices and taken.described()["classes"] == list(taken.images.class_names) != list(NAMES)
