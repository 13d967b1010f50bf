"""From a name and a file to a classifier that can be repaired."""

import pickle
import textwrap

import pytest
import torch
from torch import nn

from fspmu.engine.checkpoint import save_tensors
from fspmu.engine.opening import adopted_from, open_model
from fspmu.errors import InputError
from fspmu.models.adopt import WeightsLayout
from fspmu.models.classifier import drawn_from, reinitialised
from fspmu.preprocessing import Geometry

NETS = """
from torch import nn
def conv(num_classes=10, channels=3):
    return nn.Sequential(nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 6), nn.Linear(6, num_classes))
def digits(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 6), nn.Linear(6, num_classes))
def headless():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
def seven():
    return conv(7)
def square(side=224):
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3 * (side // 16) ** 2, 4))
def nothing():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 31 * 31, 4))
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "nets_to_open.py").write_text(textwrap.dedent(NETS))
    monkeypatch.chdir(tmp_path)
    import importlib
    import sys

    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    sys.modules.pop("nets_to_open", None)
    yield importlib.import_module("nets_to_open")
    sys.modules.pop("nets_to_open", None)


def images(side=32, channels=3):
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("classes", [1, 2, 6, 7])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_classes_are_those_of_the_weights(nets, tmp_path, classes, prefix):
    module = nets.conv(classes)
    torch.save({"state_dict": {prefix + name: value for name, value in module.state_dict().items()}}, tmp_path / "net.pth")
    opened = open_model("nets_to_open:conv", weights=tmp_path / "net.pth")
    model = opened.model
    assert model.num_classes == classes and model.head_name == "5" and (opened.geometry, opened.mean, opened.class_names) == (None, None, ())
    torch.testing.assert_close(model(images()).logits, module.eval()(images()))
    assert model.origin.kind == "code" and model.origin.layout == WeightsLayout(".pth", "state_dict", prefix)
    assert model.origin.weights == tmp_path / "net.pth" and opened.channels == 3
    with pytest.raises(InputError, match=f"9 classes were asked for, and the weights in .*net.pth are of {classes}; leave num_classes out"):
        open_model("nets_to_open:conv", weights=tmp_path / "net.pth", num_classes=9)
    assert open_model("nets_to_open:conv", weights=tmp_path / "net.pth", num_classes=classes).model.num_classes == classes


def test_weights_whose_last_matrix_is_not_the_classifier(nets, tmp_path):
    weights = nets.conv(4).state_dict()
    save_tensors(tmp_path / "net.safetensors", {name: weights[name] for name in sorted(weights)})
    torch.save({**{name: value for name, value in weights.items() if name.startswith("5")}, **weights}, tmp_path / "net.pt")
    for name in ("net.safetensors", "net.pt"):
        assert open_model("nets_to_open:conv", weights=tmp_path / name).model.num_classes == 4


def test_weights_of_another_network_are_refused(nets, tmp_path):
    torch.save(nets.digits().state_dict(), tmp_path / "net.pt")
    with pytest.raises(InputError, match="the weights in .*net.pt are not those of this network: it lacks"):
        open_model("nets_to_open:conv", weights=tmp_path / "net.pt")
    torch.save(nets.conv(5).state_dict(), tmp_path / "net.pt")
    with pytest.raises(InputError, match="of another shape are 2 .5.weight 5 x 6 instead of 7 x 6"):
        open_model("nets_to_open:seven", weights=tmp_path / "net.pt")
    with pytest.raises(InputError, match="no state dict 'ema'"):
        open_model("nets_to_open:conv", weights=tmp_path / "net.pt", key="ema")


def test_half_precision_weights_work_in_float32(nets, tmp_path):
    torch.save(nets.conv(3).half().state_dict(), tmp_path / "net.pt")
    opened = open_model("nets_to_open:conv", weights=str(tmp_path / "net.pt"))
    assert all(parameter.dtype == torch.float32 for parameter in opened.model.parameters())
    assert "float16" in opened.notes[0] and set(opened.model.origin.layout.dtypes.values()) == {"float16"}


def test_sizes_are_found_by_trying(nets):
    assert open_model("nets_to_open:conv").geometry is None
    digits = open_model("nets_to_open:digits")
    assert digits.geometry == digits.model.geometry == Geometry((28, 28), 1) and digits.channels == 1
    assert any("takes images of 28 x 28 pixels, found by trying" in note for note in digits.notes)
    assert open_model("nets_to_open:square").geometry == Geometry((224, 224)), "it takes 224 alone"
    assert open_model("nets_to_open:square", arguments={"side": 64}).geometry == Geometry((64, 64))
    assert open_model("nets_to_open:conv", arguments={"channels": 4}).channels == 4
    with pytest.raises(InputError, match="takes images of none of the sizes 224, .*; give its --size"):
        open_model("nets_to_open:nothing")
    assert open_model("nets_to_open:nothing", size=31).geometry == Geometry((31, 31))
    with pytest.raises(InputError, match="does not work on images of 3 x 33 x 33"):
        open_model("nets_to_open:nothing", size=33)
    with pytest.raises(InputError, match="--size is 0"):
        open_model("nets_to_open:conv", size=0)
    with pytest.raises(InputError, match="not what any linear layer of the module makes"):
        open_model("nets_to_open:headless")


def test_what_is_asked_for_goes_before_what_is_known(nets):
    opened = open_model("nets_to_open:conv", num_classes=5, head="5", size=48, mean=[0.1], std=(0.2, 0.3, 0.4))
    assert opened.geometry == Geometry((48, 48)) and opened.mean == (0.1,) * 3 and opened.std == (0.2, 0.3, 0.4) and opened.model.num_classes == 5
    assert (opened.model.mean, opened.model.std) == (opened.mean, opened.std)
    for mean, std, words in (
        ([0.1], None, "--mean and --std belong together"),
        ([0.1, 0.2], [1], "--mean has 2 numbers, and the model takes 3 channels"),
        ([0.1], [1, 0, 1], "--std holds 0, and pixels are divided by it"),
        ([float("nan")], [1.0], "--mean holds nan: give finite numbers"),
        ([0.1], [float("inf")], "--std holds inf: give finite numbers"),
    ):
        with pytest.raises(InputError, match=words):
            open_model("nets_to_open:conv", mean=mean, std=std)
    with pytest.raises(InputError, match="no layer 'fc'; its linear layers: 4 .6 -> 6., 5 .6 -> 10."):
        open_model("nets_to_open:conv", head="fc")
    with pytest.raises(InputError, match="tells 7 classes apart, and 5 were asked for"):
        open_model("nets_to_open:seven", num_classes=5)


def test_a_timm_model_with_weights_of_its_own(tmp_path):
    timm = pytest.importorskip("timm")
    arguments = {"img_size": 32, "depth": 1, "init_values": 0.1}
    with drawn_from(torch.Generator()):
        module = timm.create_model("vit_tiny_patch16_224", num_classes=6, **arguments).eval()
    save_tensors(tmp_path / "net.safetensors", module.state_dict())
    opened = open_model("timm:vit_tiny_patch16_224", weights=tmp_path / "net.safetensors", arguments=arguments)
    assert type(opened.model.module) is type(module) and opened.model.num_classes == 6 and opened.geometry.size == (32, 32)
    torch.testing.assert_close(opened.model(images()).logits, module(images()))
    assert opened.mean == (0.5,) * 3 and opened.model.origin.arguments == arguments and not any("fresh weights" in note for note in opened.notes)
    with pytest.raises(InputError, match="does not work on images of 3 x 64 x 64 .*give its --size"):
        open_model("timm:vit_tiny_patch16_224", weights=tmp_path / "net.safetensors", arguments=arguments, size=64)
    again = pickle.loads(pickle.dumps(opened.model))
    torch.testing.assert_close(again(images()).features, opened.model(images()).features)


def test_a_fresh_timm_network_can_begin_again(tmp_path):
    pytest.importorskip("timm")
    opened = open_model("timm:convnext_atto", num_classes=3, arguments={"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, size=64)
    assert opened.geometry == Geometry((64, 64), 3, "shortest", 64, "bicubic") and any("fresh weights" in note for note in opened.notes)
    fresh, again = (reinitialised(opened.model, torch.Generator().manual_seed(1)) for _ in range(2))
    assert not torch.equal(fresh.head_layer.weight, opened.model.head_layer.weight)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in fresh.state_dict().items())
    assert not fresh.module.training, "as the model was"


def tiny_vit(**options):
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 8}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**shape, **options)).eval()


def test_a_transformers_model_by_folder_and_by_file(tmp_path):
    transformers = pytest.importorskip("transformers")
    module = tiny_vit(id2label={0: "cat", 1: "dog"})
    module.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    opened = open_model(f"hf:{tmp_path}")
    assert opened.class_names == opened.model.class_names == ("cat", "dog") and opened.geometry == Geometry((32, 32))
    torch.testing.assert_close(opened.model(images()).logits, module(images()).logits)
    other = tiny_vit(num_labels=5)
    (tmp_path / "other").mkdir()
    torch.save(other.state_dict(), tmp_path / "other" / "pytorch_model.bin")
    opened = open_model(f"hf:{tmp_path}", weights=tmp_path / "other" / "pytorch_model.bin")
    assert opened.model.num_classes == 5 and opened.class_names == () and opened.model.origin.layout.suffix == ".bin"
    torch.testing.assert_close(opened.model(images()).logits, other(images()).logits)
    with pytest.raises(InputError, match="tells 2 classes apart, and 5 were asked for"):
        open_model(f"hf:{tmp_path}", num_classes=5)


def test_a_module_handed_over_is_known_as_far_as_it_says(nets):
    module = nets.conv(4).train()
    opened = adopted_from(module, images(), class_names="abcd")
    assert opened.model.module is module and module.training and opened.class_names == tuple("abcd") and opened.model.origin.kind == "module"
    assert (opened.geometry, opened.mean, opened.std) == (None, None, None)
    again = adopted_from(opened.model, size=24, mean=[0.5], std=[0.5])
    assert again.model.module is module and again.class_names == tuple("abcd") and again.geometry == Geometry((24, 24)) and again.mean == (0.5,) * 3
    assert adopted_from(again.model).mean == again.mean and adopted_from(again.model).geometry == again.geometry
    with pytest.raises(InputError, match="tells 4 classes apart, and 2 were asked for"):
        adopted_from(module, images(), class_names="ab")


def test_a_transformers_module_handed_over_names_its_classes():
    opened = adopted_from(tiny_vit(id2label={0: "cat", 1: "dog"}))
    assert opened.class_names == ("cat", "dog") and opened.mean is None
    assert opened.geometry == Geometry((32, 32)), "it takes no other"
    module = tiny_vit(id2label={0: "cat", 1: "dog"})
    module.classifier = nn.Linear(16, 3)
    opened = adopted_from(module)
    assert opened.class_names == () and any("its configuration names 2: the names are left out" in note for note in opened.notes)


def test_a_timm_module_handed_over_says_how_it_wants_images():
    timm = pytest.importorskip("timm")
    opened = adopted_from(timm.create_model("resnet18", num_classes=3), images())
    assert opened.geometry == Geometry((224, 224), 3, "shortest", 235, "bicubic") and opened.mean == pytest.approx((0.485, 0.456, 0.406))
