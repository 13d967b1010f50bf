"""A forget set that somebody else made: every form and file it comes in, and what does not fit said in words."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.detection.given_split import read_forget_set
from fspmu.detection.label_issues import label_issues, opinions_of, write_issues
from fspmu.errors import DetectionWarning, InputError

NAMES = ("ant", "bee", "cow")
GIVEN = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
IDS = [f"{NAMES[label]}/{row}.png" for row, label in enumerate(GIVEN.tolist())]
PATHS = [f"/data/{name}" for name in IDS]
WRONG = [1, 4]
MASK = np.isin(np.arange(8), WRONG)


def read(source, names=NAMES, labels=GIVEN, ids=IDS, paths=PATHS):
    return read_forget_set(source, ids, paths, labels, names)


def rows(mask):
    return mask.nonzero().flatten().tolist()


def cleanlab_table():
    return pd.DataFrame({"is_label_issue": MASK, "label_quality": np.linspace(0.1, 0.8, 8), "given_label": GIVEN.numpy(), "predicted_label": 0})


def datalab_table():
    names = [NAMES[label] for label in GIVEN]
    return pd.DataFrame({"is_label_issue": MASK, "label_score": np.linspace(0.1, 0.8, 8), "given_label": names, "predicted_label": "ant"})


@pytest.mark.parametrize(
    "source",
    [
        MASK,
        torch.from_numpy(MASK),
        MASK.tolist(),
        pd.Series(MASK),
        pd.Series(MASK, dtype="boolean"),
        pd.Series(MASK).sort_values(ascending=False, kind="stable"),
        np.array(WRONG),
        np.array(WRONG[::-1], dtype=np.uint8),
        torch.tensor(WRONG),
        set(WRONG),
        [IDS[row] for row in WRONG],
        np.array([IDS[row] for row in WRONG]),
        np.array([IDS[row] for row in WRONG], dtype=object),
        pd.DataFrame({"id": [IDS[row] for row in WRONG]}),
        pd.DataFrame({"path": [PATHS[row] for row in WRONG], "forget": 1}),
        pd.DataFrame({"file_name": [IDS[row] for row in WRONG], "forget": "yes"}),
        pd.DataFrame({"is_label_issue": MASK, "id": IDS}).set_index("id").iloc[::-1],
    ],
    ids=lambda source: type(source).__name__,
)
def test_masks_indices_ids_and_tables_mean_the_same(source):
    split = read(source)
    assert rows(split.forget) == WRONG and rows(split.retain) == [0, 2, 3, 5, 6, 7]
    assert split.clean_probability.tolist() == (~MASK).astype(float).tolist()


@pytest.mark.parametrize("table", [cleanlab_table(), datalab_table()], ids=["CleanLearning", "Datalab"])
@pytest.mark.parametrize("turn", [lambda table: table, lambda table: table.sort_values(table.columns[1], ascending=False), lambda table: table[1:6]])
def test_tables_of_cleanlab_keep_their_quality_and_their_index(table, turn):
    turned = turn(table)
    split = read(turned)
    assert rows(split.forget) == WRONG
    named = turned.index.to_numpy(copy=True)
    assert split.clean_probability[named].tolist() == pytest.approx(turned[table.columns[1]].tolist())
    others = np.setdiff1d(np.arange(8), named)
    assert (split.clean_probability[others] == 1).all() and split.retain[others].all()


@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize("index", [True, False])
def test_tables_of_cleanlab_from_csv(tmp_path, numbers, index):
    table = cleanlab_table() if numbers else datalab_table()
    table.to_csv(tmp_path / "issues.csv", index=index)
    split = read(tmp_path / "issues.csv")
    assert rows(split.forget) == WRONG and split.clean_probability.tolist() == pytest.approx(np.linspace(0.1, 0.8, 8).tolist())


def test_a_sorted_csv_goes_by_its_index_and_a_headless_one_by_its_ids(tmp_path):
    table = cleanlab_table().sort_values("label_quality", ascending=False)
    table.to_csv(tmp_path / "sorted.csv")
    assert rows(read(tmp_path / "sorted.csv").forget) == WRONG
    table.assign(id=[IDS[row] for row in table.index]).to_csv(tmp_path / "named.csv", index=False)
    assert rows(read(tmp_path / "named.csv").forget) == WRONG
    table.to_parquet(tmp_path / "sorted.parquet")
    assert rows(read(tmp_path / "sorted.parquet").forget) == WRONG


def test_given_labels_settle_whether_classes_are_names_or_numbers(tmp_path):
    names = ("2", "0", "1")  # as a string sort of other people's would never have them
    by_number, by_name = cleanlab_table(), cleanlab_table().assign(given_label=[names[label] for label in GIVEN])
    for table in (by_number, by_name):
        table.to_csv(tmp_path / "issues.csv", index=False)
        assert rows(read(tmp_path / "issues.csv", names=names).forget) == WRONG
        assert rows(read(table, names=names).forget) == WRONG


@settings(max_examples=25)
@given(
    data=st.data(),
    names=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=6), min_size=2, max_size=4, unique=True),
)
def test_our_own_table_comes_back_as_the_split_that_made_it(tmp_path_factory, data, names):
    count = data.draw(st.integers(3, 9))
    masks = st.lists(st.booleans(), min_size=count, max_size=count)
    forget, retain = torch.tensor(data.draw(masks)), torch.tensor(data.draw(masks))
    retain[:2] = True
    labels = torch.tensor(data.draw(st.lists(st.integers(0, len(names) - 1), min_size=count, max_size=count)))
    probabilities = torch.full((count, len(names)), 1 / len(names))
    ids = [f"=1+{row}.png" if row % 2 else f"'-{row},\n.png" for row in range(count)]
    images = Images(torch.zeros(count, 3, 2, 2, dtype=torch.uint8), labels, tuple(names), ids)
    made = Split(retain, forget, torch.linspace(0, 1, count, dtype=torch.float64))
    table = label_issues(images, made, opinions_of(probabilities, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DetectionWarning)
        split = read_forget_set(table.sample(frac=1, random_state=0), ids, None, labels, names)
    assert torch.equal(split.forget, forget) and torch.equal(split.retain, retain)
    assert torch.allclose(split.clean_probability, made.clean_probability)


def test_our_table_from_a_file_names_like_missing_values_are_names(tmp_path):
    names = ("NA", "null", "1e3")
    images = Images(torch.zeros(8, 3, 2, 2, dtype=torch.uint8), GIVEN, names, IDS, PATHS)
    forget = torch.from_numpy(MASK)
    table = label_issues(images, Split(~forget, forget, (~forget).double()), opinions_of(torch.full((8, 3), 1 / 3), GIVEN))
    write_issues(table, tmp_path / "label_issues.csv")
    assert rows(read(tmp_path / "label_issues.csv", names=names).forget) == WRONG


def test_decisions_of_a_person(tmp_path):
    (tmp_path / "seen.csv").write_text(
        f"id,given_label,new_label,decision\n{IDS[1]},bee,ant,accept\n{IDS[2]},cow,,drop\n{IDS[3]},ant,,unsure\n{IDS[4]},bee,,keep\n{IDS[6]},ant,,\n"
    )
    split = read(tmp_path / "seen.csv")
    assert rows(split.forget) == [1, 2] and rows(split.retain) == [0, 4, 5, 7]
    assert split.clean_probability.tolist() == [1, 0, 0, 0.5, 1, 1, 0.5, 1]


@pytest.mark.parametrize(
    "name, content",
    [
        ("mask.npy", MASK),
        ("rows.npy", np.array(WRONG)),
        ("ids.npy", np.array([IDS[row] for row in WRONG])),
        ("mask.json", MASK.tolist()),
        ("rows.json", WRONG),
        ("ids.json", [IDS[row] for row in WRONG]),
        ("rows.csv", "1\n4\n"),
        ("titled.csv", "index\n4\n1\n"),
        ("mask.csv", "".join(f"{value}\n" for value in MASK)),
        ("marked.csv", "is_label_issue\n" + "".join(f"{int(value)}\n" for value in MASK)),
        ("ids.csv", f"id\n{IDS[1]}\n{IDS[4]}\n"),
        ("bom.csv", f"\ufeffid,forget\n{IDS[1]},TRUE\n{IDS[4]},1\n{IDS[5]},no\n"),
    ],
)
def test_files(tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_text(content if name.endswith(".csv") else json.dumps(content))
    split = read(str(path))
    assert rows(split.forget) == WRONG and rows(split.retain) == [0, 2, 3, 5, 6, 7]


@pytest.mark.parametrize(
    "source, sentence",
    [
        (MASK[:7], "a mask of 7 for 8 samples"),
        (MASK.astype(int), "has the index 0 6 times.* not of 0 and 1"),
        ([0, 8], "has the index 8, but the 8 samples are counted from 0 to 7"),
        ([-1], "has the index -1"),
        ([2**70], "which no data set reaches"),
        ([3, 3], "has the index 3 2 times; name each sample once"),
        ([0.5], "a list of float"),
        ([True, 1], "a list of bool, int"),
        (np.zeros(8), "holds float64 values"),
        (np.zeros((8, 1), dtype=bool), r"shape \(8, 1\)"),
        (["ant/9.png"], "the id 'ant/9.png', which no sample has; this data set has ids like ant/0.png, bee/1.png"),
        ([IDS[0], IDS[0]], "more than one row for the id 'ant/0.png'"),
        (object(), "of type object; give a table, a mask"),
        ({"forget": [1]}, "of type dict"),
        (list(range(8)), "leaves 0 of 8 samples to learn from"),
        (pd.DataFrame({"is_label_issue": MASK[:5]}), "has 5 rows for 8 samples; give it a column id or path"),
        (pd.DataFrame({"is_label_issue": ["maybe"] * 8}), "has 'maybe' under is_label_issue, which is neither true nor false"),
        (pd.DataFrame({"label_score": np.ones(8)}), "needs a column forget or is_label_issue"),
        (cleanlab_table().assign(label_quality=7.0), "has '7.0' under label_quality; it must be a number from 0 to 1, low = bad"),
        (cleanlab_table().assign(label_quality=np.nan), "has '' under label_quality"),
        (
            cleanlab_table().assign(given_label=[1, *GIVEN[1:].tolist()]),
            "made for other labels: 1 of 8 given labels differ, the first of 'ant/0.png', '1' there and 'ant' here",
        ),
        (cleanlab_table().assign(given_label=5), "row 0 .* has the class '5'"),
        (datalab_table().assign(given_label="bees"), "did you mean 'bee'"),
        (pd.DataFrame({"path": ["/elsewhere/x.png"], "forget": [True]}), "the path '/elsewhere/x.png', which no sample has; .* like /data/ant/0.png"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(source, sentence):
    with pytest.raises(InputError, match=sentence):
        read(source)


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("absent.csv", None, "does not exist"),
        ("empty.csv", b"", "is empty"),
        ("uneven.csv", b"id,forget\na\n", "row 1 has 1 columns, the first has 2"),
        ("twice.csv", b"id,id\na,b\n", "names the column 'id' more than once"),
        ("latin.csv", b"id\n\xff\n", "no CSV file in UTF-8"),
        ("words.csv", b"hello\nworld\n", "has the one column of 'hello'"),
        ("broken.json", b"[1,", "cannot be read"),
        ("broken.npy", b"\x93NUMPY", "cannot be read"),
        ("broken.parquet", b"PAR1", "cannot be read"),
        ("pickle.pkl", b"", "has the suffix .pkl; known: .csv, .json, .npy, .parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read(tmp_path / name)


def test_a_pickled_array_is_not_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").write_text, ("",))

    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "trap.npy")
    assert not (tmp_path / "sprung").exists()


def test_nothing_to_forget_and_a_class_that_would_be_lost_are_said():
    with pytest.warns(DetectionWarning, match="nothing will be forgotten"):
        split = read([])
    assert split.retain.all() and not split.forget.any()
    with pytest.warns(DetectionWarning, match="no sample of the class cow"):
        read(np.array([2, 5]))
