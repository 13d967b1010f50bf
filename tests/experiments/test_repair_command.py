"""`fspmu repair` as a user meets it: models of every origin, one folder, sentences for what cannot be."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import fspmu
from fspmu.cli import main
from fspmu.detection.label_issues import COLUMNS
from fspmu.models.classifier import drawn_from
from teaching import CLASSES, SIDE, as_input, content, pixels_of, taught, write_photos

SHORT = ["--epochs", "2", "--forget-epochs", "1", "--precision", "fp32"]
CODE = """
from torch import nn

def build(num_classes=3, width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes))
"""


def in_process(capsys, *arguments):
    """Run a command here, where importing torch is already paid for; return exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def timm_model(**options):
    import timm

    with drawn_from(torch.Generator().manual_seed(0)):
        return timm.create_model("test_resnet", num_classes=len(CLASSES), **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos of which a fifth lies in a wrong class, trusted photos, a timm model's weights, and code that builds another."""
    root = tmp_path_factory.mktemp("place")
    truth = np.repeat(np.arange(3), 32)
    given = truth.copy()
    wrong = np.arange(len(truth)) % 5 == 0
    given[wrong] = (given[wrong] + 1) % 3
    pixels = pixels_of(truth, 0)
    write_photos(root / "photos", pixels, given)
    trusted = np.repeat(np.arange(3), 10)
    write_photos(root / "trusted", pixels_of(trusted, 1), trusted)
    np.savez(root / "arrays.npz", pixels=pixels, truth=truth, given=given)
    (root / "own_nets.py").write_text(CODE)
    save_file(taught(timm_model(), pixels, truth).state_dict(), root / "net.safetensors")
    with drawn_from(torch.Generator().manual_seed(0)):
        torch.save(taught(built(), pixels, truth, 0.0, 1.0).state_dict(), root / "own.pth")
    return root


def built(width=8):
    space = {}
    exec(CODE, space)
    return space["build"](width=width)


@pytest.fixture
def home(place, tmp_path, monkeypatch):
    """The working folder, which the code of one's own lies in."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    yield place
    sys.modules.pop("own_nets", None)


TIMM = ["repair", "--model", "timm:test_resnet", "--weights", "net.safetensors", "--dataset", "photos", "--size", SIDE]
OWN = ["repair", "--model", "own_nets:build", "--weights", "own.pth", "--dataset", "photos"]


@pytest.fixture(scope="module")
def repaired(place):
    """One whole repair of the timm model, with everything that was printed, and the originals before."""
    before = content(place)
    out = place.parent / "repaired"
    printed = io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as end:
        main([*map(str, TIMM), "--evaluation", "trusted", "--precision", "fp32", "--out", str(out), "--json"])
    assert end.value.code == 0
    return out, printed.getvalue(), before


def test_one_command_from_a_timm_model_to_a_better_one(repaired, place):
    out, printed, before = repaired
    record = json.loads(printed)
    assert printed.count("\n") == 1 and record["folder"] == str(out) and record == json.loads((out / "record.json").read_text()) | {"folder": str(out)}
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "done",
        "label_issues.csv",
        "labels.safetensors",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
        "page",
        "predictions.safetensors",
        "pretrained",
        "record.json",
        "repaired.safetensors",
        "report.html",
        "split.safetensors",
    }
    assert content(place) == before, "images and weights are left as they are"
    arrays = np.load(place / "arrays.npz")
    issues = pd.read_csv(out / "label_issues.csv", dtype=str)
    assert tuple(issues.columns) == COLUMNS and issues["id"].tolist() == sorted(issues["id"]) and len(issues) == len(arrays["truth"])
    wrong = issues["id"].map(lambda name: arrays["truth"][int(Path(name).stem)] != arrays["given"][int(Path(name).stem)])
    assert (issues["is_label_issue"].eq("True") == wrong).mean() > 0.95
    assert issues["label_score"].astype(float)[wrong].mean() < 0.1 < 0.9 < issues["label_score"].astype(float)[~wrong].mean(), "low = bad"
    assert issues["suggested_label"][wrong].eq(issues["id"][wrong].map(lambda name: CLASSES[arrays["truth"][int(Path(name).stem)]])).mean() > 0.95
    assert record["data"]["unreadable"] == 0 and record["evaluation"]["kind"] == "given" and record["evaluation"]["samples"] == 30
    audit = record["unlearning"]["audit"]
    assert audit["after"]["retain_given"] > 0.9 and record["config"]["fitted"] is True


def test_what_comes_back_is_the_owners(repaired, place):
    import timm

    out, _, _ = repaired
    model = timm_model()
    model.load_state_dict(load_file(out / "repaired.safetensors"))
    again = timm.create_model(f"local-dir:{out / 'pretrained'}", pretrained=True)
    ours = fspmu.load(out)
    shown = as_input(np.load(place / "arrays.npz")["pixels"][:8])
    with torch.no_grad():
        answers = model.eval()(shown)
        torch.testing.assert_close(again.eval()(shown), answers)
        torch.testing.assert_close(ours(shown).logits, answers)
    assert ours.class_names == CLASSES and tuple(again.pretrained_cfg["input_size"]) == (3, SIDE, SIDE)
    record = json.loads((out / "record.json").read_text())
    right = sum((model(as_input(np.asarray(Image.open(path))[None])).argmax(1) == CLASSES.index(path.parent.name)).item() for path in place.glob("trusted/*/*"))
    kept = record["evaluation"]["handed_back"] == "repaired"
    assert right / 30 == pytest.approx(record["evaluation"]["after" if kept else "before"])


def test_a_repaired_folder_predicts_with_the_models_own_geometry(repaired, place, tmp_path, capsys):
    out, _, _ = repaired
    colours = pixels_of(np.array([0, 1, 2]), 5)
    for name, image in zip(CLASSES, colours, strict=True):
        Image.fromarray(image).resize((90, 70)).save(tmp_path / f"{name}.png")
    code, printed, _ = in_process(capsys, "predict", out, "--images", tmp_path, "--json")
    found = {Path(row["path"]).stem: row["predicted_label"] for row in json.loads(printed)["predictions"]}
    assert code == 0 and found == {name: name for name in CLASSES}
    for command in ("unlearn", "evaluate", "detect"):
        before = content(out)
        code, printed, err = in_process(capsys, command, out)
        assert code == 2 and printed == "" and err.count("\n") == 1 and "fspmu predict" in err and "fspmu repair" in err, err
        assert content(out) == before


def test_a_finished_folder_is_left_as_it_is(repaired, home, capsys):
    out, first, _ = repaired
    before = content(out)
    flags = ["--evaluation", "trusted", "--precision", "fp32", "--out", out]
    code, printed, _ = in_process(capsys, *TIMM, *flags, "--resume", "--json")
    assert code == 0 and json.loads(printed) == json.loads(first)
    code, printed, _ = in_process(capsys, *TIMM, *flags, "--resume")
    assert code == 0 and "already done, nothing changed" in printed and "handed back: the" in printed
    code, _, err = in_process(capsys, *TIMM, *flags)
    assert code == 2 and "--resume" in err
    code, _, err = in_process(capsys, *TIMM, *flags, "--resume", "--threshold", "0.7")
    assert code == 2 and "split.threshold is 0.7 here and 0.5 there" in err
    code, _, err = in_process(capsys, *TIMM[:-4], "--dataset", "trusted", "--size", SIDE, *flags, "--resume")
    assert code == 2 and "data.name is 'trusted' here and 'photos' there" in err
    assert content(out) == before


def test_the_table_of_a_former_run_says_what_to_forget(repaired, home, tmp_path, capsys):
    out, _, _ = repaired
    flags = [*SHORT, "--forget", out / "label_issues.csv", "--evaluation", "trusted", "--out", tmp_path / "out", "--json"]
    code, printed, err = in_process(capsys, *OWN, *flags)
    record = json.loads(printed)
    assert code == 0 and record["detection"]["detector"] == "given", err
    theirs, ours = (pd.read_csv(folder / "label_issues.csv").set_index("id") for folder in (out, tmp_path / "out"))
    assert theirs["forget"].equals(ours["forget"]) and ours["forget"].sum() == record["detection"]["forget"] > 10
    assert record["unlearning"]["settings"]["weighting"] == "masks", "what somebody says is wrong is wrong"
    for flags_of_finding in (["--cut", "otsu"], ["--detector", "knn"], ["--threshold", "0.9"], ["--views", "2"]):
        code, _, err = in_process(capsys, *OWN, *SHORT, "--forget", out / "label_issues.csv", *flags_of_finding, "--out", tmp_path / "none")
        assert code == 2 and " ".join(flags_of_finding) in err and "leave one of them out" in err and not (tmp_path / "none").exists()
    edited = theirs.assign(given_label=theirs["given_label"].replace("owl", "eagle")).reset_index()
    edited.to_csv(tmp_path / "edited.csv", index=False)
    code, _, err = in_process(capsys, *OWN, *SHORT, "--forget", tmp_path / "edited.csv", "--out", tmp_path / "none")
    assert code == 2 and "eagle" in err and not (tmp_path / "none").exists()


def test_a_checkpoint_goes_back_as_it_came(place, home, tmp_path, capsys):
    weights = {f"module.{name}": value for name, value in load_file(place / "net.safetensors").items()}
    torch.save({"epoch": 7, "state_dict": weights}, tmp_path / "checkpoint.pth")
    before = content(tmp_path)
    flags = ["--model", "timm:test_resnet", "--weights", tmp_path / "checkpoint.pth", "--dataset", "photos", "--size", SIDE, *SHORT]
    code, printed, err = in_process(capsys, "repair", *flags, "--out", tmp_path / "out", "--keep", "always")
    assert code == 0 and "handed back: the repaired model" in printed and f"written: {tmp_path / 'out'}" in printed, err
    assert content(tmp_path).items() >= before.items()
    back = torch.load(tmp_path / "out" / "repaired.pth", weights_only=True)
    assert list(back) == ["state_dict"] and back["state_dict"].keys() == weights.keys()
    model = timm_model()
    model.load_state_dict({name.removeprefix("module."): value for name, value in back["state_dict"].items()})
    assert any(not torch.equal(value, weights[name]) for name, value in back["state_dict"].items())


def test_a_hugging_face_folder_comes_back_as_one(place, home, tmp_path, capsys):
    from transformers import AutoImageProcessor, AutoModelForImageClassification, ResNetConfig, ViTImageProcessor

    names = {"id2label": {0: "owl", 1: "cat", 2: "dog"}, "label2id": {"owl": 0, "cat": 1, "dog": 2}}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3, **names)
    arrays = np.load(place / "arrays.npz")
    with drawn_from(torch.Generator().manual_seed(0)):
        module = AutoModelForImageClassification.from_config(config)
    taught(module, arrays["pixels"], (arrays["truth"] + 1) % 3).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path / "model")
    before = content(tmp_path)
    code, printed, err = in_process(
        capsys, "repair", "--model", f"hf:{tmp_path / 'model'}", "--dataset", "photos", *SHORT, "--out", tmp_path / "out", "--json", "--keep", "always"
    )
    assert code == 0, err
    assert json.loads(printed)["data"]["classes"] == ["owl", "cat", "dog"], "counted as the model counts"
    assert content(tmp_path).items() >= before.items()
    back = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "pretrained")
    assert back.config.id2label == names["id2label"] and AutoImageProcessor.from_pretrained(tmp_path / "out" / "pretrained").size["height"] == SIDE
    with torch.no_grad():
        right = back.eval()(pixel_values=as_input(arrays["pixels"])).logits.argmax(1).numpy() == (arrays["truth"] + 1) % 3
    assert right.mean() > 0.9 and any(not torch.equal(value, back.state_dict()[name]) for name, value in module.state_dict().items())


def test_code_of_ones_own_by_other_names(place, home, tmp_path, capsys):
    """The model calls its classes otherwise, is wider than usual, and wants its pixels normalised."""
    arrays = np.load(place / "arrays.npz")
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    with drawn_from(torch.Generator().manual_seed(0)):
        module = taught(built(width=12), arrays["pixels"], (2 - arrays["truth"]), mean, std)
    torch.save(module.state_dict(), tmp_path / "wide.pt")
    (tmp_path / "map.json").write_text(json.dumps({"cat": "Felis", "dog": "Canis", "owl": "Strix"}))
    flags = ["--model", "own_nets:build", "--model-arguments", '{"width": 12}', "--weights", tmp_path / "wide.pt", "--dataset", "photos"]
    flags += ["--class-names", "Strix", "Canis", "Felis", "--class-map", tmp_path / "map.json", *SHORT]
    flags += ["--mean", "0.4", "0.5", "0.6", "--std", "0.2", "0.3", "0.25", "--hold-out", "0.25", "--json"]
    code, printed, err = in_process(capsys, "repair", *flags, "--out", tmp_path / "out")
    record = json.loads(printed)
    assert code == 0 and record["data"]["classes"] == ["Strix", "Canis", "Felis"], err
    assert not any("implausible" in text or "nobody says" in text for text in record["warnings"]), "names and pixels are understood"
    assert record["evaluation"]["kind"] == "held out" and record["data"]["held_out"] == record["evaluation"]["samples"] == 24
    assert record["evaluation"]["before"] == pytest.approx(0.8, abs=0.15), "the labels held out are as wrong as the others"
    assert record["config"]["preprocessing"]["mean"] == [0.4, 0.5, 0.6] and record["unlearning"]["audit"]["before"]["forget_given"] == 0
    table = pd.read_csv(tmp_path / "out" / "label_issues.csv")
    assert set(table["given_label"]) == {"Strix", "Canis", "Felis"} and table["action"].value_counts()["review"] >= 24
    assert (table.loc[table["action"] == "review", ["retain", "forget"]] == False).all(axis=None)  # noqa: E712
    code, _, err = in_process(capsys, "predict", tmp_path / "out", "--images", "photos/cat")
    assert code == 2 and "own_nets:build" in err
    code, _, err = in_process(capsys, "unlearn", tmp_path / "out")
    assert code == 2 and "holds a repaired model of your own" in err and "add --model" not in err
    code, printed, _ = in_process(capsys, "predict", tmp_path / "out", "--images", "photos/cat", "--model", "own_nets:build", "--json")
    assert code == 0 and {row["predicted_label"] for row in json.loads(printed)["predictions"]} <= {"Strix", "Canis", "Felis"}


def test_settings_are_made_to_fit_unless_the_rate_is_given(home, tmp_path, capsys):
    short = ["--epochs=1", "--forget-epochs", "1", "--precision", "fp32"]
    for flag, fitted in (("--forget-batch", True), ("--forget_batch", True), ("--lr", False)):
        out = tmp_path / flag.strip("-")
        code, printed, err = in_process(capsys, *OWN, flag, "64" if fitted else "1e-4", *short, "--out", out, "--json")
        config = json.loads(printed)["config"]
        assert code == 0 and config["settings"]["epochs"] == 1 and config["fitted"] is fitted, err
        assert config["settings"]["forget_batch"] == (64 if fitted else 512)
    code, printed, err = in_process(capsys, *OWN, "--preset", "nll", *short, "--out", tmp_path / "preset", "--json")
    config = json.loads(printed)["config"]
    assert code == 0 and config["settings"]["gamma"] == 5.0 and config["fitted"] is True, err


def test_a_repair_that_does_not_pay_hands_back_the_model_as_it_was(home, tmp_path, capsys):
    flags = ["--evaluation", "trusted", "--lr", "1", *SHORT]
    code, printed, err = in_process(capsys, *OWN, *flags, "--out", tmp_path / "out")
    assert code == 0 and "handed back: the model as it was; --keep always" in printed and "the model you gave is handed back" in err
    back, given = (torch.load(path, weights_only=True) for path in (tmp_path / "out" / "repaired.pth", home / "own.pth"))
    assert back.keys() == given.keys() and all(torch.equal(value, given[name]) for name, value in back.items())


def test_without_a_name_for_the_folder_and_nothing_to_measure_on(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["repair", "--model", "own_nets:build", "--weights", home / "own.pth", "--dataset", home / "photos", "--hold-out", "0", *SHORT]
    code, printed, err = in_process(capsys, *flags)
    (out,) = (tmp_path / "runs").iterdir()
    assert code == 0 and out.name.startswith("photos-repair-") and f"written: {out}" in printed and "nothing was measured" in printed, err
    record = json.loads((out / "record.json").read_text())
    assert record["evaluation"] is None and record["detection"]["retain"] + record["detection"]["forget"] == record["data"]["train"] == 96
    before = content(out)
    code, _, err = in_process(capsys, *flags)
    assert code == 2 and "--resume" in err and content(out) == before


BAD = {
    "a model nobody knows": (["--model", "timm:test_resnt"], "did you mean test_resnet"),
    "no such form": (["--model", "resnet18"], "package.module:build"),
    "timm without weights": (["--model", "timm:test_resnet", "--weights", "None"], "give its weights with --weights"),
    "no such folder of transformers": (["--model", "hf:photos", "--weights", "None"], "save_pretrained"),
    "no such module": (["--model", "no_nets:build"], "no Python module 'no_nets'"),
    "no such function": (["--model", "own_nets:buidl"], "did you mean 'build'"),
    "no weights": (["--weights", "nowhere.pth"], "nowhere.pth does not exist"),
    "weights of another network": (["--weights", "net.safetensors"], "are not those of this network"),
    "a pickled object": (["--weights", "WHOLE"], "without any weights that could be read without running it"),
    "no such state dict": (["--weights-key", "ema"], "no state dict 'ema'"),
    "other classes": (["--class-names", "cat", "dog", "eagle"], "the data's classes: cat, dog, owl; the model's: cat, dog, eagle"),
    "other numbers of classes": (["--dataset", "digits"], "3 classes apart and does not name them, the data has 10 (0, 1, 2"),
    "a class map that is none": (["--class-map", "own_nets.py"], "is no class map"),
    "a folder without images": (["--dataset", "EMPTY"], "holds no folder with images"),
    "no such data": (["--dataset", "nowhere"], "no folder and no data set is named 'nowhere'"),
    "size 0": (["--size", "0"], "--size is 0"),
    "two means": (["--mean", "0.5", "0.5", "--std", "1", "1"], "--mean has 2 numbers, and the model takes 3 channels"),
    "mean alone": (["--mean", "0.5"], "belong together"),
    "std of nought": (["--mean", "0.5", "--std", "0"], "give numbers above 0"),
    "all held out": (["--hold-out", "1.5"], "--hold-out is 1.5"),
    "unknown keep": (["--keep", "best"], "unknown value of keep 'best'"),
    "unknown order": (["--class-order", "nat"], "did you mean 'natural'"),
    "unknown detector": (["--detector", "gnm"], "did you mean 'gmm'"),
    "nobody knows the truth": (["--detector", "known"], "--forget"),
    "unknown method": (["--method", "fspnu"], "did you mean 'fspmu'"),
    "unknown preset": (["--preset", "nl"], "did you mean 'nll'"),
    "unknown storage": (["--storage", "ram"], "unknown storage 'ram'"),
    "arguments that are no JSON": (["--model-arguments", "{width: 3}"], "--model-arguments is no JSON"),
    "arguments that are a list": (["--model-arguments", "[3]"], "must be a JSON object"),
    "arguments nobody takes": (["--model-arguments", '{"depth": 3}'], "unexpected keyword argument 'depth'"),
    "an evaluation that is none": (["--evaluation", "own_nets.py"], "own_nets.py is a file"),
    "an evaluation of which nothing can be read": (["--evaluation", "TEXTS"], "3 of 3 images cannot be read: cat/1.png (no image of a known format)"),
    "an evaluation with other classes": (["--evaluation", "digits"], "the data's classes: 0, 1, 2"),
    "no such table": (["--forget", "nowhere.csv"], "nowhere.csv is no file"),
    "a head that is none": (["--head", "0"], "name the one that makes the logits with --head"),
    "no threshold": (["--threshold", "2"], "--threshold is 2"),
    "no epochs": (["--epochs", "0"], "--epochs is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_leaves_nothing(case, home, tmp_path, capsys):
    flags, sentence = BAD[case]
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    torch.save(nn.Sequential(), tmp_path / "whole.pth")
    for name in CLASSES:
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "1.png").write_text("no image")
    places = {"TEXTS": tmp_path / "texts", "EMPTY": tmp_path / "empty", "WHOLE": tmp_path / "whole.pth"}
    before = content(home)
    code, out, err = in_process(capsys, *OWN, *(places.get(flag, flag) for flag in flags), "--out", tmp_path / "out")
    assert code == 2 and sentence in err and out == "", err
    said = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(said) == 1 and said[0].startswith("fspmu: error: "), err
    assert not (tmp_path / "out").exists() and content(home) == before


def test_kill_9_in_the_middle_and_resume_ends_in_the_same_bytes(home, tmp_path):
    flags = [*map(str, OWN), "--epochs", "8", "--forget-epochs", "4", "--retain-batch", "4", "--forget-batch", "4", "--precision", "fp32"]
    command = [sys.executable, "-m", "fspmu", *flags]
    killed, metrics = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], stderr=subprocess.PIPE), tmp_path / "killed" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert killed.poll() is None and time.monotonic() < until, killed.stderr.read()
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "killed" / "state").is_dir() and not (tmp_path / "killed" / "done").exists()
    assert not (tmp_path / "killed" / "label_issues.csv").exists()
    for place in (["--out", str(tmp_path / "killed"), "--resume"], ["--out", str(tmp_path / "whole")]):
        with pytest.raises(SystemExit) as end:
            main([*flags, *place])
        assert end.value.code == 0
    clocks = ("record.json", "report.html", "page/material.json", "page/material.safetensors")  # seconds, and a map as large as they allow
    assert content(tmp_path / "killed", clocks) == content(tmp_path / "whole", clocks)
    one, other = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("killed", "whole"))
    assert one | {"seconds": 0} == other | {"seconds": 0}
    assert not list((tmp_path / "killed").rglob(".*"))


def hostile():
    spec = importlib.util.spec_from_file_location("hostile_files", Path(__file__).parents[1] / "data" / "test_hostile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOSTILE = hostile()
messy = HOSTILE.messy


def test_a_folder_as_people_have_them_goes_through_the_whole_command(messy, place, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(place / "own_nets.py", work)
    torch.save(built().state_dict() | {"5.weight": torch.zeros(2, 32), "5.bias": torch.zeros(2)}, work / "net.pth")
    before = HOSTILE.listing(tmp_path)
    flags = ["--model", "own_nets:build", "--weights", "net.pth", "--dataset", messy, "--size", 16, *SHORT, "--out", "out", "--json"]
    environment = os.environ | {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-m", "fspmu", "repair", *map(str, flags)], cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    table = pd.read_csv(work / "out" / "unreadable.csv", dtype=str)
    assert set(table["id"]) == {f"cat/{name}" for name in (*HOSTILE.UNREADABLE, *HOSTILE.ODD)} and record["data"]["unreadable"] == len(table)
    issues = pd.read_csv(work / "out" / "label_issues.csv", dtype=str, keep_default_na=False)
    expected = [f"cat/{name}" for name in (*HOSTILE.READABLE, "turned.jpg", "bits.png", "link.png")]
    expected += [f"{label}/good{number}.png" for label in ("cat", "dog") for number in range(10)]
    assert sorted(issues["id"]) == sorted(expected)
    outside = [entry for entry in HOSTILE.listing(tmp_path) if not entry[0].startswith(str(work / "out"))]
    changed = {entry[0] for entry in set(outside) ^ set(before)}
    assert changed <= {str(work), str(tmp_path / "tmp")}, "only what lies in --out is new"  # the folders' own times
