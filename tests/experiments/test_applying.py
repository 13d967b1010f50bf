"""Corrected data out: what is written, what is not, and that the originals stay as they were."""

import csv
import gc
import hashlib
import io
import json
import os
import tempfile
import warnings
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fspmu.cli import parse
from fspmu.data import corrected_folder
from fspmu.data.corrected_folder import File, plan_folder
from fspmu.data.folders import list_folder
from fspmu.data.hub import list_hub
from fspmu.errors import InputError
from fspmu.experiments.apply_options import Apply
from fspmu.experiments.applying import apply_corrections

LINKED = ("copy", "hardlink", "symlink")


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root, names):
    """Write one image per name, each of its own colour."""
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


def decide(path, rows):
    """Write decisions: id, given label, new label, decision."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "given_label", "new_label", "decision"), *rows])
    return path


def tree(root):
    """Return every file below a folder with its content, and where links lead."""
    return {
        path.relative_to(root).as_posix(): os.readlink(path) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def labels_in(root):
    """Return the labels by id that a folder is read with: training part, test part."""
    parts = list_folder(root)
    return [None if part is None else {name: part.class_names[k] for name, k in zip(part.ids, part.labels.tolist(), strict=True)} for part in parts]


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def pets(tmp_path):
    """A folder per class; the second cat is a dog, the first dog is a cat whose name a cat has already, the third dog is no picture of either."""
    root = fill(tmp_path / "pets", ["cat/1.png", "cat/2.png", "cat/deep/3.JPG", "dog/1.png", "dog/4.png", "dog/5.png"])
    table = decide(
        tmp_path / "seen.csv",
        [("cat/2.png", "cat", "dog", "accept"), ("dog/1.png", "dog", "cat", "accept"), ("dog/5.png", "dog", "", "drop"), ("cat/1.png", "cat", "", "keep")],
    )
    return root, table, tmp_path / "out"


@pytest.fixture
def parts(tmp_path):
    """Training and test part; a decision for the first of each."""
    root = fill(tmp_path / "pets", [f"{part}/{kind}/{number}.png" for part in ("train", "val") for kind in ("cat", "dog") for number in (1, 2)])
    table = decide(tmp_path / "seen.csv", [("train/cat/1.png", "cat", "dog", "accept")])
    return root, table, tmp_path / "out"


def apply(given, **options):
    root, table, out = given
    return apply_corrections(Apply(issues=table, dataset=str(root), out=out, **options))


def test_tables(pets):
    root, _, out = pets
    before = tree(root)
    result, _, lines = apply(pets)
    assert (result["changed"], result["dropped"], result["kept"], result["unsure"], result["written"]) == (2, 1, 1, 0, True)
    expected = [["file_name", "label"], ["cat/1.png", "cat"], ["cat/2.png", "dog"], ["cat/deep/3.JPG", "cat"], ["dog/1.png", "cat"], ["dog/4.png", "dog"]]
    assert rows_of(out / "labels_corrected.csv") == rows_of(out / "metadata.csv") == expected
    assert rows_of(out / "changes.csv") == [
        ["id", "given_label", "new_label", "decision", "confidence"],
        ["cat/2.png", "cat", "dog", "accept", ""],
        ["dog/1.png", "dog", "cat", "accept", ""],
        ["dog/5.png", "dog", "", "drop", ""],
    ]
    assert tree(root) == before and json.loads((out / "applied.json").read_text()) == result
    assert lines[-1] == f"written: {out}" and set(result["files"]) == {"labels_corrected.csv", "metadata.csv", "changes.csv"}
    (root / "labels.csv").write_bytes((out / "metadata.csv").read_bytes())  # what the last lines say one may do
    assert labels_in(root)[0] == dict(expected[1:])
    again = decide(out.parent / "again.csv", [])
    again.write_bytes((out / "changes.csv").read_bytes())
    (root / "labels.csv").unlink()
    assert apply((root, again, out.parent / "second"))[0]["pairs"] == result["pairs"], "a table of changes is one of decisions"


def test_tables_for_parts_are_read_by_the_hubs_loader(parts, tmp_path):
    root, _, out = parts
    result, *_ = apply(parts)
    assert {"train/metadata.csv", "val/metadata.csv"} < set(result["files"])
    for part in ("train", "val"):
        (root / part / "metadata.csv").write_bytes((out / part / "metadata.csv").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the loader leaves the tables open
        loaded = datasets.load_dataset(str(root), cache_dir=str(tmp_path / "cache"))
        assert loaded["train"]["label"][:] == ["dog", "cat", "dog", "dog"] and loaded["validation"]["label"][:] == ["cat", "cat", "dog", "dog"]
        gc.collect()


@pytest.mark.parametrize("mode", LINKED)
def test_a_folder_per_class(pets, mode):
    root, _, out = pets
    before = tree(root)
    planned, tables, lines = apply(pets, mode=mode)
    assert not out.exists() and not planned["written"] and "add --yes" in lines[-1]
    assert planned["pairs"] == [{"from": kind, "to": to, "count": 1} for kind, to in (("cat", "dog"), ("dog", None), ("dog", "cat"))]
    assert tables[0].row_count == 3 and any(line.startswith("cat/2.png -> dog/2.png") for line in lines)
    assert planned["bytes"] == (sum((root / name).stat().st_size for name in before if name != "dog/5.png") if mode == "copy" else 0)
    result, _, lines = apply(pets, mode=mode, yes=True)
    train, test = labels_in(out)
    renamed = next(name for name in train if name.startswith("cat/1-"))
    assert train == {"cat/1.png": "cat", renamed: "cat", "cat/deep/3.JPG": "cat", "dog/2.png": "dog", "dog/4.png": "dog"} and test is None
    assert (out / renamed).read_bytes() == (root / "dog/1.png").read_bytes()
    placed, original = out / "dog/2.png", root / "cat/2.png"
    assert placed.samefile(original) == (mode != "copy") and placed.is_symlink() == (mode == "symlink") and placed.read_bytes() == original.read_bytes()
    assert tree(root) == before and any("editing" in line for line in lines) == (mode != "copy")
    after = tree(out)
    again, _, lines = apply(pets, mode=mode, yes=True)
    assert tree(out) == after and again == result | {"already_done": True} and lines[-1].startswith("already done")


@pytest.mark.parametrize("mode", LINKED)
def test_an_interrupted_folder_is_gone_on_with(pets, mode, monkeypatch):
    _, _, out = pets
    real, calls = corrected_folder.build_folder, []

    def die(moves, folder, how):
        real(moves[:3], folder, how)
        (folder / "cat/.partial-x.png").write_bytes(b"half")
        calls.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fspmu.experiments.applying.build_folder", die)
        apply(pets, mode=mode, yes=True)
    assert calls and not (out / "done").exists() and not (out / "applied.json").exists()
    times = {path: path.lstat().st_mtime_ns for path in out.rglob("*.png") if not path.name.startswith(".")}
    assert len(times) >= 2 and apply(pets, mode=mode, yes=True)[0]["written"]
    assert (out / "done").exists() and len(labels_in(out)[0]) == 5 and not (out / "cat/.partial-x.png").exists()
    assert {path: path.lstat().st_mtime_ns for path in times} == times, "what was done is left as it is"


@pytest.mark.parametrize("mode", LINKED)
def test_a_place_that_holds_something_else_is_not_overwritten(pets, mode, monkeypatch):
    _, _, out = pets
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fspmu.experiments.applying.build_folder", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        apply(pets, mode=mode, yes=True)
    (out / "cat").mkdir()
    (out / "cat/1.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="is there already"):
        apply(pets, mode=mode, yes=True)
    assert (out / "cat/1.png").read_bytes() == b"mine"


def test_a_folder_that_holds_something_else_is_refused(pets):
    root, table, out = pets
    fill(out, ["mine.png"])
    with pytest.raises(InputError, match="is not empty"):
        apply(pets)
    assert list(tree(out)) == ["mine.png"]
    with pytest.raises(InputError, match="lies inside the data set"):
        apply((root, table, root / "new"))
    apply((root, table, out.parent / "other"))
    decide(table, [("cat/1.png", "cat", "dog", "accept")])
    with pytest.raises(InputError, match="another configuration"):
        apply((root, table, out.parent / "other"))


def test_the_test_part_is_left_as_it_is_unless_asked(parts):
    root, table, out = parts
    apply(parts, mode="copy", yes=True)
    train, test = labels_in(out)
    assert len(train) == 4 and list(train.values()).count("dog") == 3 and train["train/dog/1.png"] == "dog"
    assert test == {f"val/{kind}/{number}.png": kind for kind in ("cat", "dog") for number in (1, 2)}
    decide(table, [("val/cat/1.png", "cat", "dog", "accept")])
    with pytest.raises(InputError, match="corrects 1 samples of the test part .*--include-test"):
        apply((root, table, out.parent / "second"))
    apply((root, table, out.parent / "second"), include_test=True, mode="hardlink", yes=True)
    assert list(labels_in(out.parent / "second")[1].values()).count("dog") == 3


def test_a_table_beside_the_images_becomes_a_folder_per_class(tmp_path):
    root = fill(tmp_path / "flat", ["a.png", "b.png", "sub/a.png"])
    (root / "labels.csv").write_text("file_name,label\na.png,cat\nb.png,dog\nsub/a.png,cat\n")
    table = decide(tmp_path / "seen.csv", [("sub/a.png", "cat", "dog", "accept")])
    apply((root, table, tmp_path / "out"), mode="symlink", yes=True)
    assert labels_in(tmp_path / "out")[0] == {"cat/a.png": "cat", "dog/b.png": "dog", "dog/sub/a.png": "dog"}


@pytest.mark.parametrize("name", ["..", "../../evil", "/etc", "a/b", ".", ".hidden", "new\nline", "nul\0", "back\\slash", "x" * 300])
def test_hostile_class_names_stay_in_tables(tmp_path, name):
    root = fill(tmp_path / "in/flat", ["a.png", "b.png"])
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label"), ("a.png", name), ("b.png", "dog")])
    table = decide(tmp_path / "seen.csv", [("b.png", "dog", name, "accept")])
    before = tree(tmp_path)
    for mode in LINKED:
        with pytest.raises(InputError, match="cannot be the name of a folder; use --mode csv|csv"):
            apply((root, table, tmp_path / "in/out"), mode=mode, yes=True)
    assert tree(tmp_path) == before
    if "\0" not in name:
        apply((root, table, tmp_path / "in/out"))
        assert rows_of(tmp_path / "in/out/labels_corrected.csv")[1:] == [["a.png", name], ["b.png", name]]
        assert {path.split("/")[0] for path in set(tree(tmp_path)) - set(before)} == {"in"}


@pytest.mark.parametrize("name", ["=cmd|'C calc'!A0", "@x", "+1", "-1", "two words", "<b>[red]", "ünï"])
def test_odd_class_names_are_folders_and_no_formulas(tmp_path, name):
    root = fill(tmp_path / "in", [f"{name}/1.png", "dog/-2.png", "dog/3.png"])
    table = decide(tmp_path / "seen.csv", [("dog/-2.png", "dog", name, "accept")])
    apply((root, table, tmp_path / "out"), mode="copy", yes=True)
    assert labels_in(tmp_path / "out")[0] == {f"{name}/1.png": name, f"{name}/-2.png": name, "dog/3.png": "dog"}
    assert all(cell[:1] not in ("=", "+", "-", "@") for row in rows_of(tmp_path / "out/changes.csv") for cell in row)
    assert apply((root, tmp_path / "out/changes.csv", tmp_path / "second"))[0]["changed"] == 1


NAME = st.sampled_from(["a.png", "A.png", "b.jpg", "sub/a.png", "a.png/b.jpg", "sub/A.png", "sub.png"])


@settings(max_examples=60)
@given(files=st.lists(st.tuples(st.sampled_from("xyz"), NAME, st.sampled_from("xyz")), min_size=1, max_size=14, unique_by=lambda entry: entry[:2]))
def test_no_two_files_go_to_one_place(files):
    asked = [File(f"/in/{given}/{name}", "", f"{given}/{name}", given, label) for given, name, label in files]
    moves = plan_folder(asked)
    places = [move.target.casefold() for move in moves]
    assert len(set(places)) == len(places) and moves == plan_folder(asked)
    assert not any(other.startswith(f"{place}/") for place in places for other in places), "no file where another needs a folder"
    for file, move in zip(asked, moves, strict=True):
        assert move.source == file.path and move.target.startswith(f"{file.label}/") and os.path.splitext(move.target)[1] == os.path.splitext(file.name)[1]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(new=st.lists(st.sampled_from(["cat", "dog", None]), min_size=6, max_size=6))
def test_whatever_is_decided_is_what_is_read_back(tmp_path_factory, new):
    place = tmp_path_factory.mktemp("any")
    names = ["cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png", "dog/2.png", "dog/3.png"]
    root = fill(place / "in", names)
    rows = [(name, name[:3], to or "", "drop" if to is None else "accept") for name, to in zip(names, new, strict=True) if to != name[:3]]
    given = (root, decide(place / "seen.csv", rows), place / "out")
    if not any(new):
        with pytest.raises(InputError, match="drop every sample"):
            apply(given, mode="copy", yes=True)
        return
    apply(given, mode="copy", yes=True)
    content = {(root / name).read_bytes(): to for name, to in zip(names, new, strict=True) if to is not None}
    assert {(place / "out" / name).read_bytes(): label for name, label in labels_in(place / "out")[0].items()} == content


def test_a_hard_link_across_file_systems_names_the_way_out(pets, monkeypatch):
    def crossing(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", crossing)
    with pytest.raises(InputError, match="use --mode copy"):
        apply(pets, mode="hardlink", yes=True)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system")
def test_another_file_system_is_seen_before_anything_is_linked(pets):
    root, table, out = pets
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if os.stat(other).st_dev == os.stat(root).st_dev:
            pytest.skip("no second file system")
        with pytest.raises(InputError, match="hard links cannot cross; use --mode copy"):
            apply((root, table, Path(other) / "out"), mode="hardlink")
        assert not os.listdir(other)
        apply((root, table, Path(other) / "out"), mode="symlink", yes=True)
        assert len(labels_in(Path(other) / "out")[0]) == 5


def test_names_that_are_no_utf8_are_copied_and_not_written_into_tables(tmp_path):
    root = fill(tmp_path / "pets", ["cat/1.png", "dog/1.png"])
    try:
        Path(os.fsdecode(os.fsencode(root) + b"/cat/\xff.png")).write_bytes(png(9))
    except OSError:
        pytest.skip("this file system takes no such name")
    table = decide(tmp_path / "seen.csv", [("cat/1.png", "cat", "dog", "accept")])
    with pytest.raises(InputError, match="is no UTF-8 .* use --mode copy"):
        apply((root, table, tmp_path / "tables"))
    assert not (tmp_path / "tables").exists()
    apply((root, table, tmp_path / "out"), mode="copy", yes=True)
    assert {os.fsencode(name) for name in labels_in(tmp_path / "out")[0]} == {b"cat/\xff.png", b"dog/1.png"} | {
        os.fsencode(name) for name in labels_in(tmp_path / "out")[0] if name.startswith("dog/1-")
    }


def test_files_that_are_gone_and_disks_that_are_full_are_said_before_anything_is_written(tmp_path, monkeypatch):
    root = fill(tmp_path / "flat", ["a.png", "b.png"])
    (root / "labels.csv").write_text("file_name,label\na.png,cat\nb.png,dog\n")
    given = (root, decide(tmp_path / "seen.csv", [("a.png", "cat", "dog", "accept")]), tmp_path / "out")
    monkeypatch.setattr(corrected_folder.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match="room for 10 bytes"):
        apply(given, mode="copy", yes=True)
    (root / "b.png").unlink()
    with pytest.raises(InputError, match="b.png cannot be read"):
        apply(given, mode="copy")
    assert not (tmp_path / "out").exists()


def test_suggestions_of_a_model_have_to_be_sure(tmp_path):
    root = fill(tmp_path / "pets", ["cat/1.png", "cat/2.png", "dog/1.png"])
    table = {"id": ["cat/1.png", "cat/2.png", "dog/1.png"], "given_label": ["cat", "cat", "dog"], "suggested_label": ["dog", "dog", "dog"]}
    pd.DataFrame(table | {"suggested_confidence": [0.95, 0.7, 0.99], "action": ["forget", "forget", "retain"]}).to_csv(tmp_path / "i.csv", index=False)
    result, _, lines = apply((root, tmp_path / "i.csv", tmp_path / "out"))
    assert (result["changed"], result["unsure"]) == (1, 1)
    assert any("1 are a model's suggestions, which nobody has looked at; 1 below 0.9" in line for line in lines)
    assert rows_of(tmp_path / "out/changes.csv")[1:] == [["cat/1.png", "cat", "dog", "accept", "0.95"]]
    result, *_ = apply((root, tmp_path / "i.csv", tmp_path / "all"), min_confidence=0.5, dry_run=True)
    assert result["changed"] == 2 and not (tmp_path / "all").exists()
    with pytest.raises(InputError, match="--min-confidence is 90"):
        apply((root, tmp_path / "i.csv", tmp_path / "all"), min_confidence=90)


def test_what_a_person_decided_stands_in_a_table_of_issues_too(tmp_path):
    root = fill(tmp_path / "pets", ["cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png", "dog/2.png"])
    table = {"id": ["cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png", "dog/2.png"], "given_label": ["cat", "cat", "cat", "dog", "dog"]}
    table |= {"suggested_label": ["cat", "dog", "dog", "dog", "cat"], "suggested_confidence": [0.2, 1.0, 0.95, 0.3, 0.99]}
    table |= {"action": ["review", "forget", "forget", "retain", "forget"], "decided": ["drop", "accept", "", "keep", "unsure"]}
    pd.DataFrame(table).to_csv(tmp_path / "i.csv", index=False)
    result, _, lines = apply((root, tmp_path / "i.csv", tmp_path / "out"))
    assert (result["changed"], result["dropped"], result["kept"], result["unsure"]) == (2, 1, 1, 1)
    assert any("1 are a model's suggestions, which nobody has looked at; 0 below 0.9" in line for line in lines), "the others somebody did look at"
    assert [row[:4] for row in rows_of(tmp_path / "out/changes.csv")[1:]] == [
        ["cat/1.png", "cat", "", "drop"],
        ["cat/2.png", "cat", "dog", "accept"],
        ["cat/3.png", "cat", "dog", "accept"],
    ]
    pd.DataFrame(table | {"decided": ["drop", "acept", "", "", ""]}).to_csv(tmp_path / "i.csv", index=False)
    with pytest.raises(InputError, match="row 1 .* was decided 'acept'; did you mean 'accept'"):
        apply((root, tmp_path / "i.csv", tmp_path / "other"))


def test_a_table_in_the_models_words_is_read_with_the_same_map(tmp_path):
    root = fill(tmp_path / "pets", ["Katze/1.png", "Katze/2.png", "Hund/1.png", "Welpe/1.png"])
    (tmp_path / "map.json").write_text(json.dumps({"Katze": "cat", "Hund": "dog", "Welpe": "dog"}))
    given = (root, decide(tmp_path / "seen.csv", [("Hund/1.png", "dog", "cat", "accept"), ("Katze/2.png", "cat", "", "drop")]), tmp_path / "out")
    with pytest.raises(InputError, match="has the class 'dog'"):
        apply(given)
    result, *_ = apply(given, class_map=tmp_path / "map.json")
    assert (result["changed"], result["dropped"]) == (1, 1)
    assert rows_of(tmp_path / "out/labels_corrected.csv")[1:] == [["Hund/1.png", "Katze"], ["Katze/1.png", "Katze"], ["Welpe/1.png", "Welpe"]]
    several = decide(tmp_path / "other.csv", [("Katze/1.png", "cat", "dog", "accept")])
    with pytest.raises(InputError, match="'dog' stands for Hund, Welpe in the data, and 'Katze/1.png' may be any of them"):
        apply((root, several, tmp_path / "else"), class_map=tmp_path / "map.json")
    (tmp_path / "map.json").write_text(json.dumps({"Kater": "cat"}))
    with pytest.raises(InputError, match="names Kater, which the data does not have"):
        apply(given, class_map=tmp_path / "map.json")


def test_a_finished_copy_needs_no_room(tmp_path, monkeypatch):
    root = fill(tmp_path / "pets", ["cat/1.png", "dog/1.png"])
    given = (root, decide(tmp_path / "seen.csv", [("cat/1.png", "cat", "dog", "accept")]), tmp_path / "out")
    first, *_ = apply(given, mode="copy", yes=True)
    monkeypatch.setattr(corrected_folder.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    again, *_ = apply(given, mode="copy", yes=True)
    assert again == first | {"already_done": True}


def test_digits_are_corrected_as_tables_alone(tmp_path):
    table = decide(tmp_path / "seen.csv", [("train/3", "3", "8", "accept"), ("train/5", "5", "", "drop")])
    result, *_ = apply(("digits", table, tmp_path / "out"))
    rows = rows_of(tmp_path / "out/labels_corrected.csv")
    assert result["samples"] == 1797 and len(rows) == 1797 and rows[0] == ["id", "label"] and rows[4] == ["train/3", "8"]
    assert "train/5" not in {name for name, _ in rows} and not (tmp_path / "out/metadata.csv").exists()
    for mode, sentence in (("copy", "has no files"), ("parquet", "needs a data set that is read as hf:"), ("zip", "unknown mode 'zip'")):
        with pytest.raises(InputError, match=sentence):
            apply(("digits", table, tmp_path / "other"), mode=mode)


FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "unused", "dog"]), "note": datasets.Value("string")})


def hub_folder(root, count=5):
    for part in ("train", "test", "extra"):
        rows = {"image": [{"bytes": png(row), "path": f"{row}.png"} for row in range(count)], "label": [0, 2, 0, 2, 0][:count], "note": list("abcde")[:count]}
        (root / "data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=FEATURES).to_parquet(root / f"data/{part}-00000-of-00001.parquet")
    return root


def test_parquet_keeps_everything_but_the_labels(tmp_path):
    root = hub_folder(tmp_path / "hub")
    table = decide(tmp_path / "seen.csv", [("train/0", "cat", "dog", "accept"), ("train/3", "dog", "", "drop")])
    before = tree(root)
    result, *_ = apply((f"hf:{root}", table, tmp_path / "out"), mode="parquet")
    assert tree(root) == before and result["written"]
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    train = loaded["train"]
    assert set(loaded) == {"train", "test", "extra"} and train.features == FEATURES
    assert train["label"][:] == [2, 2, 0, 0] and train["note"][:] == list("abce") and loaded["test"]["label"][:] == [0, 2, 0, 2, 0]
    assert [np.asarray(image)[0, 0, 0] for image in train["image"]] == [0, 1, 2, 4]
    listing, test = list_hub(str(tmp_path / "out"), tmp_path / "cache", None, None)
    assert [listing.class_names[k] for k in listing.labels] == ["dog", "dog", "cat", "cat"] and len(test) == 5


def test_a_lone_parquet_file_with_names_for_labels(tmp_path):
    rows = {"picture": [{"bytes": png(row), "path": None} for row in range(3)], "kind": ["cat", "dog", "cat"], "other": ["x", "y", "z"]}
    pq.write_table(pa.table(rows), tmp_path / "pets.parquet")
    table = decide(tmp_path / "seen.csv", [("train/2", "cat", "dog", "accept")])
    given = (tmp_path / "pets.parquet", table, tmp_path / "out")
    result, *_ = apply(given, mode="parquet", label_column="kind")
    written = pq.read_table(tmp_path / "out/data/train-00000-of-00001.parquet")
    assert written["kind"].to_pylist() == ["cat", "dog", "dog"] and written["other"].to_pylist() == ["x", "y", "z"]
    assert written["picture"].to_pylist() == rows["picture"] and result["changed"] == 1


def test_a_hub_folder_of_image_files_is_carried_along_whole(tmp_path):
    root = fill(tmp_path / "pets", ["train/cat/1.png", "train/cat/2.png", "train/dog/1.png"])
    table = decide(tmp_path / "seen.csv", [("train/1", "cat", "dog", "accept")])
    apply((f"hf:{root}", table, tmp_path / "out"), mode="parquet")
    written = pq.read_table(tmp_path / "out/data/train-00000-of-00001.parquet")
    assert [cell["bytes"] for cell in written["image"].to_pylist()] == [path.read_bytes() for path in sorted(root.rglob("*.png"))]
    assert str(tmp_path) not in str(written["image"].to_pylist()), "no place on this machine is told"


def test_a_parquet_file_cannot_carry_other_files_along(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(7))
    home = tmp_path / "hub"
    home.mkdir()
    rows = {"image": [{"bytes": png(0), "path": None}, {"bytes": None, "path": str(tmp_path / "secret.png")}], "label": [0, 2], "note": ["a", "b"]}
    pq.write_table(pa.Table.from_pydict(rows, schema=FEATURES.arrow_schema), home / "x.parquet")
    table = decide(tmp_path / "seen.csv", [("train/0", "cat", "dog", "accept")])
    with pytest.raises(InputError, match="lies outside of"):
        apply((home / "x.parquet", table, tmp_path / "out"), mode="parquet")
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_flags_are_the_fields(tmp_path):
    options = parse("apply", Apply, ["seen.csv", "--dataset", "pets", "--out", "o", "--mode", "copy", "--yes", "--min-confidence", "0.5"])
    assert (str(options.issues), options.dataset, str(options.out), options.mode, options.yes, options.min_confidence) == (
        "seen.csv",
        "pets",
        "o",
        "copy",
        True,
        0.5,
    )
    with pytest.raises(InputError, match="contradict"):
        apply(("digits", tmp_path / "x.csv", tmp_path / "o"), yes=True, dry_run=True)


def test_labels_that_have_changed_since_are_refused(pets):
    root, table, _ = pets
    decide(table, [("cat/1.png", "dog", "cat", "accept")])
    with pytest.raises(InputError, match="made for other labels"):
        apply(pets)
    assert torch.equal(list_folder(root)[0].labels, torch.tensor([0, 0, 0, 1, 1, 1]))


def test_a_class_that_loses_all_its_samples_is_said(tmp_path):
    root = fill(tmp_path / "pets", ["cat/1.png", "dog/1.png", "eel/1.png"])
    table = decide(tmp_path / "seen.csv", [("eel/1.png", "eel", "cat", "accept")])
    _, _, lines = apply((root, table, tmp_path / "out"), mode="copy", yes=True)
    assert "note: no sample of the class eel is left" in lines and set(labels_in(tmp_path / "out")[0].values()) == {"cat", "dog"}
