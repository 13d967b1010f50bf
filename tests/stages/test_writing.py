"""The folder of a repair: what lies in it, going on with it, and that nothing is left of what could not begin."""

import copy
import json
from dataclasses import replace
from itertools import count

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import fspmu
from fspmu.detection import DEFAULT
from fspmu.detection.label_issues import COLUMNS, write_issues
from fspmu.detection.splitting import SplitSettings
from fspmu.engine.inference import Predictions
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.models.classifier import Classifier
from fspmu.report.run_files import read_issues
from fspmu.results.store import RunFolder, differences
from fspmu.stages.asking import Asked, config_of
from fspmu.stages.taking_in import take_in
from fspmu.stages.writing import write_predictions
from memorised_digits import FEW, NAMES, build, digits, memorised, repair, same, write_folder

ALWAYS = {
    "README.md",
    "config.json",
    "done",
    "label_issues.csv",
    "labels.safetensors",
    "metrics.jsonl",
    "model.json",
    "model.safetensors",
    "page/material.json",
    "page/material.safetensors",
    "page/thumbs-000.webp",
}
ALWAYS |= {"predictions.safetensors", "record.json", "split.safetensors"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a folder, the repair that was written into it, and what it was asked."""
    data, folder = digits(), tmp_path_factory.mktemp("finished") / "out"
    options = {"evaluation": (data.test_pixels, data.test_truth)}
    return folder, repair(out=folder, **options), options


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def what_lasts(folder):
    """Return the bytes of a folder's files, and of the record what is not of the clock and the machine."""
    found = {name: (folder / name).read_bytes() for name in files_of(folder) - {"record.json"}}
    record = json.loads((folder / "record.json").read_text())
    return found, {name: value for name, value in record.items() if name != "seconds"}


def tables_agree(left, right):
    """Whether two tables of issues are the same but for the digits that a CSV file keeps."""
    numbers = ["label_score", "suggested_confidence", "noise_probability"]
    text = [name for name in COLUMNS if name not in numbers]
    return (
        np.allclose(left[numbers], right[numbers], rtol=1e-5, atol=1e-6)
        and (left[text].astype(object).to_numpy() == right[text].astype(object).to_numpy()).all()
    )


def no_computing(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("fspmu.repairing.carry_out", refuse)


def test_what_lies_in_the_folder(finished):
    folder, result, _ = finished
    assert files_of(folder) == ALWAYS
    assert json.loads((folder / "record.json").read_text())["evaluation"]["after"] == result.record["evaluation"]["after"]
    assert tables_agree(read_issues(folder / "label_issues.csv"), result.issues)
    split = load_file(folder / "split.safetensors")
    assert split["forget"].tolist() == result.issues["forget"].tolist() and split["retain"].tolist() == result.issues["retain"].tolist()
    labels = load_file(folder / "labels.safetensors")
    assert torch.equal(labels["given"], digits().given) and torch.equal(labels["test"], digits().test_truth) and not labels["held_out"].any()
    seen = load_file(folder / "predictions.safetensors")
    assert seen["logits_after"].argmax(1).tolist() == result.issues["predicted_label"].astype(int).tolist() and seen["centroids"].shape == (10, 48)
    assert same(load_file(folder / "model.safetensors"), result.model.state_dict())
    assert same(fspmu.load(folder, module=build(1)).module, result.model)
    assert str(len(result.issues)) in (folder / "README.md").read_text() and DEFAULT in (folder / "README.md").read_text()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == FEW.epochs


def test_asked_again_it_is_read_and_not_computed(finished, monkeypatch):
    folder, result, options = finished
    before = what_lasts(folder)
    no_computing(monkeypatch)
    again = repair(out=folder, **options)
    assert type(again.model) is nn.Sequential and same(again.model, result.model) and tables_agree(again.issues, result.issues)
    assert again.record == json.loads(json.dumps(result.record)) and what_lasts(folder) == before
    assert [module.training for module in again.model.modules()] == [module.training for module in result.model.modules()]
    assert (again.to_cleanlab()["given_label"] == result.to_cleanlab()["given_label"]).all() and "<table>" in again._repr_html_()
    with pytest.raises(InputError, match="read from the folder of an earlier run"):
        again.save(folder.parent / "elsewhere")


def test_other_wishes_are_refused_by_name(finished):
    folder, _, options = finished
    data, before = digits(), what_lasts(folder)
    grown = build(4)
    for wish, told in [
        ({"seed": 7}, "seed is 7 here and 0 there"),
        ({"settings": replace(FEW, lr=0.1)}, "settings.lr is 0.1 here and 0.0005 there"),
        ({"keep": "always"}, "keep is 'always' here"),
        ({"mean": [0.1], "std": [1.0]}, r"preprocessing.mean is \[0.1\] here"),
        ({"forget": [1, 2]}, "detector is 'given' here"),
        ({"model": grown}, "model.weights is"),
        ({"images": (data.pixels, data.truth)}, "data.fingerprint is"),
        ({"evaluation": (data.test_pixels[:9], data.test_truth[:9])}, "data.fingerprint is"),
    ]:
        with pytest.raises(InputError, match=f"holds another configuration.*{told}"):
            repair(out=folder, **options | wish)
    assert what_lasts(folder) == before


def test_all_that_the_result_depends_on_is_in_the_config():
    data, run = digits(), Run()
    taken = take_in(memorised(), (data.pixels, data.given), run=run)
    table = pd.DataFrame({"id": list(taken.images.ids), "forget": False, "retain": True, "label_score": 0.5})
    table.loc[:9, ["forget", "retain"]] = [True, False]
    unsure, surer = table.copy(), table.copy()
    unsure.loc[20, "retain"], surer.loc[30, "label_score"] = False, 0.75
    configs = [config_of(taken, Asked(forget=forget), run) for forget in (table, unsure, surer, table.iloc[::-1], None)]
    configs += [config_of(taken, Asked(truth=truth), run) for truth in (data.truth, data.given)]
    assert configs[0] == configs[3] and len({json.dumps(config) for config in configs}) == len(configs) - 1
    before = config_of(taken, Asked(), run)
    taken.model.head_name = "4"
    assert differences(config_of(taken, Asked(), run), before) == ["model.head is '4' here and '6' there"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saving_writes_the_same_files(finished, tmp_path, dtype):
    model = None if dtype == torch.float32 else copy.deepcopy(memorised()).to(dtype)
    first = finished[0] if model is None else tmp_path / "first"
    if model is not None:
        repair(model, out=first)
    result = repair(model, **(finished[2] if model is None else {}))
    place = result.save(tmp_path / "saved")
    assert place == (tmp_path / "saved").resolve() and files_of(place) == ALWAYS == files_of(first)
    (ours, record), (theirs, other) = what_lasts(place), what_lasts(first)
    assert {name for name in ours if ours[name] != theirs[name]} == set() and record == other
    assert load_file(place / "model.safetensors")["0.weight"].dtype == dtype
    if model is not None:
        assert same(repair(model, out=first).model, result.model)
    with pytest.raises(InputError, match="already holds this result"):
        result.save(place)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        result.save(tmp_path / "full")
    assert files_of(tmp_path / "full") == {"mine.txt"}


@pytest.mark.parametrize("epoch", [1, 4])
def test_stopped_in_the_middle_it_goes_on_to_the_same_bytes(finished, tmp_path, monkeypatch, epoch):
    folder, result, options = finished
    calls, log = count(1), RunFolder.log

    def stopping(self, content):
        log(self, content)
        if next(calls) == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "log", stopping)
        with pytest.raises(KeyboardInterrupt):
            repair(out=tmp_path / "out", **options)
    assert not (tmp_path / "out" / "done").exists() and not (tmp_path / "out" / "model.safetensors").exists()
    again = repair(out=tmp_path / "out", **options)
    assert same(again.model, result.model) and again.issues.equals(result.issues)
    (ours, record), (theirs, other) = what_lasts(tmp_path / "out"), what_lasts(folder)
    assert {name for name in ours if ours[name] != theirs[name]} == set() and ours.keys() == theirs.keys() and record == other


@pytest.mark.parametrize(
    "wish",
    [
        {"detector": "gm"},
        {"keep": "no"},
        {"forget": [5000]},
        {"evaluation": "nowhere"},
        {"detector": "known"},
        {"settings": replace(FEW, lr=-1.0)},
        {"split": SplitSettings(threshold=1.0, class_floor=0)},
    ],
    ids=lambda wish: next(iter(wish)),
)
def test_bad_input_leaves_no_folder(tmp_path, wish):
    with pytest.raises(InputError):
        repair(out=tmp_path / "out", **wish)
    assert not (tmp_path / "out").exists()


def test_what_could_not_be_read_is_listed_with_its_reason(tmp_path):
    data = digits()
    root = write_folder(tmp_path / "train", data.pixels[:120], data.given[:120])
    (root / "one" / "broken, really.png").write_bytes(b"\x89PNG nothing")
    (root / "two" / "empty.png").write_bytes(b"")
    result = repair(images=root, class_names=NAMES, keep="always", out=tmp_path / "out", settings=replace(FEW, epochs=1))
    table = pd.read_csv(tmp_path / "out" / "unreadable.csv")
    assert table["id"].tolist() == ["one/broken, really.png", "two/empty.png"] and table["reason"].str.len().min() > 3
    assert result.record["data"]["unreadable"] == 2 and result.record["data"]["train"] == 120 == len(result.issues)
    assert not set(table["id"]) & set(result.issues["id"]) and any("left out 2 images" in text for text in result.record["warnings"])
    assert read_issues(tmp_path / "out" / "label_issues.csv")["path"].tolist() == result.issues["path"].tolist()


def test_a_name_that_a_spreadsheet_would_compute_is_listed_as_text(tmp_path):
    data = digits()
    root = write_folder(tmp_path / "train", data.pixels[:120], data.given[:120])
    files = sorted(root.rglob("*.png"))
    rows = [f"{path.relative_to(root).as_posix()},{path.parent.name}" for path in files] + ["=1+1.png,one"]
    (root / "labels.csv").write_text("\n".join(["file_name,label", *rows]))
    (root / "=1+1.png").write_bytes(b"")
    repair(images=root, class_names=NAMES, keep="always", out=tmp_path / "out", settings=replace(FEW, epochs=1))
    assert pd.read_csv(tmp_path / "out" / "unreadable.csv")["id"].tolist() == ["'=1+1.png"]


def test_a_network_without_a_description_can_be_written(tmp_path):
    own = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh()), nn.Linear(12, 10))
    result = repair(own, out=tmp_path / "out", forget=range(20), keep="always", settings=replace(FEW, epochs=1))
    assert type(result.model) is Classifier and any("nobody says how this model wants" in text for text in result.record["warnings"])
    assert same(fspmu.load(tmp_path / "out", module=own).module, result.model)


ROUGH = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8) | st.sampled_from(
    ["nan", "NA", "1.0", "007", "", '"', "a,b", "x\ny", "None"]
)


@settings(max_examples=25)
@given(st.lists(st.tuples(ROUGH, ROUGH, st.booleans(), st.floats(0, 1)), min_size=1, max_size=5))
def test_a_table_is_read_as_it_was_written(tmp_path_factory, rows):
    names, ids, marks, scores = zip(*rows, strict=True)
    table = pd.DataFrame(
        {name: list(names) for name in ("given_label", "predicted_label", "suggested_label")}
        | {"is_label_issue": marks, "retain": marks, "forget": [not mark for mark in marks], "label_score": scores}
        | {"suggested_confidence": scores, "noise_probability": [1 - score for score in scores], "action": "retain", "path": list(ids), "id": list(ids)}
    )[list(COLUMNS)]
    path = tmp_path_factory.mktemp("tables") / "label_issues.csv"
    write_issues(table, path)
    assert tables_agree(read_issues(path), table)


def test_the_model_that_is_handed_back_keeps_its_mode_and_a_half_one_has_a_page(tmp_path):
    data = digits()
    given = copy.deepcopy(memorised()).train().half()
    result = repair(given, out=tmp_path / "out", evaluation=(data.test_pixels, data.test_truth), keep="always", settings=replace(FEW, epochs=1))
    assert result.model.training and result.model[0].weight.dtype == torch.float16
    assert not [text for text in result.record["warnings"] if "the report has no" in text]
    assert "evaluation_logits_after" in load_file(tmp_path / "out" / "page" / "material.safetensors")


def test_features_beyond_float16_are_written_as_its_largest(tmp_path):
    far = Predictions(torch.zeros(4, 2), torch.tensor([[1e5, 0.0], [-1e6, 1.0], [1.0, 2.0], [3.0, 4.0]]))
    write_predictions(tmp_path, far, None, torch.ones(4, dtype=torch.bool))
    assert load_file(tmp_path / "predictions.safetensors")["features_before"].isfinite().all()


def test_saving_that_failed_midway_can_be_repeated(tmp_path, monkeypatch):
    result = repair(keep="always", settings=replace(FEW, epochs=1))
    with monkeypatch.context() as broken:
        broken.setattr("fspmu.stages.writing.write_issues", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            result.save(tmp_path / "out")
    assert not (tmp_path / "out" / "done").exists()
    result.save(tmp_path / "out")
    assert (tmp_path / "out" / "done").exists() and (tmp_path / "out" / "label_issues.csv").exists()
