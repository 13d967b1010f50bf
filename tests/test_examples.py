"""The examples, run as they stand."""

import ast
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import fspmu
from fspmu.models.classifier import drawn_from
from teaching import CLASSES, pixels_of, taught, write_photos

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of three classes with three images that lie in a wrong one; its pixels and true labels."""
    root, truth = tmp_path_factory.mktemp("data") / "photos", np.repeat(np.arange(3), 10)
    pixels, given = pixels_of(truth, 0), truth.copy()
    given[[0, 10, 20]] = 1, 2, 0
    write_photos(root, pixels, given)
    return root, pixels, truth


def run_example(name, monkeypatch, capsys, *arguments):
    """Run an example under these arguments; return what it left behind and what it printed."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    left = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return left, capsys.readouterr().out


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def test_a_timm_model_and_a_folder(photos, tmp_path, monkeypatch, capsys):
    import timm

    root, pixels, truth = photos
    with drawn_from(torch.Generator().manual_seed(0)):
        model = timm.create_model("test_resnet", num_classes=3)
    save_file(taught(model, pixels, truth).state_dict(), tmp_path / "net.safetensors")
    flags = ["--classes", 3, "--model", "test_resnet", "--size", 32, "--evaluation", root]
    left, printed = run_example("timm_folder.py", monkeypatch, capsys, root, tmp_path / "net.safetensors", tmp_path / "out", *flags)
    result = left["result"]
    assert type(result.model) is type(model) and "result.model is a ResNet, as it was" in printed and f"lies in {tmp_path / 'out'}" in printed
    assert same(result.model.state_dict(), load_file(tmp_path / "out" / "model.safetensors"))
    assert result.record["evaluation"]["kind"] == "given" and len(result.issues) == 30
    assert pd.read_csv(tmp_path / "out" / "label_issues.csv")["id"].tolist() == result.issues["id"].tolist()
    worst = left["worst"]["id"].tolist()
    assert {"dog/000.png", "owl/010.png", "cat/020.png"} <= set(worst[:4]) and all(identity in printed for identity in worst), worst


def test_a_transformers_model_and_a_data_set(photos, tmp_path, monkeypatch, capsys):
    import datasets
    from transformers import AutoModelForImageClassification, ResNetConfig

    root, pixels, truth = photos
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    config.id2label, config.label2id = dict(enumerate(CLASSES)), {name: place for place, name in enumerate(CLASSES)}
    with drawn_from(torch.Generator().manual_seed(0)):
        model = AutoModelForImageClassification.from_config(config)
    taught(model, pixels, truth, 0.0, 1.0).save_pretrained(tmp_path / "model")
    left, printed = run_example("transformers_model.py", monkeypatch, capsys, tmp_path / "model", root, tmp_path / "out")
    result = left["result"]
    assert f"ResNetForImageClassification.from_pretrained('{tmp_path / 'out'}/pretrained')" in printed and "retain" in printed
    again = type(result.model).from_pretrained(tmp_path / "out" / "pretrained")
    assert same(again.state_dict(), result.model.state_dict()) and again.config.id2label == dict(enumerate(CLASSES))
    assert len(result.issues) == 30 and fspmu.load(tmp_path / "out", module=left["model"]).class_names == CLASSES


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_the_core_takes_less_than_ten_lines(path):
    """Of what comes after the flags; imports are counted too."""
    body = ast.parse(path.read_text()).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom) and node.names[0].name != "argparse"]
    flags = next(place for place, node in enumerate(body) if isinstance(node, ast.Assign) and node.targets[0].id == "options")
    lines = sum(node.end_lineno - node.lineno + 1 for node in [*imports, *body[flags + 1 :]])
    assert 2 < lines < 10
