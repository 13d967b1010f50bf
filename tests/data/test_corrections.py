"""Decisions on labels from files: a person's, and a model's that are sure enough."""

import csv
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.data.corrections import DECISIONS, read_corrections
from fspmu.data.issue_tables import Samples, class_reader, places_of, read_table
from fspmu.errors import InputError
from fspmu.results.cells import prefixed, unprefixed

NAMES = ("ant", "bee", "cow")
GIVEN = torch.tensor([0, 1, 2, 0])
IDS = ["ant/0.png", "bee/1.png", "cow/2.png", "ant/3.png"]
HEADER = "id,given_label,new_label,decision\n"


def read(path, text=None, names=NAMES, **options):
    if text is not None:
        path = path / "seen.csv"
        path.write_text(text)
    return read_corrections(path, names, IDS, GIVEN, **options)


def issues(**columns):
    """Our table of issues: the first two look wrong, the third is to be reviewed, the last is fine."""
    table = {
        "is_label_issue": [True, True, True, False],
        "given_label": ["ant", "bee", "cow", "ant"],
        "suggested_label": ["bee", "cow", "ant", "cow"],
        "suggested_confidence": [0.95, 0.6, 0.9, 0.99],
        "action": ["forget", "forget", "review", "retain"],
        "id": IDS,
    }
    return pd.DataFrame(table | columns)


def test_decisions(tmp_path):
    text = HEADER + "cow/2.png,cow,,drop\nant/0.png,ant,bee, Accept \nbee/1.png,bee,cow,keep\nant/3.png,ant,,\n"
    found = read(tmp_path, text)
    assert [(each.id, each.new_label, each.decision, each.row) for each in found] == [
        ("cow/2.png", None, "drop", 2),
        ("ant/0.png", "bee", "accept", 0),
        ("bee/1.png", None, "keep", 1),
        ("ant/3.png", None, "unsure", 3),
    ]
    assert not any(each.by_model for each in found) and {each.decision for each in found} == set(DECISIONS)


def test_classes_by_number_and_rows_by_path(tmp_path):
    text = "path,given_label,new_label,decision,confidence\n/d/1.png,1,2,accept,0.25\n/d/0.png,0,1,accept,\n"
    found = read(tmp_path, text, paths=[f"/d/{row}.png" for row in range(4)])
    assert [(each.row, each.new_label, each.confidence) for each in found] == [(1, "cow", 0.25), (0, "bee", None)]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_suggestions_of_a_model_that_are_sure_enough(tmp_path, suffix):
    path = tmp_path / f"label_issues.{suffix}"
    if suffix == "csv":
        issues().to_csv(path, index=False)
    else:
        issues().to_parquet(path)
    found = read(path)
    assert [(each.row, each.new_label, each.decision, each.confidence) for each in found] == [
        (0, "bee", "accept", 0.95),
        (1, None, "unsure", 0.6),
        (2, "ant", "accept", 0.9),
    ]
    assert all(each.by_model for each in found)
    assert [each.decision for each in read(path, min_confidence=0.0)] == ["accept"] * 3
    assert [each.decision for each in read(path, min_confidence=1.0)] == ["unsure"] * 3


def test_a_suggestion_of_the_given_label_changes_nothing(tmp_path):
    issues(suggested_label=["ant", "bee", "cow", "ant"]).to_csv(tmp_path / "i.csv", index=False)
    assert read(tmp_path / "i.csv") == []


@pytest.mark.parametrize(
    "text, sentence",
    [
        (HEADER + "ant/0.png,ant,bees,accept\n", "has the class 'bees'; did you mean 'bee'"),
        (HEADER + "ant/0.png,ant,../../etc,accept\n", r"has the class '../../etc'; known: ant, bee, cow"),
        (HEADER + "ant/9.png,ant,bee,accept\n", "the id 'ant/9.png', which no sample has"),
        (HEADER + "ant/0.png,ant,bee,accept\nant/0.png,ant,cow,accept\n", "more than one row for the id 'ant/0.png'"),
        (HEADER + "ant/0.png,cow,bee,accept\n", "made for other labels: 1 of 1 given labels differ, the first of 'ant/0.png', 'cow' there and 'ant' here"),
        (HEADER + "ant/0.png,ant,,accept\n", "accepts no new_label"),
        (HEADER + "ant/0.png,ant,ant,accept\n", "which 'ant/0.png' has already"),
        (HEADER + "ant/0.png,ant,bee,acept\n", "did you mean 'accept'"),
        ("id,label\nant/0.png,bee\n", "needs the columns decision and new_label, or those of a label_issues.csv, and has id, label"),
        ("id,given_label,new_label,decision,confidence\nant/0.png,ant,bee,accept,2\n", "must be a number from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(tmp_path, text, sentence):
    with pytest.raises(InputError, match=sentence):
        read(tmp_path, text)


def test_issues_of_other_labels_or_with_odd_actions_are_refused(tmp_path):
    issues(given_label=["ant", "bee", "ant", "ant"]).to_csv(tmp_path / "i.csv", index=False)
    with pytest.raises(InputError, match="1 of 4 given labels differ"):
        read(tmp_path / "i.csv")
    issues(action="forgot").to_csv(tmp_path / "i.csv", index=False)
    with pytest.raises(InputError, match="did you mean 'forget'"):
        read(tmp_path / "i.csv")
    with pytest.raises(InputError, match="is no file"):
        read(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "absent.csv")


def test_many_classes_are_not_all_listed(tmp_path):
    names = tuple(f"class {number}" for number in range(500))
    with pytest.raises(InputError, match=r"did you mean 'class 48\d?'\? known: class 0, .* and 480 more") as raised:
        read(tmp_path, HEADER.replace("given_label,", "") + "ant/0.png,class 48x,accept\n", names)
    assert len(str(raised.value)) < 500


@given(cell=st.text(max_size=8) | st.from_regex(r"\A'{0,3}[=+\-@].{0,3}\Z"))
def test_an_apostrophe_keeps_formulas_out_and_can_be_taken_back(cell):
    assert unprefixed(prefixed(cell)) == cell
    assert prefixed(cell)[:1] not in ("=", "+", "-", "@")


def test_only_an_apostrophe_before_a_formula_is_taken_off():
    cells = ["'=1", "'-a", "'tis", "''", "'", "=1", "a'=b", "'+1", "'@x"]
    assert [unprefixed(cell) for cell in cells] == ["=1", "-a", "'tis", "''", "'", "=1", "a'=b", "+1", "@x"]


@settings(max_examples=25)
@given(data=st.data())
def test_any_id_and_class_survives_a_csv_file(tmp_path_factory, data):
    text = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=6)
    names = data.draw(st.lists(text, min_size=2, max_size=4, unique=True))
    ids = data.draw(st.lists(text, min_size=2, max_size=5, unique=True))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, len(names) - 1), min_size=len(ids), max_size=len(ids))))
    order = data.draw(st.permutations(range(len(ids))))
    path = Path(tmp_path_factory.mktemp("any")) / "table.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "given_label", "decision"])
        writer.writerows([prefixed(ids[row]), prefixed(names[int(labels[row])]), "keep"] for row in order)
    samples, table = Samples(ids, None, labels, names), read_table(path)
    assert places_of(table, samples, "it").tolist() == list(order)
    assert [class_reader(table, places_of(table, samples, "it"), samples, "it").read(value, "") for value in table["given_label"]] == labels[
        list(order)
    ].tolist()
    assert [each.row for each in read_corrections(path, names, ids, labels)] == list(order)


def test_what_a_page_says_of_images_apart_is_left_out(tmp_path):
    found = read(tmp_path, HEADER + "evaluation: ant/0.png,ant,bee,accept\nant/0.png,ant,,keep\n")
    assert [(each.id, each.decision) for each in found] == [("ant/0.png", "keep")]
    ours = read_corrections(tmp_path / "seen.csv", NAMES, ["evaluation: ant/0.png", *IDS[1:], "ant/0.png"], torch.tensor([0, 1, 2, 0, 0]))
    assert [each.decision for each in ours] == ["accept", "keep"], "an image may be called so itself"
