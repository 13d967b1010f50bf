"""Weights under other people's names and wrappers; and files that would like to run something."""

import collections
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from fspmu.engine.checkpoint import build_model, save_tensors
from fspmu.engine.public_weights import lay_into, read_weights
from fspmu.errors import InputError
from fspmu.experiments.experiment import Compute, Pretrain, Unlearn
from fspmu.experiments.pipeline import pretrain
from fspmu.experiments.repair_run import unlearn
from fspmu.models import preactresnet18
from fspmu.models.classifier import Description

WIDTH = 8


def public_names(model):
    """Return the weights of our PreActResNet18 under the names that the public repositories use."""
    renamed = collections.OrderedDict()
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "head":
            renamed[f"linear.{parts[1]}"] = value
            continue
        place = int(parts[1])
        if place < 2:
            renamed[f"{('conv1', 'bn1')[place]}.{parts[2]}"] = value
            continue
        stage, block = divmod(place - 3, 2)
        layer = {"norm1": "bn1", "norm2": "bn2", "skip": "shortcut.0"}.get(parts[2], parts[2])
        renamed[f"layer{stage + 1}.{block}.{layer}.{parts[3]}"] = value
    return renamed


def with_extra_heads(weights):
    """Return them as ProMix writes them: a pseudo head and a projection before and after the primary one."""
    extra = {"pseudo_linear.weight": torch.ones(10, 8 * WIDTH), "pseudo_linear.bias": torch.ones(10)}
    projection = {"proj.0.weight": torch.ones(8 * WIDTH, 8 * WIDTH), "proj.0.bias": torch.ones(8 * WIDTH)}
    return collections.OrderedDict([*extra.items(), *weights.items(), *projection.items()])


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = preactresnet18(10, width=WIDTH)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


CONTENTS = {
    "DivideMix": lambda weights: ({"net": 1, "epoch": 300, "state_dict": weights, "optimizer": {"lr": 0.02}}, None),
    "data parallel": lambda weights: ({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, None),
    "ProMix": lambda weights: (with_extra_heads(weights), None),
    "LongReMix, second": lambda weights: (
        {"epoch": 300, "state_dict1": {name: value + 1 for name, value in weights.items()}, "state_dict2": weights, "acc": np.float64(92.8)},
        "state_dict2",
    ),
    "legacy": lambda weights: ({"state_dict": weights}, None),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_weights_of_the_public_repositories_load(tmp_path, model, kind):
    content, key = CONTENTS[kind](public_names(model))
    path = tmp_path / "net1.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    found = lay_into(preactresnet18(10, width=WIDTH), read_weights(path, key), path)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.eval()(images).logits, model.eval()(images).logits)


def test_our_own_names_load_as_they_are(tmp_path, model):
    save_tensors(tmp_path / "model.safetensors", {f"_orig_mod.{name}": value for name, value in model.state_dict().items()})
    found = lay_into(preactresnet18(10, width=WIDTH), read_weights(tmp_path / "model.safetensors"), tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())


class Bomb:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


def test_nothing_in_a_file_is_run(tmp_path, model):
    touched, path = tmp_path / "touched", tmp_path / "net.pth"
    torch.save({"state_dict": public_names(model), "loss": Bomb(touched), "schedule": lambda_like}, path)
    assert lay_into(preactresnet18(10, width=WIDTH), read_weights(path), path)
    path.write_bytes(pickle.dumps(Bomb(touched)))
    with pytest.raises(InputError, match="cannot be read as weights|holds no state dict"):
        read_weights(path)
    assert not touched.exists()


def lambda_like(epoch):
    return epoch


def test_what_is_no_weights_says_so(tmp_path, model):
    path = tmp_path / "net.pth"
    with pytest.raises(InputError, match="does not exist; give a file of weights"):
        read_weights(path)
    for content, words in (({"epoch": 3}, "holds no weights; its keys are epoch"), ([1, 2], "holds no state dict")):
        torch.save(content, path)
        with pytest.raises(InputError, match=words):
            read_weights(path)
    path.write_bytes(b"no pickle at all")
    with pytest.raises(InputError, match="cannot be read as weights"):
        read_weights(path)
    torch.save({"state_dict1": public_names(model), "state_dict2": public_names(model)}, path)
    with pytest.raises(InputError, match="no state dict 'state_dict3'; did you mean 'state_dict"):
        read_weights(path, "state_dict3")
    with pytest.raises(InputError, match="does not fit the network: nothing in it is a weight of shape .16, 3, 3, 3.*check --model and --width"):
        lay_into(preactresnet18(10, width=16), read_weights(path), path)


def test_a_run_can_begin_with_weights_from_elsewhere(tmp_path):
    options = {"dataset": "digits", "compute": Compute(device="cpu", precision="fp32", out=tmp_path / "run")}
    description = Description("smallcnn", {"width": 32, "channels": 3}, tuple("0123456789"))
    model = build_model(description, torch.Generator().manual_seed(0))
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "net1.pth.tar")
    taken = pretrain(Pretrain(method="dividemix", weights=tmp_path / "net1.pth.tar", **options))
    assert taken.record["config"]["weights"] and taken.record["test_accuracy"]["last"] < 0.5 and taken.record["passes"]["pretraining"]["backward"] == 0
    again = unlearn(Unlearn(run=taken.folder, detector="gmm", compute=Compute(device="cpu", precision="fp32", out=tmp_path / "repaired")))
    assert again.record["unlearning"]["settings"]["gamma"] == 5.0, "what suits a model of dividemix"
    with pytest.raises(InputError, match="does not exist; give a file of weights"):
        pretrain(Pretrain(weights=tmp_path / "other.pth", dataset="digits", compute=Compute(out=tmp_path / "other")))
    assert not (tmp_path / "other").exists()
