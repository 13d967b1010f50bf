"""The data of a page, from the files of real repairs and from damaged and hostile ones."""

import base64
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file
from sample_payload import HOSTILE, sample_payload

from fspmu.errors import InputError
from fspmu.experiments.experiment import Compute, Detect
from fspmu.experiments.repair_run import detect
from fspmu.report.items import items
from fspmu.report.page import render_page, script_json
from fspmu.report.panels import MOST_BINS, bins_of, curves, noise_at, threshold_between
from fspmu.report.payload import build_payload
from fspmu.report.run_files import read_issues, read_run
from fspmu.report.verdicts import command_of
from fspmu.results.cells import prefixed
from fspmu.results.store import read_json
from memorised_digits import digits
from memorised_digits import repair as repair_own
from repaired_digits import copy_of, repaired, trained

FINITE = st.floats(-1e8, 1e8, width=32)


@pytest.fixture(scope="module")
def payload():
    """Return the data of the page on repaired digits."""
    return build_payload(repaired())


def unpack(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def check(payload):
    """Check what holds of any payload."""
    assert payload.keys() == sample_payload(2, 1, 2).keys()
    items, classes = payload["items"], range(len(payload["classes"]))
    assert items.keys() == sample_payload(2, 1, 2)["items"].keys()
    count = len(items["id"])
    assert len(set(items["id"])) == count and items["suspects"] <= items["suspects_total"]
    assert all(len(column) == count for column in items.values() if isinstance(column, list))
    assert all(label in classes for name in ("given", "predicted", "suggested") for label in items[name])
    assert all(other in range(count) and other != item for item, line in enumerate(items["near"]) for other in line)
    assert all(place is None or place[0] < len(payload["sheets"]) for place in items["tile"])
    noise = [value for value in items["noise"][: items["suspects"]] if value is not None]
    assert noise == sorted(noise, reverse=True)
    scores = payload["scores"]
    assert scores["total"] == sum(scores["counts"]) and len(scores["edges"]) == len(scores["counts"]) + 1 == len(scores["noise_at"]) + 1
    assert scores["edges"] == sorted(set(scores["edges"]))
    assert sum(count for *_, count in payload["matrix"]) == items["suspects_total"] == sum(row["issues"] for row in payload["by_class"])
    assert len(payload["verdict"]["numbers"]) == 5 and payload["verdict"]["kind"] in ("better", "worse", "same", "unknown")
    assert json.loads(script_json(payload)) == payload
    return render_page(payload, plotly=False)


def test_every_panel_of_a_repair_is_there(payload):
    check(payload)
    issues, labels = read_issues(repaired() / "label_issues.csv"), load_file(repaired() / "labels.safetensors")
    wrong, found = labels["true"] != labels["given"], issues["is_label_issue"].to_numpy()
    assert payload["known"] and sum(payload["scores"]["wrong"]) == wrong.sum()
    assert payload["scores"]["axis"] == "loss on the given label" and [part["label"] for part in payload["scores"]["curves"]] == ["clean", "wrong"]
    edges, counts = np.array(payload["scores"]["edges"]), np.array(payload["scores"]["counts"])
    assert counts[edges[:-1] >= payload["scores"]["threshold"]].sum() == pytest.approx(found.sum(), abs=int(counts.max()))
    assert {panel["panel"] for panel in payload["curves"]} == {"loss", "accuracy"}
    assert payload["flips"]["on"] == "evaluation images" and all(payload["items"]["evaluation"][item] for item in payload["flips"]["fixed"])
    assert [row["hope"] for row in payload["audit"]] == ["falls", "rises", "stays"]
    assert all(row["before"] is not None for row in payload["by_class"])
    assert ["method.epochs", "2"] in [entry[:2] for entry in payload["settings"]] and all(meaning for *_, meaning in payload["settings"])
    assert payload["warnings"] and all(warning["level"] in ("warn", "info") for warning in payload["warnings"])
    assert payload["sheets"][0]["src"].startswith("data:image/webp;base64,")


def test_the_map_says_what_each_point_is(payload):
    drawn, items = payload["map"], payload["items"]
    n, issues = drawn["n"], read_issues(repaired() / "label_issues.csv")
    assert n == len(issues) and len(unpack(drawn["before"], "<u2")) == 2 * n == len(unpack(drawn["after"], "<u2"))
    flags, item = unpack(drawn["flags"], "u1"), unpack(drawn["item"], "<i4")
    assert ((flags & 1) == issues["is_label_issue"]).all() and ((flags >> 1 & 1) == issues["forget"]).all()
    assert [int(item[place]) for place in items["map"] if place >= 0] == [at for at, place in enumerate(items["map"]) if place >= 0]
    assert unpack(drawn["given"], "<u2")[items["map"][0]] == items["given"][0]
    assert np.abs(unpack(drawn["noise"], "u1") / 255 - issues["noise_probability"]).max() < 0.003


def test_same_files_same_bytes(payload):
    assert json.dumps(build_payload(repaired())) == json.dumps(payload)


def test_a_repair_of_somebodys_own_without_labels_to_trust(tmp_path):
    repair_own(out=tmp_path / "own")
    found = build_payload(tmp_path / "own")
    html = check(found)
    assert found["verdict"]["kind"] in ("unknown", "worse") and "held out" in found["verdict"]["sentence"] and not found["known"]
    assert any(warning["level"] == "warn" and "as wrong as the others" in warning["text"] for warning in found["warnings"])
    held = np.flatnonzero(load_file(tmp_path / "own" / "labels.safetensors")["held_out"])
    items, ids = found["items"], read_issues(tmp_path / "own" / "label_issues.csv")["id"]
    assert {items["id"][item] for item in found["flips"]["fixed"] + found["flips"]["broken"]} <= set(ids.iloc[held])
    assert {ids.iloc[row] for row in held} >= {items["id"][at] for at, yes in enumerate(items["evaluation"]) if yes}
    assert "unknown" in html or "worse" in html
    trusted = digits()
    repair_own(out=tmp_path / "trusted", evaluation=(trusted.test_pixels, trusted.test_truth))
    other = build_payload(tmp_path / "trusted", [tmp_path / "own"])
    assert "95\u202f%" in other["verdict"]["sentence"] and [run["title"] for run in other["compare"]] == [f"{tmp_path.name}/trusted", f"{tmp_path.name}/own"]
    check(other)


def test_labels_held_out_of_a_noisy_training_set_prove_nothing_good(tmp_path):
    folder = copy_of(repaired(), tmp_path / "run")
    record = read_json(folder / "record.json")
    accuracy, data = record["test_accuracy"] | {"before": 0.5, "last": 0.6}, record["data"] | {"evaluation": "held out"}

    def page(**changes):
        (folder / "record.json").write_text(json.dumps(record | {"test_accuracy": accuracy, "data": data} | changes))
        (folder / "page" / "material.json").write_text(json.dumps(read_json(repaired() / "page" / "material.json") | {"change": {"interval": [0.05, 0.15]}}))
        return build_payload(folder)

    injected = page()
    assert injected["verdict"]["kind"] == "better" and not any("as wrong as the others" in warning["text"] for warning in injected["warnings"])
    found = page(data={key: value for key, value in data.items() if key != "flip_rate"})
    assert found["verdict"]["kind"] == "unknown" and found["verdict"]["sentence"].startswith("Not proven: 50.0")
    assert "held out of the training set, whose labels may be wrong" in found["verdict"]["sentence"]
    assert any(warning["level"] == "warn" and "as wrong as the others" in warning["text"] for warning in found["warnings"])


def test_what_was_found_and_not_repaired_says_so(tmp_path):
    found = detect(Detect(run=trained(), detector="gmm", compute=Compute(device="cpu", precision="fp32", out=tmp_path / "found"))).folder
    page = build_payload(found)
    check(page)
    assert page["verdict"]["kind"] == "unknown" and page["verdict"]["sentence"].startswith("Nothing has been repaired")
    (forgotten,) = (number for number in page["verdict"]["numbers"] if number["label"] == "Forgotten")
    assert forgotten["value"] == "–" and forgotten["note"].endswith("would be") and "no repair" in page["run"]["title"]


def test_a_folder_without_material_says_what_is_missing(tmp_path):
    folder = copy_of(repaired(), tmp_path / "old")
    shutil.rmtree(folder / "page")
    record = json.loads((folder / "record.json").read_text())
    del record["detection"]["mixture"]
    (folder / "record.json").write_text(json.dumps(record))
    found, ours = build_payload(folder), build_payload(repaired())
    check(found)
    assert found["map"] is None and found["flips"] is None and found["sheets"] == [] and found["scores"]["curves"] == []
    assert found["items"]["id"] == ours["items"]["id"][: ours["items"]["suspects"]]
    assert found["scores"]["threshold"] == pytest.approx(ours["scores"]["threshold"], abs=0.05)
    assert any("no pictures, neighbours, map" in warning["text"] for warning in found["warnings"])


def with_hostile_names(place):
    """Return a repair of digits in `place` whose classes, ids and paths are called so as to do harm."""
    folder = copy_of(repaired(), place)
    record, table = json.loads((folder / "record.json").read_text()), read_issues(folder / "label_issues.csv")
    renamed = dict(zip(record["data"]["classes"], HOSTILE, strict=True))
    record["data"] |= {"classes": list(HOSTILE), "name": HOSTILE[1]}
    (folder / "record.json").write_text(json.dumps(record))
    names = {column: table[column].map(renamed) for column in ("given_label", "predicted_label", "suggested_label")}
    odd = [f"{HOSTILE[row % len(HOSTILE)]}\r{row}" for row in range(len(table))]
    shielded = table.assign(id=odd, path=odd, **names).map(lambda cell: prefixed(cell) if isinstance(cell, str) else cell)
    shielded.to_csv(folder / "label_issues.csv", index=False, quoting=1)
    return folder


def test_hostile_names_stay_names(tmp_path):
    folder = with_hostile_names(tmp_path / "run")
    found = build_payload(folder)
    html = check(found)
    odd = set(read_issues(folder / "label_issues.csv")["id"])
    assert found["classes"] == list(HOSTILE) and set(found["items"]["id"]) <= odd | {name for name in build_payload(repaired())["items"]["id"]}
    assert "<script>alert(1)" not in html and "<img src=x" not in html and "</style><b>" not in html


def test_what_would_make_the_page_too_large_stays_beside_it(tmp_path):
    folder = copy_of(repaired(), tmp_path / "run")
    sheet = folder / "page" / "thumbs-000.webp"
    sheet.write_bytes(sheet.read_bytes() + bytes(8_000_000))
    assert build_payload(folder)["sheets"][0]["src"] == "page/thumbs-000.webp"
    assert build_payload(folder, base=tmp_path)["sheets"][0]["src"] == "run/page/thumbs-000.webp"


@given(arrays(np.float64, st.integers(1, 200), elements=FINITE))
@settings(max_examples=80)
def test_every_score_is_in_its_bin(score):
    edges, place = bins_of(score)
    assert 1 <= len(edges) - 1 <= MOST_BINS and (np.diff(edges) > 0).all() and place.min() >= 0 and place.max() < len(edges) - 1
    slack = 1e-5 * max(1.0, float(np.abs(score).max()))
    assert (score >= edges[place] - slack).all() and (score <= edges[place + 1] + slack).all()
    assert np.bincount(place, minlength=len(edges) - 1).sum() == len(score)
    chance = noise_at(edges, score, np.linspace(0, 1, len(score)))
    assert ((chance >= 0) & (chance <= 1)).all()


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=60)
def test_no_threshold_disagrees_with_fewer_issues(rows):
    score, issue = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    best = int(((score > threshold_between(score, issue)) != issue).sum())
    ties = len(rows) - len(set(score.tolist()))
    assert best <= min(int(((score > cut) != issue).sum()) for cut in np.arange(-0.5, 31)) + ties


def test_folders_that_hold_no_repair_are_refused(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        build_payload(tmp_path)
    with pytest.raises(InputError, match=r"holds no repair .*give the folder of"):
        build_payload(trained())
    folder = copy_of(repaired(), tmp_path / "run")
    (folder / "done").unlink()
    with pytest.raises(InputError, match="not finished"):
        build_payload(folder)
    (folder / "done").touch()
    table = pd.read_csv(folder / "label_issues.csv", dtype=str)
    table.head(9).to_csv(folder / "label_issues.csv", index=False)
    with pytest.raises(InputError, match="has 9 rows"):
        build_payload(folder)
    table.replace({"given_label": {"3": "thirty"}}).to_csv(folder / "label_issues.csv", index=False)
    with pytest.raises(InputError, match="'thirty' under given_label"):
        build_payload(folder)
    (folder / "split.safetensors").write_bytes(b"{}")
    with pytest.raises(InputError, match="no safetensors file"):
        build_payload(folder)
    shutil.copytree(repaired(), tmp_path / "parent" / "unlearn-a")
    for name in ("config.json", "done", "record.json"):
        shutil.copy(trained() / name, tmp_path / "parent")
    with pytest.raises(InputError, match="it holds repairs in unlearn-a"):
        build_payload(tmp_path / "parent")


def test_a_page_is_made_without_torch():
    seen = "print([name for name in ('torch', 'accelerate') if name in sys.modules])"
    code = f"import sys; from fspmu.cli import run_command; run_command(['report', sys.argv[1], '--out', sys.argv[2]]); {seen}"
    out = trained().parent / "elsewhere" / "page.html"
    done = subprocess.run([sys.executable, "-c", code, str(repaired()), str(out)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"report: {out}", "[]"] and out.stat().st_size < 10_000_000


def test_the_command_repeats_the_run():
    from fspmu.cli import parse
    from fspmu.detection import DETECTORS
    from fspmu.detection.cuts import CUTS
    from fspmu.experiments.experiment import Unlearn
    from fspmu.stages.rounds import Rounds
    from fspmu.unlearning import METHODS

    files = read_run(repaired())
    assert command_of(replace(files, material={"command": "fspmu unlearn 'my run'"})) == "fspmu unlearn 'my run'"
    config = files.config | {"settings": files.config["settings"] | {"reference_statistics": True, "milestones": [3, 3]}}
    config |= {"cut": "otsu", "cut_settings": {"per_class": True, "smallest": 9}, "rounds": asdict(Rounds(3, "detector"))}
    words = shlex.split(command_of(replace(files, config=config)))
    assert words[:3] == ["fspmu", "unlearn", "RUN"], "the repair lies elsewhere than in the folder of the run"
    inside = replace(files, folder=trained() / "repaired", config=config | {"run": read_json(trained() / "config.json")["hash"]})
    assert shlex.split(command_of(inside))[2] == trained().name
    kinds = {"detector_settings": DETECTORS["gmm"].settings, "cut_settings": CUTS["otsu"].settings, "settings": METHODS["fspmu"].settings}
    options = parse("unlearn", Unlearn, words[2:], **kinds)
    assert json.loads(json.dumps(asdict(options.settings))) == config["settings"]
    for name in ("detector_settings", "cut_settings", "split", "rounds"):
        assert asdict(getattr(options, name)) == config[name]
    assert (options.cut, options.compute.seed) == ("otsu", config["seed"])
    assert command_of(replace(files, config={"command": "repair"}, material={})) == ""


def test_scores_are_compared_as_they_are_and_not_as_they_are_shown():
    files = read_run(repaired())
    score, threshold = files.split["score"], files.record["detection"]["mixture"]["threshold"]
    tiny = {**files.record["detection"], "mixture": {**files.record["detection"]["mixture"], "threshold": threshold * 1e-6}}
    small = replace(files, split={**files.split, "score": score * 1e-6}, record={**files.record, "detection": tiny})
    above = [["score above the threshold" in reasons for reasons in items(each)["reasons"]] for each in (files, small)]
    assert above[0] == above[1] and any(above[0])


def test_agreement_is_charted_as_the_share_that_it_is():
    files = replace(read_run(repaired()), metrics=[{"stage": "unlearning", "epoch": 1, "forget": -1.5, "forgotten_agreement": 0.25}])
    charts = {chart["panel"]: chart for chart in curves(files)}
    assert charts["accuracy"]["unit"] == "%" and charts["accuracy"]["series"] == [{"label": "forgotten agreement", "x": [1], "y": [25.0]}]
    assert [series["label"] for series in charts["loss"]["series"]] == ["forget"]
