"""Weights under other people's names and wrappers; and files that would like to run something."""

import collections
import os
import pickle
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from fspmu.data.sources import DataOptions
from fspmu.engine.checkpoint import build_model, save_tensors
from fspmu.engine.public_weights import lay_into, load_into, read_weights, read_weights_file
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
    options = {"dataset": "digits", "data": DataOptions(limit=200), "compute": Compute(device="cpu", precision="fp32", out=tmp_path / "run")}
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


WRAPPINGS = [
    ("", ""),
    ("state_dict", "module."),
    ("model", "_orig_mod."),
    ("net", "module._orig_mod."),
    ("model_state_dict", "_orig_mod.module."),
    ("state_dict_ema", ""),
    ("state_dict1", "model."),
]


def small(first="0"):
    """Return a network whose names begin with `first`."""
    return nn.ModuleDict({first: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "1" if first == "0" else f"{first}2": nn.Linear(4, 5)})


@pytest.mark.parametrize(("wrapper", "prefix"), WRAPPINGS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_how_a_file_spelt_its_names_is_remembered(tmp_path, wrapper, prefix, suffix):
    path, module = tmp_path / f"net{suffix}", small()
    weights = {prefix + name: value for name, value in module.state_dict().items()}
    if suffix == ".safetensors":
        save_tensors(path, weights)
        wrapper = ""
    else:
        torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, path)
    found, layout = read_weights_file(path)
    assert list(found) == list(read_weights(path)) and set(found) == set(module.state_dict())
    assert (layout.suffix, layout.wrapper, layout.prefix) == (suffix, wrapper, prefix)
    other = small()
    assert load_into(other, found, path, layout) == (layout, ())
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("own", ["model", "module"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_prefix_that_is_the_modules_own_name_stays(tmp_path, own, prefix):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, own, nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 5)))

    path, module, other = tmp_path / "net.pt", Outer(), Outer()
    torch.save({prefix + name: value for name, value in module.state_dict().items()}, path)
    weights, spelt = read_weights_file(path)
    layout, notes = load_into(other, weights, path, spelt)
    assert layout.prefix == prefix and notes == ()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in other.state_dict().items())


def test_weights_of_another_network_say_what_differs(tmp_path):
    path = tmp_path / "net.pt"
    weights = small().state_dict()
    weights["1.weight"] = torch.zeros(7, 4)
    weights["0.0.bias"] = torch.zeros(4, dtype=torch.int64)
    weights["2.weight"] = weights.pop("0.0.weight")
    words = (
        r"net.pt are not those of this network: it lacks 1 \(0.0.weight\); the network has no 1 \(2.weight\); "
        r"of another shape are 1 \(1.weight 7 x 4 instead of 5 x 4\); no floating-point numbers are 1 \(0.0.bias\); check the name and arguments"
    )
    with pytest.raises(InputError, match=words):
        load_into(small(), weights, path)
    with pytest.raises(InputError, match=r"it lacks 8 \(first.0.weight, first.0.bias, first.1.weight, ...\)"):
        load_into(small("first"), small().state_dict(), path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_are_cast_and_told(tmp_path, dtype):
    path, module, other = tmp_path / "net.pt", small(), small()
    torch.save(small().to(dtype).state_dict() | {name: value.to(dtype) for name, value in module.state_dict().items() if "num" not in name}, path)
    layout, notes = load_into(other, read_weights(path), path)
    kind = str(dtype).removeprefix("torch.")
    assert set(layout.dtypes.values()) == {kind} and len(layout.dtypes) == 8 and kind in notes[0] and "8 of 9 tensors" in notes[0]
    torch.testing.assert_close(other["1"].weight, module["1"].weight.to(dtype).float())


def test_tensors_that_share_memory_and_old_files_load(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
            self.second.weight = self.first.weight

    module, path = Tied(), tmp_path / "net.safetensors"
    safetensors.torch.save_model(module, path)  # leaves one of the two names out
    other, torch_path = Tied(), tmp_path / "net.pt"
    load_into(other, read_weights(path), path)
    assert torch.equal(other.second.weight, module.first.weight) and other.second.weight is other.first.weight
    torch.save({name: value for name, value in module.state_dict().items() if "num_batches" not in name}, torch_path)
    again = Tied()
    load_into(again, read_weights(torch_path), torch_path)
    assert torch.equal(again.second.weight, module.first.weight)


def test_of_a_whole_pickled_model_the_tensors_are_read_and_nothing_else(tmp_path):
    path, touched = tmp_path / "net.pt", tmp_path / "touched"
    module = small()
    module.register_buffer("mask", torch.ones(2), persistent=False)
    module.hook = Bomb(touched)
    inner = module["0"]
    for content in (module, {"model": module, "epoch": 3}, nn.DataParallel(module)):
        torch.save(content, path)
        found = read_weights(path)
        assert list(found) == list(module.state_dict()) and all(torch.equal(found[name], value) for name, value in module.state_dict().items())
    assert not touched.exists()
    inner.again = module  # a module within itself
    torch.save(module, path)
    assert set(read_weights(path)) == set(small().state_dict())
    for content in (nn.Sequential(), Stateful()):
        torch.save(content, path)
        with pytest.raises(InputError, match=r"pickled object without any weights .*; write torch.save\(model.state_dict\(\), FILE\)"):
            read_weights(path)


class Stateful:
    """Something of somebody's own whose parts are called as those of a module."""

    def __init__(self):
        self._modules, self._parameters, self._buffers = [1], "weights", {"a": 3}


class Pair(nn.Module):
    """Two networks in one module, as ProMix saves them."""

    def __init__(self, first, second):
        super().__init__()
        self.net1, self.net2 = first, second


@pytest.mark.parametrize("whole", [True, False])
def test_both_networks_of_a_pair_are_found(tmp_path, model, whole):
    path, other = tmp_path / "net.pth.tar", preactresnet18(10, width=WIDTH)
    pair = Pair(model, other)
    torch.save(pair if whole else pair.state_dict(), path)
    for key, wanted in ((None, model), ("net1", model), ("net2", other)):
        found = lay_into(preactresnet18(10, width=WIDTH), read_weights(path, key), path)
        assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in found.state_dict().items())
    with pytest.raises(InputError, match="no state dict 'net3'; did you mean 'net"):
        read_weights(path, "net3")


def test_a_program_is_refused_before_it_is_opened(tmp_path):
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript's age
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    with pytest.raises(InputError, match=r"is a TorchScript program; write torch.save\(model.state_dict\(\), FILE\)"):
        read_weights(path)
