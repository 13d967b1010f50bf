"""`fspmu report`, and what a person decided on its page, carried back into a repair."""

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fspmu.cli import run_command
from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.errors import InputError
from fspmu.experiments import reporting
from fspmu.report.payload import build_payload
from fspmu.report.reviews import write_review
from fspmu.report.run_files import read_issues
from fspmu.stages.deciding import WORDS, Decided, decide_split, read_decided
from fspmu.stages.relabelling import with_new_labels
from memorised_digits import NAMES, digits, write_folder
from memorised_digits import repair as repair_own
from repaired_digits import repair, repaired, trained


def decisions(folder, **by_word):
    """Return a review of suspects: so many of each word, in this order."""
    items, classes = (payload := build_payload(folder))["items"], payload["classes"]
    rows = []
    for word, count in by_word.items():
        for _ in range(count):
            at = len(rows)
            given, other = classes[items["given"][at]], classes[(items["given"][at] + 1) % len(classes)]
            new = {"accept": other, "keep": given}.get(word)
            rows.append({"id": items["id"][at], "path": "", "given_label": given, "new_label": new, "decision": word, "reviewer": "=me", "time": ""})
    return {"schema": 1, "key": payload["key"], "decisions": rows}


def test_a_repair_ends_with_its_page(capsys):
    assert (repaired() / "report.html").stat().st_size < 10_000_000
    run_command(["report", str(repaired()), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["report"] == str(repaired() / "report.html") and said["bytes"] > 100_000
    assert "digits: fspmu" in (repaired() / "report.html").read_text()


def test_a_page_that_cannot_be_written_costs_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "render_page", lambda payload: 1 / 0)
    folder = repair(tmp_path / "out")
    assert (folder / "done").exists() and not (folder / "report.html").exists()
    assert "no report was written (ZeroDivisionError" in capsys.readouterr().err


def test_what_is_wrong_about_the_command_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        run_command(["report", str(tmp_path)])
    with pytest.raises(InputError, match="is a folder; name the file"):
        run_command(["report", str(repaired()), "--out", str(tmp_path)])


def test_a_persons_word_beats_the_detectors(tmp_path):
    found = decisions(repaired(), accept=3, keep=2, drop=2, unsure=1)
    write_review(tmp_path, found)
    folder = repair(tmp_path / "out", corrections=tmp_path / "corrections.csv")
    table = read_issues(folder / "label_issues.csv").set_index("id")
    record, split = json.loads((folder / "record.json").read_text()), load_file(folder / "split.safetensors")
    assert record["detection"]["corrections"] == {"accept": 3, "keep": 2, "drop": 2, "unsure": 1}
    for row in found["decisions"]:
        line = table.loc[row["id"]]
        expected = {"accept": ("forget", False, True), "keep": ("retain", True, False), "drop": ("review", False, False)}.get(row["decision"])
        assert line["decided"] == row["decision"]
        if expected is not None:
            assert (line["action"], line["retain"], line["forget"]) == expected
        if row["decision"] == "accept":
            assert line["suggested_label"] == row["new_label"] and line["suggested_confidence"] == 1
    assert (table["decided"] == "").sum() == len(table) - 8 and list(table.columns)[-1] == "decided"
    assert split["forget"].sum() == record["detection"]["forget"] == table["forget"].sum()
    labels = load_file(folder / "labels.safetensors")
    wrong, called = labels["given"] != labels["true"], split["forget"].astype(bool) | ~split["retain"].astype(bool)
    assert record["detection"]["quality"]["recall"] == pytest.approx((wrong & called).sum() / wrong.sum()), "judged as it is carried out"
    page = build_payload(folder)
    assert any("beats the detector's: 3 with another label" in warning["text"] for warning in page["warnings"])
    assert any("decided by a person: accept" in marks for marks in page["items"]["reasons"])


def test_new_labels_are_learned():
    data = digits()
    wrong = np.flatnonzero((data.given != data.truth).numpy())[:20]
    rows = [("id", "given_label", "new_label", "decision"), *((f"{row}", f"{data.given[row]}", f"{data.truth[row]}", "accept") for row in wrong)]
    ids = read_ids()
    rows[1:] = [(ids[int(row[0])], *row[1:]) for row in rows[1:]]
    path = trained().parent / "accepted.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    result, without = repair_own(corrections=path, keep="always"), repair_own(keep="always")
    seen, alone = (found.work.mended.after.logits.argmax(1)[wrong] for found in (result, without))
    assert (seen == data.truth[wrong]).sum() > (alone == data.truth[wrong]).sum()
    assert (seen == data.given[wrong]).sum() <= (alone == data.given[wrong]).sum()
    assert result.record["detection"]["corrections"]["accept"] == 20 and not bool(result.work.taken.held[wrong].any())
    assert any("were decided by a person" in text for text in result.record["warnings"])


def read_ids():
    return repair_own().issues["id"].tolist()


@given(st.data())
@settings(max_examples=50)
def test_the_split_follows_each_decision(data):
    n = data.draw(st.integers(1, 12))
    masks = [torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for _ in range(2)]
    said = torch.tensor(data.draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n)))
    split = Split(*masks, torch.full((n,), 0.5))
    found = decide_split(split, Decided(said, torch.full((n,), -1)))
    for row, place in enumerate(said.tolist()):
        word = WORDS[place] if place >= 0 else ""
        expected = {"accept": (False, True, 0.0), "keep": (True, False, 1.0), "drop": (False, False, 0.0)}
        unchanged = (bool(masks[0][row]), bool(masks[1][row]), 0.5)
        assert (bool(found.retain[row]), bool(found.forget[row]), float(found.clean_probability[row])) == expected.get(word, unchanged)


def test_a_new_label_stands_beside_the_old_one():
    images = Images(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.tensor([0, 1, 0, 1]), ("a", "b"), ids=list("wxyz"))
    split = Split(torch.tensor([True, False, True, True]), torch.tensor([False, True, False, False]), torch.ones(4))
    both, masks = with_new_labels(images, split, torch.tensor([-1, 0, -1, -1]))
    assert both.given_labels.tolist() == [0, 1, 0, 1, 0] and both.pixels.flatten().tolist() == [0, 1, 2, 3, 1]
    assert masks.retain.tolist() == [True, False, True, True, True] and masks.forget.tolist() == [False, True, False, False, False]
    assert with_new_labels(images, split, None) == (images, split)


def test_corrections_that_do_not_fit_are_refused(tmp_path):
    images = Images(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), ids=["x", "y"])
    path = tmp_path / "c.csv"
    for text, words in (
        ("id,new_label,decision\nx,b,accept\n", "lacks the column given_label"),
        ("id,given_label,new_label,decision\nx,b,a,accept\n", "made for other labels"),
        ("id,given_label,new_label,decision\nnobody,a,b,accept\n", "which no sample has"),
        ("id,given_label,new_label,decision\nx,a,c,accept\n", "the class 'c'"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_decided(path, images)
    path.write_text("id,given_label,new_label,decision\nother,a,b,accept\nx,a,b,accept\n")
    aside = Images(images.pixels, images.given_labels, ("a", "b"), ids=["other", "x"])
    assert read_decided(path, images, aside).said.tolist() == [WORDS.index("accept"), -1]


def test_what_a_review_saves_is_what_apply_reads(tmp_path, capsys):
    data = digits(120)
    root = write_folder(tmp_path / "data", data.pixels, data.given)
    repair_own(images=str(root), class_names=NAMES, out=tmp_path / "run", size=8)
    found = decisions(tmp_path / "run", accept=4, keep=1, drop=2, unsure=1)
    write_review(tmp_path / "run", found)
    flags = ["--dataset", str(root), "--out", str(tmp_path / "applied"), "--json"]
    run_command(["apply", str(tmp_path / "run" / "corrections.csv"), *flags])
    said = json.loads(capsys.readouterr().out)
    assert (said["changed"], said["dropped"], said["kept"], said["unsure"]) == (4, 2, 1, 1)
    assert said["written"] and sorted((pair["from"], pair["to"]) for pair in said["pairs"] for _ in range(pair["count"]) if pair["to"]) == sorted(
        (row["given_label"], row["new_label"]) for row in found["decisions"] if row["decision"] == "accept"
    )
