"""Label files of every kind; none may run code, and every refusal names the value and the place."""

import builtins
import json
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fspmu.data.label_files import read_label_file, read_stored_truth
from fspmu.errors import InputError

NAMES = ("ant", "bee", "cow")
LABELS = [0, 2, 1, 1, 0]


def read(path, key=None, names=NAMES):
    return read_label_file(path, key, names).tolist()


def write_text(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.float64, ">i8"])
def test_npy_and_npz(tmp_path, kind):
    array = np.array(LABELS).astype(kind)
    np.save(tmp_path / "l.npy", array)
    np.savez(tmp_path / "one.npz", array)
    np.savez(tmp_path / "two.npz", worse_label=array, other=array[:1])
    assert read(tmp_path / "l.npy") == read(tmp_path / "one.npz") == read(tmp_path / "two.npz", "worse_label") == LABELS
    assert read(tmp_path / "two.npz", "worse") == LABELS
    with pytest.raises(InputError, match="several keys; name one with --label-key: worse_label, other"):
        read(tmp_path / "two.npz")
    with pytest.raises(InputError, match="no key 'worst'; did you mean 'worse_label'"):
        read(tmp_path / "two.npz", "worst")
    with pytest.raises(InputError, match="without keys; leave --label-key out"):
        read(tmp_path / "l.npy", "worse")


@pytest.mark.parametrize(
    "text",
    [
        "0\n2\n1\n1\n0\n",
        "label\n0\n2\n1\n1\n0\n",
        "ant\ncow\nbee\nbee\nant",
        "\ufefflabel\r\nant\r\ncow\r\nbee\r\nbee\r\nant\r\n",
        "label\n0\n2.0\n1\n1e0\n0\n",
        "id,label\na,0\nb,2\nc,1\nd,1\ne,0\n",
    ],
)
def test_csv(tmp_path, text):
    assert read(write_text(tmp_path / "l.csv", text)) == LABELS


def test_csv_columns(tmp_path):
    path = write_text(tmp_path / "l.csv", "first,second\n0,cow\n1,ant\n")
    assert read(path, "second") == [2, 0]
    with pytest.raises(InputError, match="several keys"):
        read(path)
    with pytest.raises(InputError, match="row 2 has 1 columns, the first has 2"):
        read(write_text(path, "a,label\n0,1\n2\n"))


def test_json(tmp_path):
    path = tmp_path / "l.json"
    assert read(write_text(path, json.dumps(LABELS))) == LABELS
    assert read(write_text(path, '{"x": ["ant", "cow"]}')) == [0, 2]
    assert read(write_text(path, '{"aggre_label": [0], "random_label2": [1]}'), "random2") == [1]


def test_names_before_numbers(tmp_path):
    path = tmp_path / "l.json"
    assert read(write_text(path, '["10", "2"]'), names=("10", "2")) == [0, 1]
    assert read(write_text(path, "[1, 0]"), names=("10", "2")) == [1, 0]


@pytest.mark.parametrize(("text", "expected"), [("0\n1\n2", [0, 1, 2]), ("1\n2\n1\n", [0, 1, 0]), ("3\n2\n1", [2, 1, 0]), ("0\n0", [0, 0])])
def test_a_file_is_all_names_or_all_ids(tmp_path, text, expected):
    assert read(write_text(tmp_path / "l.csv", f"label\n{text}"), names=("1", "2", "3")) == expected


@pytest.mark.parametrize(
    ("names", "cells", "message"),
    [
        (NAMES, ["ant", "2", "bee"], "2 in row 1 is a class id and ant in row 0 a class name"),
        (NAMES, [1, "ant"], "1 in row 0 is a class id and ant in row 1 a class name"),
        (("1", "2", "3"), ["1", "0", "3"], "0 in row 1 is a class id and 3 in row 2 a class name"),
        (("1", "2", "3"), ["0", "4", "3"], r"4 in row 1 \(counted from 0\) is no class; ids run from 0 to 2, names are 1, 2, 3"),
    ],
)
def test_names_and_ids_in_one_file_are_refused(tmp_path, names, cells, message):
    with pytest.raises(InputError, match=message) as caught:
        read(write_text(tmp_path / "l.json", json.dumps(cells)), names=names)
    assert ("write all labels as names, or all as ids" in str(caught.value)) == ("no class" not in message)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        {"worse_label": np.array(LABELS), "clean_label": np.array(LABELS[::-1])},
        {"worse_label": torch.tensor(LABELS)},
        {"worse_label": LABELS, "note": "made by hand", "share": np.float64(0.4), "count": np.int64(5)},
        {"worse_label": np.array([NAMES[label] for label in LABELS])},
        {"worse_label": np.array([NAMES[label] for label in LABELS], dtype=object)},
        {"worse_label": np.array(LABELS, dtype=np.uint8)},
    ],
)
def test_pt(tmp_path, content, zipped):
    torch.save(content, tmp_path / "l.pt", _use_new_zipfile_serialization=zipped)
    assert read(tmp_path / "l.pt", "worse") == LABELS
    truth = read_stored_truth(tmp_path / "l.pt", NAMES)
    assert truth.tolist() == LABELS[::-1] if "clean_label" in content else truth is None


def test_pt_of_numpy_1(tmp_path):
    """Files from before numpy 2 name its older module."""
    torch.save({"worse_label": np.array(LABELS)}, tmp_path / "new.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "new.pt").read_bytes()
    for new, old in ((b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"), (b"numpy._core.multiarray", b"numpy.core.multiarray")):
        content = content.replace(new, old)
    (tmp_path / "old.pt").write_bytes(content)
    assert b"numpy._core" not in content and read(tmp_path / "old.pt", "worse") == LABELS


@pytest.mark.parametrize("zipped", [True, False])
def test_pt_alone(tmp_path, zipped):
    torch.save(np.array(LABELS), tmp_path / "l.pt", _use_new_zipfile_serialization=zipped)
    assert read(tmp_path / "l.pt") == LABELS


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile(marker):
    return {
        "posix.system": Call(os.system, f"touch {marker}"),
        "builtins.exec": Call(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "open": Call(open, str(marker), "w"),
        "numpy": Call(np.save, str(marker), np.zeros(1)),
        "_pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {marker}"))),
    }


@pytest.mark.parametrize("name", list(hostile("x")))
@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_hostile_pt_does_not_run(tmp_path, name, form):
    marker = tmp_path / "ran"
    content = {"worse_label": np.array(LABELS), "extra": hostile(marker)[name]}
    if form == "plain":
        (tmp_path / "l.pt").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, tmp_path / "l.pt", _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError) as caught:
        read(tmp_path / "l.pt", "worse")
    if form != "plain":
        assert "only arrays are allowed in it" in str(caught.value) and name.split(".")[-1] in str(caught.value)
    assert not list(tmp_path.glob("ran*"))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_hostile_numpy_does_not_run(tmp_path, suffix):
    marker = tmp_path / "ran"
    array = np.array([Call(os.system, f"touch {marker}")], dtype=object)
    (np.save if suffix == ".npy" else np.savez)(tmp_path / f"l{suffix}", array)
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / f"l{suffix}")
    (tmp_path / f"l{suffix}").write_bytes(pickle.dumps(Call(os.system, f"touch {marker}")))
    with pytest.raises(InputError):
        read(tmp_path / f"l{suffix}")
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".json", ".pt", ".pth"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04nonsense\xff\xff", b"PK\x03\x04broken", b"[" * 100_000])
def test_damaged_files(tmp_path, suffix, content):
    (tmp_path / f"l{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=f"l{suffix}"):
        read(tmp_path / f"l{suffix}")


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_pt(tmp_path, zipped):
    torch.save({"worse_label": np.arange(1000) % 3}, tmp_path / "l.pt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "l.pt").write_bytes((tmp_path / "l.pt").read_bytes()[:700])
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "l.pt", "worse")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[0, 3]", r"3 in row 1 \(counted from 0\) is no class; ids run from 0 to 2, names are ant, bee, cow"),
        ("[0, -1, 1]", "-1 in row 1 "),
        ('["ant", "bea"]', "bea in row 1 "),
        ("[0, 1.5]", "1.5 in row 1 "),
        ("[0, NaN]", "nan in row 1 "),
        ("[0, Infinity]", "inf in row 1 "),
        ("[0, null]", "None in row 1 "),
        ("[0, 36893488147419103232]", "36893488147419103232 in row 1 "),
        ("[]", "one for each image"),
        ("[[0], [1]]", r"shape \(2, 1\)"),
        ("[[0], [1, 2]]", "no list"),
        ("3", r"shape \(\)"),
        ("{}", "several keys|holds"),
    ],
)
def test_values_that_are_no_class(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read(write_text(tmp_path / "l.json", content))


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "gone.npy")
    with pytest.raises(InputError, match="has the suffix .txt; known: .npy, .npz, .csv, .json, .pt"):
        read(write_text(tmp_path / "l.txt", "0"))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.sampled_from([".npy", ".csv", ".json", ".pt"]), st.booleans())
def test_every_kind_reads_back(tmp_path_factory, labels, suffix, as_names):
    path = tmp_path_factory.mktemp("labels") / f"l{suffix}"
    values = [NAMES[label] for label in labels] if as_names else labels
    if suffix == ".npy":
        np.save(path, np.array(values))
    elif suffix == ".csv":
        path.write_text("\n".join(map(str, values)))
    elif suffix == ".json":
        path.write_text(json.dumps(values))
    else:
        torch.save({"label": np.array(values)}, path)
    assert read(path) == labels
