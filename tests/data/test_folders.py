"""Which folders and tables of a data set are its parts, and which say its labels."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from fspmu.data.corrected_folder import build_folder, plan_folder
from fspmu.data.corrected_tables import write_tables
from fspmu.data.folders import list_folder
from fspmu.data.labelled import files_of, list_labelled
from fspmu.data.sources import DataOptions, load_source
from fspmu.errors import InputError


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png())
    return root


def pets(root, *parts):
    return fill(root, *(f"{part}/{kind}/{number}.png" for part in parts for kind in ("cat", "dog") for number in (1, 2)))


def tabulate(path, rows, header=("file_name", "label")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def labels_of(listing):
    return {name: listing.class_names[label] for name, label in zip(listing.ids, listing.labels.tolist(), strict=True)}


def read(root, **options):
    train, test = list_folder(root, **options)
    return labels_of(train), None if test is None else labels_of(test), " | ".join(train.notes)


def test_corrected_labels_at_the_root_are_those_that_are_read(tmp_path):
    root = pets(tmp_path / "pets", "train", "val")
    found = list_labelled(str(root), DataOptions())
    new = {"train/cat/1.png": "dog", "val/dog/2.png": "cat", "train/dog/2.png": None}
    labels = [new.get(name, label) for name, label in zip(found.ids, found.labels, strict=True)]
    write_tables(found, labels, tmp_path / "out")
    (root / "labels.csv").write_bytes((tmp_path / "out/labels_corrected.csv").read_bytes())
    expected = {name: label for name, label in zip(found.ids, labels, strict=True) if label is not None}
    for options in ({}, {"hub_table": True}):
        train, test, notes = read(root, **options)
        assert (train, test) == tuple({name: label for name, label in expected.items() if name.startswith(part)} for part in ("train", "val"))
        assert notes == "the rows of labels.csv below val are the test part"
    again = list_labelled(str(root), DataOptions())
    assert dict(zip(again.ids, again.labels, strict=True)) == expected and again.train == 3
    source = load_source(str(root), DataOptions())
    assert len(source.train) == 3 and len(source.test) == 4 and source.evaluation == "given"
    files = files_of(again, again.labels)
    assert {file.part for file in files} == {"train", "val"} and plan_folder(files)[0].target == "train/dog/cat/1.png"


def test_a_table_of_the_training_part_leaves_the_test_part_to_its_folders(tmp_path):
    root = pets(tmp_path, "train", "test", "val")
    tabulate(root / "labels.csv", [("train/cat/1.png", "dog"), ("train/cat/2.png", "cat")])
    train, test, notes = read(root)
    assert train == {"train/cat/1.png": "dog", "train/cat/2.png": "cat"} and len(test) == 4 and set(test.values()) == {"cat", "dog"}
    assert notes == "folders beside train that were passed over: val"


def test_parts_have_the_classes_of_their_own_rows(tmp_path):
    root = pets(tmp_path, "train", "test")
    tabulate(root / "labels.csv", [("train/cat/1.png", "b"), ("test/cat/1.png", "c"), ("train/dog/1.png", "d"), ("test/dog/1.png", "a")])
    train, test = list_folder(root)
    assert (train.class_names, test.class_names) == (("b", "d"), ("a", "c")) and labels_of(test) == {"test/cat/1.png": "c", "test/dog/1.png": "a"}
    assert test.paths[1] == str(root / "test/dog/1.png")


@pytest.mark.parametrize("rows", [["train/cat/1.png", "extra/1.png"], ["extra/1.png"], ["test/cat/1.png"], ["1.png"]])
def test_a_table_and_folders_that_contradict_each_other_are_both_named(tmp_path, rows):
    root = fill(pets(tmp_path, "train", "test"), "extra/1.png", "1.png")
    tabulate(root / "labels.csv", [(name, "cat") for name in rows])
    with pytest.raises(InputError, match=r"labels\.csv names images of (extra|test|1\.png), and .*/train is a training part.*; remove or rename one of them"):
        list_folder(root)


def test_of_two_tables_none_is_taken(tmp_path):
    root = pets(tmp_path, "train", "test")
    tabulate(root / "labels.csv", [("train/cat/1.png", "dog"), ("test/cat/1.png", "cat")])
    tabulate(root / "test/labels.csv", [("cat/1.png", "dog")])
    with pytest.raises(InputError, match=r"/labels\.csv and .*/test/labels\.csv both hold labels of the same images; remove or rename one"):
        list_folder(root)


def test_a_list_of_classes_beside_the_parts_is_no_table(tmp_path):
    root = pets(tmp_path, "train", "test")
    tabulate(root / "labels.csv", [("0", "cat"), ("1", "dog")], ("ClassId", "Name"))
    train, test, notes = read(root)
    assert len(train) == len(test) == 4 and notes == "labels.csv lacks the column file_name or label and was passed over"


def test_a_table_of_other_folders_is_one_part(tmp_path):
    root = fill(tmp_path, "train/1.png", "car/1.png", "test/1.png")
    tabulate(root / "labels.csv", [("train/1.png", "train"), ("car/1.png", "car"), ("test/1.png", "car")])
    assert read(root) == ({"train/1.png": "train", "car/1.png": "car", "test/1.png": "car"}, None, "")


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("Training", "Testing"), ("TRAIN", "Validation"), ("train", "VAL"), ("training", "testing")])
def test_parts_are_known_in_every_usual_spelling(tmp_path, train, test):
    root = pets(tmp_path / "pets", train, test)
    found = read(root)
    assert set(found[0].values()) == set(found[1].values()) == {"cat", "dog"} and len(found[0]) == len(found[1]) == 4 and not found[2]
    assert all(name.startswith(f"{train}/") for name in found[0]) and all(name.startswith(f"{test}/") for name in found[1])
    labelled = list_labelled(str(root), DataOptions())
    build_folder(plan_folder(files_of(labelled, labelled.labels)), tmp_path / "out", "copy")
    assert read(tmp_path / "out") == found


def test_a_training_part_may_be_alone(tmp_path):
    assert read(pets(tmp_path, "Training"))[:2] == (read(tmp_path)[0], None) and len(read(tmp_path)[0]) == 4


@pytest.mark.parametrize("names", [("Running", "Training"), ("Test", "Car"), ("Trains", "Tests")])
def test_classes_with_folders_in_them_stay_classes(tmp_path, names):
    root = fill(tmp_path / "in", *(f"{name}/{person}/1.png" for name in names for person in "ab"))
    assert set(read(root)[0].values()) == set(names) and read(root)[1] is None
    labelled = list_labelled(str(root), DataOptions())
    build_folder(plan_folder(files_of(labelled, labelled.labels)), tmp_path / "out", "copy")
    assert read(tmp_path / "out") == read(root)


@pytest.mark.parametrize("name", ["train", "Training"])
def test_a_class_that_would_become_the_training_part_is_refused(tmp_path, name):
    root = fill(tmp_path, "1/1.png", "2/2.png")
    tabulate(root / "labels.csv", [("1/1.png", name), ("2/2.png", "test")])
    labelled = list_labelled(str(root), DataOptions())
    with pytest.raises(InputError, match=f"the class '{name}' has its images in folders and would be read as the training part"):
        plan_folder(files_of(labelled, labelled.labels))


def test_the_exact_name_comes_first(tmp_path):
    root = pets(tmp_path, "train", "training", "testing", "test")
    train, test, notes = read(root)
    assert next(iter(train)) == "train/cat/1.png" and next(iter(test)) == "test/cat/1.png" and notes.endswith("passed over: testing, training")


@pytest.mark.parametrize("left", ["test/1.png", "test/empty/notes.txt", ""])
def test_a_test_part_without_labels_is_passed_over(tmp_path, left):
    root = pets(tmp_path, "train", "val")
    (root / "test").mkdir()
    if left:
        fill(root, left)
    train, test, notes = read(root)
    assert len(train) == 4 and set(test) == {f"val/{kind}/{number}.png" for kind in ("cat", "dog") for number in (1, 2)}
    assert notes == "folder test holds no labelled images and was passed over"


def test_without_a_labelled_test_part_some_are_held_out(tmp_path):
    root = fill(pets(tmp_path, "train"), "test/1.png", "val/2.png")
    source = load_source(str(root), DataOptions(test_share=0.5))
    assert (len(source.train), len(source.test), source.held_out) == (2, 2, True)
    assert [note for note in source.notes if "labelled" in note] == [f"folder {name} holds no labelled images and was passed over" for name in ("test", "val")]
