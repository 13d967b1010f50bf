"""The table of issues as cleanlab takes it, with the real package."""

import io
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.detection.given_split import read_forget_set
from fspmu.detection.label_issues import label_issues, opinions_of, to_cleanlab
from fspmu.errors import InputError

NAMES = ("owl", "newt", "asp")


def make(count=90, seed=0, names=NAMES):
    """Return points, images with a tenth of wrong labels, their true labels, probabilities, and our table that knows the wrong ones."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % len(names)
    wrong = torch.rand(count, generator=draw) < 0.1
    given_labels = torch.where(wrong, (truth + 1) % len(names), truth)
    points = torch.randn(count, 2, generator=draw) * 0.3 + torch.stack([truth == 0, truth == 1], 1) * 3
    probabilities = torch.softmax(5 * torch.nn.functional.one_hot(truth, len(names)) + torch.rand(count, len(names), generator=draw), 1)
    images = Images(torch.zeros(count, 3, 2, 2, dtype=torch.uint8), given_labels, names, [f"{row}.png" for row in range(count)])
    split = Split(~wrong, wrong, torch.where(wrong, 0.05, 0.95))
    return points.numpy(), images, truth, probabilities.double(), label_issues(images, split, opinions_of(probabilities, given_labels))


def test_shape_of_a_table_for_cleanlab():
    _, images, truth, _, table = make()
    theirs = to_cleanlab(table, NAMES)
    assert isinstance(theirs.index, pd.RangeIndex) and list(theirs) == ["is_label_issue", "label_quality", "given_label", "predicted_label"]
    assert [str(kind) for kind in theirs.dtypes] == ["bool", "float64", "int64", "int64"]
    assert theirs["given_label"].tolist() == images.given_labels.tolist() and theirs["predicted_label"].tolist() == truth.tolist()
    assert theirs["label_quality"].tolist() == table["label_score"].tolist()
    assert theirs["label_quality"][theirs["is_label_issue"]].max() < theirs["label_quality"][~theirs["is_label_issue"]].min(), "low = bad"
    back = read_forget_set(theirs, images.ids, None, images.given_labels, NAMES)
    assert back.forget.tolist() == table["forget"].tolist() and back.clean_probability.tolist() == pytest.approx(table["label_score"].tolist())


def test_cleanlab_trains_without_our_issues():
    classification = pytest.importorskip("cleanlab.classification")
    from sklearn.linear_model import LogisticRegression

    points, images, truth, _, table = make()
    labels = images.given_labels.numpy()
    theirs = to_cleanlab(table.sample(frac=1, random_state=0).sort_index(), NAMES)
    learner = classification.CleanLearning(LogisticRegression()).fit(points, labels, label_issues=theirs)
    assert learner.get_label_issues()["is_label_issue"].tolist() == table["is_label_issue"].tolist()
    assert (learner.predict(points) == truth.numpy()).mean() > 0.95
    with pytest.raises(ValueError, match="given_label"):
        classification.CleanLearning(LogisticRegression()).fit(points, truth.numpy(), label_issues=theirs)


def test_functions_of_cleanlab_take_our_labels_and_probabilities():
    filters, rank = pytest.importorskip("cleanlab.filter"), pytest.importorskip("cleanlab.rank")
    import cleanlab.dataset

    _, images, truth, probabilities, table = make()
    theirs = to_cleanlab(table, NAMES)
    labels, wrong = theirs["given_label"].to_numpy(), (images.given_labels != truth).numpy()
    found = filters.find_label_issues(labels, probabilities.numpy())
    assert (found == wrong).mean() > 0.95
    assert read_forget_set(found, images.ids, None, images.given_labels, NAMES).forget.tolist() == found.tolist()
    ranked = filters.find_label_issues(labels, probabilities.numpy(), return_indices_ranked_by="self_confidence")
    assert read_forget_set(ranked, images.ids, None, images.given_labels, NAMES).forget.tolist() == found.tolist()
    quality = rank.get_label_quality_scores(labels, probabilities.numpy())
    assert quality[wrong].max() < quality[~wrong].min()
    summary = cleanlab.dataset.health_summary(labels, probabilities.numpy(), class_names=list(NAMES), verbose=False)
    assert 0.8 < summary["overall_label_health_score"] < 1
    classes = cleanlab.dataset.rank_classes_by_label_quality(labels, probabilities.numpy(), class_names=list(NAMES))
    assert set(classes["Class Name"]) == set(NAMES)


def test_a_table_of_cleanlab_is_a_forget_set():
    classification = pytest.importorskip("cleanlab.classification")
    from sklearn.linear_model import LogisticRegression

    points, images, truth, _, _ = make()
    found = classification.CleanLearning(LogisticRegression(), verbose=False).find_label_issues(points, images.given_labels.numpy())
    for source in (found, found.sort_values("label_quality"), found["is_label_issue"]):
        split = read_forget_set(source, images.ids, None, images.given_labels, NAMES)
        assert split.forget.tolist() == found["is_label_issue"].tolist()
    assert (split.forget == (images.given_labels != truth)).float().mean() > 0.95


@settings(max_examples=20)
@given(names=st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=5, unique=True), seed=st.integers(0, 99))
def test_labels_of_any_name_become_their_numbers(names, seed):
    _, images, _, _, table = make(12, seed, tuple(names))
    assert to_cleanlab(table, names)["given_label"].tolist() == images.given_labels.tolist()


def test_a_label_that_a_reader_of_files_turned_into_something_else_is_named():
    _, _, _, _, table = make(9, names=("1", "2", "NA"))
    file = io.StringIO(table.to_csv(index=False))
    with pytest.raises(InputError, match="with every label as text"):
        to_cleanlab(pd.read_csv(file), ("1", "2", "NA"))
    file.seek(0)
    text = pd.read_csv(file, dtype={"given_label": str, "predicted_label": str}, keep_default_na=False)
    assert to_cleanlab(text, ("1", "2", "NA"))["given_label"].nunique() == 3
    assert np.isfinite(to_cleanlab(text, ("1", "2", "NA"))["label_quality"]).all()


def test_cleanlab_is_not_needed(monkeypatch):
    _, images, _, _, table = make(12)
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    assert len(read_forget_set(to_cleanlab(table, NAMES), images.ids, None, images.given_labels, NAMES).forget) == 12


def test_what_nobody_judged_is_no_issue_and_may_be_read_again():
    _, images, _, probabilities, _ = make(count=9)
    aside, wrong = torch.arange(9) >= 7, torch.arange(9) < 2
    split = Split(~wrong & ~aside, wrong, torch.where(wrong, 0.1, 0.9).masked_fill(aside, torch.nan))
    table = label_issues(images, split, opinions_of(probabilities, images.given_labels))
    assert table["is_label_issue"].tolist() == wrong.tolist() and table["action"].tolist() == ["forget"] * 2 + ["retain"] * 5 + ["review"] * 2
    assert (table["suggested_label"] == table["given_label"])[aside.numpy()].all()
    text = pd.read_csv(io.StringIO(table.to_csv(index=False)), dtype=str, keep_default_na=False)
    back = read_forget_set(text, images.ids, None, images.given_labels, NAMES)
    assert back.forget.tolist() == wrong.tolist() and back.retain.tolist() == split.retain.tolist()
    assert back.clean_probability.isnan().tolist() == aside.tolist()
