"""The commands as a user meets them: processes, files, exit codes, sentences."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

import fspmu
from fspmu.cli import COMMANDS, main
from fspmu.detection import DEFAULT, DETECTORS
from fspmu.detection.cuts import CUTS
from fspmu.detection.label_issues import COLUMNS
from fspmu.unlearning import METHODS

PRETRAIN = "pretrain --dataset digits --limit 900 --noise-mode sym --noise-rate 0.4 --epochs 6 --seed 3 --precision fp32 --json".split()


def command(*arguments):
    return [sys.executable, "-m", "fspmu", *map(str, arguments)]


def run(*arguments, code=0):
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def kill_after(lines, path, *arguments, with_signal=signal.SIGKILL):
    """Start a command and stop it once `path` has that many lines: in the middle of the next epoch."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (path.exists() and path.read_text().count("\n") >= lines):
        assert process.poll() is None and time.monotonic() < until, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(with_signal)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def in_process(capsys, *arguments):
    """Run a command here, where importing torch is already paid for; return exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run on digits, made by a process, and what that printed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, run(*PRETRAIN, "--out", folder).stdout


def test_pretrain_prints_one_json_object_and_writes_the_run_folder(trained):
    folder, out = trained
    record = json.loads(out)
    assert record == json.loads((folder / "record.json").read_text()) | {"folder": str(folder)}
    assert {"schema", "config", "data", "pretraining", "detection", "unlearning", "test_accuracy", "seconds", "versions"} <= record.keys()
    names = {entry.name for entry in folder.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "model.json",
        "metrics.jsonl",
        "labels.safetensors",
        "sample_history.safetensors",
        "record.json",
        "done",
    }
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert record["test_accuracy"]["last"] == metrics[-1]["test_accuracy"]
    assert record["test_accuracy"]["best"] == max(line["test_accuracy"] for line in metrics)
    assert record["pretraining"]["passes"]["backward"] == 6 * record["data"]["train"]
    labels = load_file(folder / "labels.safetensors")
    changed = labels["given"] != labels["true"]
    assert not changed[~labels["slots"]].any() and labels["slots"].sum() == int(0.4 * record["data"]["train"])
    assert record["data"]["flip_rate"] == pytest.approx(changed.mean())
    history = load_file(folder / "sample_history.safetensors")["margins"]
    assert history.shape == (6, record["data"]["train"]) and history.dtype == "float16"


def test_kill_9_and_resume_ends_in_the_same_weights(trained, tmp_path, capsys):
    folder, _ = trained
    out = tmp_path / "killed"
    code, err = kill_after(2, out / "metrics.jsonl", *PRETRAIN, "--out", out, with_signal=signal.SIGTERM)
    assert code == 143 and "--resume" in err and "Traceback" not in err
    code, _ = kill_after(4, out / "metrics.jsonl", *PRETRAIN, "--out", out, "--resume")
    assert code == -signal.SIGKILL and not (out / "done").exists()
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "loss"')  # what a kill in the middle of a write leaves
    in_process(capsys, *PRETRAIN, "--out", out, "--resume")
    assert digest(out / "model.safetensors") == digest(folder / "model.safetensors")
    assert digest(out / "sample_history.safetensors") == digest(folder / "sample_history.safetensors")
    assert (out / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()
    before = {path.name: digest(path) for path in out.iterdir()}
    in_process(capsys, *PRETRAIN, "--out", out, "--resume")
    assert {path.name: digest(path) for path in out.iterdir()} == before, "a finished run is left as it is"


def test_unlearning_killed_and_resumed_ends_in_the_same_weights(trained, tmp_path, capsys):
    folder, _ = trained
    arguments = ["unlearn", folder, "--method", "fspmu", "--detector", "gmm", "--epochs", "6", "--forget-epochs", "3", "--precision", "fp32"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, _ = kill_after(2, killed / "metrics.jsonl", *arguments, "--out", killed)
    assert code == -signal.SIGKILL and not (killed / "done").exists()
    for place in (["--out", killed, "--resume"], ["--out", whole]):
        in_process(capsys, *arguments, *place)
    for name in ("model.safetensors", "predictions.safetensors", "split.safetensors", "label_issues.csv", "metrics.jsonl"):
        assert digest(killed / name) == digest(whole / name), name
    record = json.loads((whole / "record.json").read_text())
    assert set(record["test_accuracy"]) == {"before", "last", "best"}
    assert record["unlearning"]["audit"]["after"]["forget_given"] is not None
    assert {"retain", "forget", "clean_probability", "score"} == load_file(whole / "split.safetensors").keys()
    predictions = load_file(whole / "predictions.safetensors")
    assert predictions["logits_before"].shape == predictions["logits_after"].shape == (record["data"]["train"], 10)
    assert fspmu.load(whole).class_names == tuple("0123456789")


def test_detect_writes_the_issue_table(trained, tmp_path, capsys):
    folder, _ = trained
    code, out, _ = in_process(capsys, "detect", folder, "--detector", "gmm", "--precision", "fp32", "--out", tmp_path / "found", "--json")
    record = json.loads(out)
    issues = pd.read_csv(tmp_path / "found" / "label_issues.csv", dtype={"given_label": str})
    assert code == 0 and tuple(issues.columns) == COLUMNS and len(issues) == record["data"]["train"]
    assert issues["label_score"].between(0, 1).all() and (issues["label_score"] + issues["noise_probability"]).round(4).eq(1).all()
    assert issues["is_label_issue"].sum() == record["detection"]["issues"]
    assert (issues.loc[issues["is_label_issue"], "label_score"] <= 0.5).all() and (issues.loc[issues["retain"], "label_score"] > 0.5).all()
    assert record["detection"]["quality"]["auc"] > 0.6
    assert not any(entry.name == "model.safetensors" for entry in (tmp_path / "found").iterdir())


def test_evaluate_and_predict(trained, tmp_path, capsys):
    from PIL import Image

    folder, out = trained
    _, printed, _ = in_process(capsys, "evaluate", folder, "--json", "--precision", "fp32")
    assert json.loads(printed)["evaluation"]["test"]["accuracy"] == pytest.approx(json.loads(out)["test_accuracy"]["last"])
    for number in range(3):
        Image.new("RGB", (16, 16), (number * 80,) * 3).save(tmp_path / f"{number}.png")
    code, printed, _ = in_process(capsys, "predict", folder, "--images", tmp_path, "--json", "--out", tmp_path / "predicted")
    rows = json.loads(printed)["predictions"]
    assert code == 0 and len(rows) == 3 and all(row["predicted_label"] in "0123456789" and 0 < row["confidence"] <= 1 for row in rows)
    assert len(pd.read_csv(tmp_path / "predicted" / "predictions.csv")) == 3


def test_methods_list_every_family(capsys):
    _, out, _ = in_process(capsys, "methods", "--json")
    listed = json.loads(out)
    assert set(listed["unlearning"]) == set(METHODS) and set(listed["detectors"]) == set(DETECTORS) and set(listed["cuts"]) == set(CUTS)
    assert listed["detectors"]["feature-margin"]["needs"] == ["block"] and listed["detectors"]["feature-margin"]["signed"]
    assert listed["detectors"]["confident-learning"]["needs"] == ["logits"] and listed["cuts"]["sign"]["signed_only"]
    _, out, _ = in_process(capsys, "methods")
    assert all(name in out for name in (*DETECTORS, *CUTS)) and "needs a probe's training" in " ".join(out.split())
    assert listed["unlearning"]["fspmu"]["presets"]["nll"]["gamma"] == 5.0
    assert listed["extras"]["tsne"]["install"] == "pip install -e '.[tsne]'"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_flag(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")  # one column of flags
    code, out, _ = in_process(capsys, name, "--help")
    flags = re.split(r"(?m)^\W*(?=--[a-z])", out)[1:]
    assert code == 0 and flags
    for flag in flags:
        assert "(default:" in flag or "(required)" in flag, flag
        assert len(re.sub(r"\(default.*", "", flag, flags=re.DOTALL).split()) > 4, f"what does it mean? {flag}"


def test_help_follows_the_method(capsys):
    _, out, _ = in_process(capsys, "unlearn", "--method", "neggrad_plus", "--help")
    assert "--beta" in out and "--delta" not in out
    _, out, _ = in_process(capsys, "unlearn", "--preset", "nll", "--help")
    assert re.search(r"--gamma FLOAT.*?\(default:[\s│]*5\.0\)", out, re.DOTALL)


def flags_of(kind, **families):
    """Return the name of every flag of a command, under the settings that some choice brings."""
    found = []
    for field in dataclasses.fields(kind):
        inner = families.get(field.name, None if field.default_factory is dataclasses.MISSING else field.default_factory())
        found += flags_of(type(inner), **families) if dataclasses.is_dataclass(inner) else [field.name]
    return found


def test_settings_of_one_command_do_not_collide():
    from fspmu.experiments.experiment import Unlearn
    from fspmu.experiments.repair_options import RepairModel

    for kind, method, detector, cut in itertools.product((Unlearn, RepairModel), METHODS.values(), DETECTORS.values(), CUTS.values()):
        names = flags_of(kind, settings=method.settings, detector_settings=detector.settings, cut_settings=cut.settings)
        assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
        assert {"detector", "cut", "threshold", "class_floor"} <= set(names) and "cut_settings" not in names


def test_help_follows_detector_and_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    _, out, _ = in_process(capsys, "detect", "--detector", "feature-margin", "--cut", "otsu", "--help")
    assert all(flag in out for flag in ("--depth", "--views", "--refinements")) and "--starts" not in out and "--probe-epochs" not in out
    _, out, _ = in_process(capsys, "repair", "--detector", "probe", "--cut", "noise-rate", "--help")
    assert all(flag in out for flag in ("--probe-epochs", "--rate", "--kind")) and "--depth" not in out


def test_detect_with_another_detector_and_another_cut(trained, tmp_path, capsys):
    """Names, settings, and where in the network was looked, all in the record; the same command again changes nothing."""
    folder = trained[0]
    wish = ["detect", folder, "--detector", "feature-margin", "--cut", "otsu", "--views", "2", "--threshold", "0.4", "--precision", "fp32"]
    record = json.loads(in_process(capsys, *wish, "--out", tmp_path / "found", "--json")[1])
    config, found = record["config"], record["detection"]
    assert (config["detector"], config["cut"], config["detector_settings"]["views"]) == ("feature-margin", "otsu", 2)
    assert config["split"]["threshold"] == 0.4 and config["cut_settings"] == found["cut_settings"] and found["cut"] == "otsu"
    depth = found["depth"]
    assert depth["name"] in depth["depths"] and depth["how"] != "held-out" and depth["fresh"] == 0, "test images have true labels: no detector may use them"
    issues = pd.read_csv(tmp_path / "found" / "label_issues.csv")
    assert issues["is_label_issue"].sum() == found["issues"] and (issues.loc[issues["retain"], "label_score"] > 0.4).all()
    assert found["quality"]["auc"] > 0.7 and not any("depth" in warning for warning in record["warnings"])
    code, out, _ = in_process(capsys, *wish, "--out", tmp_path / "found", "--resume", "--json")
    assert code == 0 and json.loads(out)["versions"] == record["versions"]
    code, _, err = in_process(capsys, *wish[:4], "--cut", "mixture", "--out", tmp_path / "found", "--resume")
    assert code == 2 and "cut is 'mixture' here and 'otsu' there" in err


def test_two_rounds_of_a_repair(trained, tmp_path, capsys):
    short = ["--epochs", "2", "--forget-epochs", "1", "--precision", "fp32", "--rounds", "2"]
    code, out, err = in_process(capsys, "unlearn", trained[0], *short, "--out", tmp_path / "out", "--json")
    record = json.loads(out)
    assert code == 0 and [entry["round"] for entry in record["unlearning"]["rounds"]] == [1, 2], err
    split, issues = load_file(tmp_path / "out" / "split.safetensors"), pd.read_csv(tmp_path / "out" / "label_issues.csv")
    assert split["forget"].sum() == issues["forget"].sum() == record["detection"]["forget"] == record["unlearning"]["rounds"][1]["forget"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "then views of the repaired model" in page and "rounds.second_look" in page


def test_what_a_run_recorded_of_its_training_is_used(trained, tmp_path, capsys):
    code, out, _ = in_process(capsys, "detect", trained[0], "--detector", "trajectory", "--precision", "fp32", "--out", tmp_path / "out", "--json")
    history = load_file(trained[0] / "sample_history.safetensors")["margins"].astype("float32")
    score = load_file(tmp_path / "out" / "split.safetensors")["score"]
    assert code == 0 and abs(score + np.tanh(history / 3).mean(0)).max() < 1e-3  # of six epochs none is skipped


def test_another_cut_has_another_folder(trained, capsys):
    code, out, _ = in_process(capsys, "detect", trained[0], "--detector", "random", "--cut", "otsu", "--json")
    assert code == 0 and json.loads(out)["folder"].endswith("detect-random-otsu")
    shutil.rmtree(trained[0] / "detect-random-otsu")


BAD = {
    "a rate in percent": (["pretrain", "--method", "promix", "--assumed-rate", "40"], "--assumed-rate is 40"),
    "unknown command": (["unlern"], "did you mean 'unlearn'"),
    "unknown data set": (["inspect", "cifr10"], "cifar10"),
    "unknown method": (["unlearn", "RUN", "--method", "fspnu"], "did you mean 'fspmu'"),
    "unknown detector": (["detect", "RUN", "--detector", "gnm"], "did you mean 'gmm'"),
    "unknown preset": (["unlearn", "RUN", "--preset", "nl"], "did you mean 'nll'"),
    "unknown model": (["pretrain", "--model", "resnet"], "preactresnet18"),
    "unknown noise mode": (["pretrain", "--noise-mode", "syn"], "did you mean 'sym'"),
    "unknown device": (["pretrain", "--device", "gpu"], "device"),
    "unknown precision": (["pretrain", "--precision", "fp16", "--epochs", "1"], "precision"),
    "unknown augmentation": (["pretrain", "--augment", "flip"], "crop-flip"),
    "rate above one": (["pretrain", "--noise-mode", "sym", "--noise-rate", "1.5"], "from 0 to 1"),
    "rate below zero": (["pretrain", "--noise-mode", "asym", "--noise-rate", "-0.1"], "from 0 to 1"),
    "no such run": (["unlearn", "nowhere"], "nowhere is no run folder"),
    "no such run to detect in": (["detect", "nowhere"], "no run folder"),
    "threshold": (["detect", "RUN", "--threshold", "2", "--out", "OUT"], "--threshold is 2"),
    "known without truth": (["detect", "PLAIN", "--detector", "known", "--out", "OUT"], "true labels are not known"),
    "a picture of too few points": (["unlearn", "RUN", "--tsne", "--tsne-perplexity", "5000", "--out", "OUT"], "--tsne-perplexity"),
    "no epochs": (["pretrain", "--epochs", "0"], "--epochs is 0, but it must be at least 1"),
    "no batch": (["pretrain", "--batch-size", "1"], "--batch-size is 1, but it must be at least 2"),
    "a device with nonsense": (["pretrain", "--device", "cuda:x"], "unknown device 'cuda:x'"),
    "a method without presets": (["unlearn", "RUN", "--method", "finetune", "--preset", "nll"], "finetune has no presets"),
    "a data folder without the data": (["inspect", "cifar10", "--data-dir", "RUN"], "--data-dir names the folder"),
    "a negative learning rate": (["pretrain", "--lr", "-0.1"], "--lr is -0.1, but it must be above 0"),
    "a learning rate that is no number": (["pretrain", "--lr", "nan"], "--lr is nan"),
    "a negative seed": (["pretrain", "--seed", "-1"], "--seed is -1"),
    "temperature zero": (["unlearn", "RUN", "--t", "0", "--out", "OUT"], "--t is 0.0, but it must be above 0"),
    "no starts": (["detect", "RUN", "--detector", "gmm", "--starts", "0", "--out", "OUT"], "--starts is 0"),
    "unknown cut": (["detect", "RUN", "--cut", "otzu"], "did you mean 'otsu'"),
    "a cut for margins": (["unlearn", "RUN", "--detector", "gmm", "--cut", "sign"], "0 does not divide the scores of the detector 'gmm'; choose another --cut"),
    "no rounds": (["unlearn", "RUN", "--rounds", "0", "--out", "OUT"], "--rounds is 0, but it must be at least 1"),
    "new labels from nobody": (["unlearn", "RUN", "--relabel", "0.9", "--out", "OUT"], "there is none yet; add --rounds 2"),
    "no margin": (["detect", "RUN", "--margin", "1.5", "--out", "OUT"], "--margin is 1.5, but it must be from 0 to below 0.5"),
    "no neighbours": (["detect", "RUN", "--detector", "knn", "--neighbours", "0", "--out", "OUT"], "--neighbours is 0, but it must be at least 1"),
    "no views": (["detect", "RUN", "--detector", "feature-margin", "--views", "0", "--out", "OUT"], "--views is 0, but it must be at least 1"),
    "fewer than no samples": (
        ["detect", "RUN", "--detector", "noise-transition", "--common-samples", "-5", "--out", "OUT"],
        "--common-samples is -5.0, but it must be at least 0",
    ),
    "no such depth": (["detect", "RUN", "--detector", "feature-margin", "--depth", "layer3", "--out", "OUT"], "the network has no part 'layer3'"),
    "no history": (["detect", "UNRECORDED", "--detector", "trajectory", "--out", "OUT"], "--detector probe trains a fresh network"),
    "a rate above one": (["detect", "RUN", "--cut", "noise-rate", "--rate", "2", "--out", "OUT"], "--rate is 2"),
    "an infinite weight": (["unlearn", "RUN", "--delta", "inf", "--out", "OUT"], "--delta is inf"),
    "no width": (["pretrain", "--width", "0"], "--width is 0"),
    "a key of no weights": (["pretrain", "--weights-key", "ema"], "--weights-key ema says where weights lie in a file, and none is given"),
}


@pytest.mark.parametrize("command", ["pretrain", "repair"])
def test_a_place_to_write_is_looked_at_before_anything_is_read(command, tmp_path, capsys, monkeypatch):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("Dear")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("fspmu.experiments.pipeline.prepare", lambda *_: pytest.fail("images were read"))
    monkeypatch.setattr("fspmu.experiments.repair_command.open_model", lambda *_, **__: pytest.fail("a model was built"))
    flags = ["--dataset", "digits"] + (["--model", "timm:resnet10t"] if command == "repair" else [])
    for out, told in (("letters", "is not empty and holds no run; give another --out"), ("file", "it is a file; give another --out")):
        code, _, err = in_process(capsys, command, *flags, "--out", tmp_path / out)
        assert code == 2 and told in err
    assert (tmp_path / "letters" / "dear.txt").read_text() == "Dear" and {entry.name for entry in tmp_path.iterdir()} == {"letters", "file"}


def test_a_reader_may_leave_early():
    """As `head` does: rich would end with 1, and the interpreter with 120 where what it still holds cannot be written."""
    for arguments in (["methods"], ["--help"]):
        process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        _, err = process.communicate()
        assert process.returncode == 0 and err == b"", (arguments, err)


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A finished run without injected noise, so without known truth."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    with pytest.raises(SystemExit):
        main(["pretrain", "--epochs", "1", "--limit", "200", "--width", "4", "--precision", "fp32", "--out", str(folder), "--json"])
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_leaves_nothing(case, trained, plain, tmp_path_factory, tmp_path, capsys, monkeypatch):
    arguments, sentence = BAD[case]
    unrecorded = tmp_path_factory.mktemp("unrecorded") / "run"
    shutil.copytree(trained[0], unrecorded, ignore=shutil.ignore_patterns("sample_history.safetensors", "detect-*", "unlearn-*"))
    monkeypatch.chdir(tmp_path)
    places = {"RUN": trained[0], "PLAIN": plain, "UNRECORDED": unrecorded, "OUT": tmp_path / "out"}
    code, out, err = in_process(capsys, *(places.get(argument, argument) for argument in arguments))
    assert code == 2 and sentence in err and out == ""
    assert err.startswith("fspmu: error: ") and err.count("\n") == 1, err
    assert not any(tmp_path.iterdir()), "nothing is left of a run that could not be"


def test_a_folder_keeps_its_run(trained, tmp_path, capsys):
    folder, _ = trained
    flags = [flag for flag in PRETRAIN if flag != "--json"]
    code, _, err = in_process(capsys, *flags, "--out", folder)
    assert code == 2 and "--resume" in err
    code, _, err = in_process(capsys, *flags, "--out", folder, "--resume", "--lr", "0.5")
    assert code == 2 and "settings.lr is 0.5 here and 0.01 there" in err
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = in_process(capsys, *flags, "--out", tmp_path)
    assert code == 2 and "not empty" in err and (tmp_path / "notes.txt").read_text() == "mine"


def test_what_a_kill_left_half_written_is_swept_away(plain, tmp_path, capsys):
    import shutil

    killed = shutil.copytree(plain, tmp_path / "killed")
    (killed / "done").unlink()
    (killed / "state").mkdir()
    for place in (killed / ".partial-x.safetensors", killed / "state" / ".partial-y", tmp_path / "empty" / ".partial-z.json"):
        place.parent.mkdir(exist_ok=True)
        place.write_text("half")
    flags = ["pretrain", "--epochs", "1", "--limit", "200", "--width", "4", "--precision", "fp32", "--resume"]
    for folder in (killed, tmp_path / "empty"):
        code, _, err = in_process(capsys, *flags, "--out", folder)
        assert code == 0, err
        assert digest(folder / "model.safetensors") == digest(plain / "model.safetensors") and not list(folder.rglob(".partial*"))


def test_fewer_images_than_a_batch(tmp_path, capsys):
    flags = ["pretrain", "--epochs", "2", "--limit", "70", "--batch-size", "128", "--width", "4", "--out", tmp_path / "few", "--json"]
    code, out, err = in_process(capsys, *flags)
    assert code == 0 and json.loads(out)["pretraining"]["passes"]["backward"] == 140, err


def test_a_worse_repair_says_so_first(trained, tmp_path, capsys):
    flags = ["unlearn", trained[0], "--detector", "random", "--share", "0.9", "--method", "finetune", "--lr", "1", "--epochs", "1", "--out", tmp_path / "worse"]
    code, out, _ = in_process(capsys, *flags)
    assert code == 0 and out.startswith("note: the repaired model is WORSE on the evaluation images")


@pytest.mark.parametrize(("name", "content"), [("config.json", "{}"), ("record.json", "{}"), ("config.json", "["), ("labels.safetensors", "no")])
def test_a_damaged_run_gets_a_sentence(name, content, plain, tmp_path, capsys):
    import shutil

    damaged = shutil.copytree(plain, tmp_path / "damaged")
    (damaged / name).write_text(content)
    code, _, err = in_process(capsys, "unlearn", damaged, "--out", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists(), err


def test_finished_evaluations_and_predictions_are_left_as_they_are(plain, tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "a.png")
    for name, flags in {"evaluate": [], "predict": ["--images", tmp_path / "a.png"]}.items():
        states = []
        for _ in range(2):
            code, _, err = in_process(capsys, name, plain, *flags, "--out", tmp_path / name, "--resume")
            assert code == 0, err
            states.append({path.name: digest(path) for path in (tmp_path / name).iterdir()})
        assert states[0] == states[1]


def test_predictions_of_a_class_called_none_are_read_again(tmp_path, capsys):
    from PIL import Image

    for name in ("None", "nan"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / "photos" / name / f"{number}.png")
    flags = ["--dataset", tmp_path / "photos", "--model", "smallcnn", "--width", "4", "--epochs", "1", "--precision", "fp32"]
    assert in_process(capsys, "pretrain", *flags, "--out", tmp_path / "run")[0] == 0
    told = [in_process(capsys, "predict", tmp_path / "run", "--images", tmp_path / "photos", "--out", tmp_path / "out", "--resume", "--json") for _ in range(2)]
    assert [code for code, _, _ in told] == [0, 0], told[1][2]
    assert [[row["predicted_label"] for row in json.loads(out)["predictions"]] for _, out, _ in told][1] == [
        row["predicted_label"] for row in json.loads(told[0][1])["predictions"]
    ]


def test_a_run_is_opened_again_without_its_data_flag(data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FSPMU_DATA_DIR")
    flags = ["--dataset", "cifar10", "--data-dir", data_dir, "--limit", "60", "--test-limit", "30", "--width", "8", "--epochs", "1", "--precision", "fp32"]
    code, _, err = in_process(capsys, "pretrain", *flags, "--out", tmp_path / "run")
    assert code == 0, err
    code, _, err = in_process(capsys, "detect", tmp_path / "run")
    assert code == 0, err


def test_a_newer_schema_is_refused(plain, tmp_path, capsys):
    import shutil

    newer = shutil.copytree(plain, tmp_path / "newer")
    config = json.loads((newer / "config.json").read_text())
    (newer / "config.json").write_text(json.dumps(config | {"schema": 99}))
    code, _, err = in_process(capsys, "unlearn", newer)
    assert code == 2 and "newer" in err and "schema 99" in err


def test_an_unfinished_run_is_no_run_yet(plain, tmp_path, capsys):
    import shutil

    unfinished = shutil.copytree(plain, tmp_path / "unfinished")
    (unfinished / "done").unlink()
    code, _, err = in_process(capsys, "detect", unfinished)
    assert code == 2 and "not finished" in err


def test_a_diverging_loss_stops_with_where_and_keeps_the_state(tmp_path, capsys):
    flags = ["pretrain", "--epochs", "3", "--width", "4", "--precision", "fp32", "--out", tmp_path / "run", "--lr", "1e30"]
    code, _, err = in_process(capsys, *flags)
    assert code == 1 and "NaN or infinite in pretraining, epoch 1, step" in err and not (tmp_path / "run" / "done").exists()


def test_nothing_to_forget_returns_the_model_unchanged(plain, tmp_path, capsys):
    code, out, _ = in_process(capsys, "unlearn", plain, "--detector", "random", "--share", "0", "--out", tmp_path / "same", "--json")
    assert code == 0 and any("unchanged" in text for text in json.loads(out)["warnings"])
    assert digest(tmp_path / "same" / "model.safetensors") == digest(plain / "model.safetensors")


def test_nothing_to_retain_is_an_error(plain, tmp_path, capsys):
    code, _, err = in_process(capsys, "unlearn", plain, "--detector", "random", "--share", "1", "--out", tmp_path / "none")
    assert code == 2 and "0 of 200 samples are left to learn from" in err


def test_moved_images_are_found_by_fingerprint(plain, tmp_path, capsys):
    code, _, err = in_process(capsys, "detect", plain, "--dataset", "digits", "--out", tmp_path / "a")
    assert code == 0, err
    from PIL import Image

    for name in ("x", "y"):
        (tmp_path / "other" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (8, 8), (number * 9, 0, 0)).save(tmp_path / "other" / name / f"{number}.png")
    code, _, err = in_process(capsys, "detect", plain, "--dataset", tmp_path / "other", "--out", tmp_path / "b")
    assert code == 2, err


def test_the_demo_goes_through(tmp_path, capsys):
    code, out, err = in_process(capsys, "demo", "--epochs", "4", "--out", tmp_path / "demo", "--json")
    assert code == 0 and {"original", "known", DEFAULT, "seconds"} <= json.loads(out).keys() and "Test accuracy" in err and str(tmp_path / "demo") in err
    assert {path.name for path in (tmp_path / "demo").iterdir()} >= {"record.json", f"unlearn-fspmu-{DEFAULT}", "unlearn-fspmu-known"}


@pytest.mark.slow
def test_demo_is_what_the_readme_says(tmp_path):
    done = run("demo", "--out", tmp_path / "demo", "--json")
    result = json.loads(done.stdout)
    assert {"original", "known", DEFAULT, "seconds"} <= result.keys()
    assert result["known"] >= 0.95 and result[DEFAULT] >= 0.93 and result["original"] < min(result["known"], result[DEFAULT]) - 0.03
    assert result["detection"][DEFAULT]["f1"] >= 0.80
    assert "Test accuracy" in done.stderr and str(tmp_path / "demo") in done.stderr
    assert os.path.exists(tmp_path / "demo" / f"unlearn-fspmu-{DEFAULT}" / "label_issues.csv")
