"""Handing back: the repaired model in the file, library and module it came from."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fspmu.engine.checkpoint import load, save_model
from fspmu.engine.handing_back import PRETRAINED, hand_back, like, restore_flags, timm_geometry, weights_hash, write_pretrained
from fspmu.engine.model_card import CardFacts
from fspmu.engine.public_weights import load_into, read_weights_file
from fspmu.errors import InputError
from fspmu.models.adopt import Origin, adopt
from fspmu.models.classifier import Description
from fspmu.models.named import build_named
from fspmu.models.pixels import processor_pixels, timm_pixels
from fspmu.preprocessing import Geometry, Preprocessing

NAMES = ("cat", "dog|x", "owl")
FACTS = CardFacts("mine", samples=100, forgotten=7, detector="gmm", method="fspmu", seed=5, notes=("first note",))
SIZE = 32


class Net(nn.Module):
    """A user's own network: batch norm, and one convolution used under two names."""

    def __init__(self, num_classes=3, width=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 1, bias=False)
        self.second = nn.Conv2d(width, width, 1, bias=False)
        self.second.weight = self.first.weight
        self.out = nn.Linear(width, num_classes)

    def forward(self, images):
        inner = self.second(self.first(self.norm(self.conv(images)).relu()))
        return self.out(inner.mean((2, 3)))


def images(seed=0, size=SIZE, channels=3):
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(seed))


def adopted(module, origin, geometry=None, names=NAMES, mean=(0.1, 0.2, 0.3)):
    channels = geometry.channels if geometry else 3
    model = adopt(module, images(channels=channels), class_names=names)
    model.origin, model.geometry = origin, geometry
    spec = f"{origin.kind}:{origin.name}" if origin.kind in ("timm", "hf") else origin.name
    model.description = Description(spec, origin.arguments, tuple(names), Preprocessing(mean[:channels], (0.5,) * channels), "elsewhere")
    return model.eval()


def changed(model, seed=1):
    """Change every weight a little, as a repair does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.05 * torch.randn(value.shape, generator=generator)
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value += 0.1
    return model


def answers(module, batch):
    with torch.no_grad():
        found = module(batch)
    return found if isinstance(found, torch.Tensor) else found.logits


def own(folder=None, layout=None, weights=None, seed=0):
    torch.manual_seed(seed)
    return changed(adopted(Net(), Origin("module", layout=layout, weights=weights)))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) and value.dtype == right[name].dtype for name, value in left.items())


# the file the weights came from


SAVED = {
    "safetensors": (".safetensors", "", ""),
    "bare": (".pth", "", ""),
    "wrapped": (".pt", "state_dict", ""),
    "data parallel": (".tar", "model", "module."),
    "no suffix": ("", "net", "_orig_mod."),
    "prefixed safetensors": (".safetensors", "", "module."),
}


def write_source(folder, suffix, wrapper, prefix, dtype=torch.float32, extra=None):
    torch.manual_seed(0)
    weights = {prefix + name: value.to(dtype) if value.is_floating_point() else value for name, value in Net().state_dict().items()}
    path = folder / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file({name: value.clone() for name, value in weights.items()}, path)
    else:
        torch.save({wrapper: weights, **(extra or {})} if wrapper else weights, path)
    return path, weights


def taken_from(path):
    module = Net()
    weights, layout = read_weights_file(path)
    layout, _ = load_into(module, weights, path, layout)
    return adopted(module, Origin("code", "nets:Net", layout, weights=path))


def read_back(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@pytest.mark.parametrize("case", SAVED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_weights_go_back_as_they_came(tmp_path, case, dtype):
    suffix, wrapper, prefix = SAVED[case]
    source, before = write_source(tmp_path, suffix, wrapper, prefix, dtype, {"epoch": 3, "optimizer": {"state": {}}})
    model = changed(taken_from(source))
    out = tmp_path / "run"
    written = hand_back(model, out, parent_hash="ab" * 32, facts=FACTS)
    path = out / f"repaired{suffix}"
    assert path in written
    content = read_back(path)
    if wrapper:
        assert list(content) == [wrapper]
        content = content[wrapper]
    assert content.keys() == before.keys() and {name: value.dtype for name, value in content.items()} == {name: value.dtype for name, value in before.items()}
    fresh = Net()
    fresh.load_state_dict({name.removeprefix(prefix): value for name, value in content.items()})
    torch.testing.assert_close(answers(fresh.eval(), images(3)), answers(model.module, images(3)), rtol=0.05, atol=0.05)
    card = (out / "README.md").read_text()
    assert ("rounded to" in card) == (dtype != torch.float32) and ("an optimiser, an epoch" in card) == (suffix != ".safetensors")
    assert "first note" in card and str(tmp_path) not in card


def test_safetensors_say_where_they_come_from(tmp_path):
    source, _ = write_source(tmp_path, *SAVED["safetensors"])
    for folder in "ab":
        hand_back(changed(taken_from(source)), tmp_path / folder, parent_hash="ab" * 32, facts=FACTS)
    with safe_open(tmp_path / "a" / "repaired.safetensors", "pt") as file:
        told = file.metadata()
    assert told["parent_sha256"] == "ab" * 32 and told["seed"] == "5" and told["forgotten"] == "7" and told["method"] == "fspmu" and told["format"] == "pt"
    for name in ("repaired.safetensors", "model.safetensors", "model.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_torch_files_are_the_same_bytes_each_time(tmp_path):
    source, _ = write_source(tmp_path, *SAVED["wrapped"])
    for folder in "ab":
        hand_back(changed(taken_from(source)), tmp_path / folder, parent_hash="", facts=FACTS)
    assert (tmp_path / "a" / "repaired.pt").read_bytes() == (tmp_path / "b" / "repaired.pt").read_bytes()


def test_a_source_that_is_gone_is_no_reason_to_stop(tmp_path):
    source, _ = write_source(tmp_path, ".pt", "state_dict", "", torch.float16)
    model = taken_from(source)
    source.unlink()
    hand_back(model, tmp_path / "run", parent_hash="", facts=FACTS)
    assert torch.load(tmp_path / "run" / "repaired.pt", weights_only=True)["state_dict"]["out.weight"].dtype == torch.float16  # noted when it was opened
    assert "could not be read again" in (tmp_path / "run" / "README.md").read_text()


def test_without_a_source_there_is_no_file_like_it(tmp_path):
    written = hand_back(own(), tmp_path / "run", parent_hash="", facts=FACTS)
    assert (
        sorted(path.name for path in written) == ["README.md", "model.json", "model.safetensors"] == sorted(path.name for path in (tmp_path / "run").iterdir())
    )
    Net().load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))  # under the user's own names, shared weights twice


def test_old_files_get_no_names_that_they_never_had(tmp_path):
    weights = {name: value for name, value in Net().state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "old.pth")
    hand_back(taken_from(tmp_path / "old.pth"), tmp_path / "run", parent_hash="", facts=FACTS)
    assert torch.load(tmp_path / "run" / "repaired.pth", weights_only=True).keys() == weights.keys()


# opened again


def test_a_module_handed_over_comes_back_into_one_built_again(tmp_path):
    model = own()
    hand_back(model, tmp_path, parent_hash="", facts=FACTS)
    with pytest.raises(InputError, match=r"handed over in Python; .*module=\.\.\."):
        load(tmp_path)
    fresh = Net()
    before = copy.deepcopy(fresh.state_dict())
    again = load(tmp_path, module=fresh)
    assert same(fresh.state_dict(), before)  # what is handed over stays as it is
    assert type(again.module) is Net and again.class_names == NAMES and again.head_name == "out" and not again.training
    assert again.description == model.description and same(again.module.state_dict(), model.module.state_dict())
    torch.testing.assert_close(again(images()).features, model(images()).features)
    assert again.module.first.weight is again.module.second.weight


@pytest.mark.parametrize(
    ("module", "sentence"),
    [(Net(num_classes=4), "2 of another shape .*out.bias"), (nn.Sequential(nn.Linear(2, 3)), "missing .*that the module does not have")],
)
def test_another_module_is_refused_with_what_differs(tmp_path, module, sentence):
    save_model(own(), tmp_path)
    with pytest.raises(InputError, match=f"do not fit the module: .*{sentence}"):
        load(tmp_path, module=module)


def test_code_is_imported_only_when_it_is_named_again(tmp_path, monkeypatch):
    (tmp_path / "their_nets.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\nfrom torch import nn\n\n"
        "def build(num_classes, width):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    named = build_named("their_nets:build", 3, {"width": 5})
    model = changed(adopted(named.module, named.origin))
    save_model(model, tmp_path / "run")
    (tmp_path / "imported").unlink()
    monkeypatch.delitem(__import__("sys").modules, "their_nets")
    with pytest.raises(InputError, match="add --model their_nets:build"):
        load(tmp_path / "run")
    assert not (tmp_path / "imported").exists()
    again = load(tmp_path / "run", code="their_nets:build")
    assert (tmp_path / "imported").exists() and torch.equal(again(images()).logits, model(images()).logits)


def test_a_second_repair_hands_back_like_the_first_source(tmp_path):
    source, before = write_source(tmp_path, ".tar", "model", "module.", torch.float16)
    hand_back(taken_from(source), tmp_path / "one", parent_hash="", facts=FACTS)
    again = load(tmp_path / "one", module=Net())
    assert again.origin.weights == tmp_path / "one" / "repaired.tar" and again.origin.layout.wrapper == "model"
    hand_back(again, tmp_path / "two", parent_hash="", facts=FACTS)
    found = torch.load(tmp_path / "two" / "repaired.tar", weights_only=True)["model"]
    assert {name: value.dtype for name, value in found.items()} == {name: value.dtype for name, value in before.items()}


def test_a_module_in_double_precision_stays_so(tmp_path):
    model = own().double()
    save_model(model, tmp_path)
    assert same(load(tmp_path, module=Net()).module.state_dict(), model.module.state_dict())


# the libraries' own folders


@pytest.fixture(scope="module")
def timm_model():
    pytest.importorskip("timm")
    named = build_named("timm:test_resnet", 3, {"in_chans": 4})
    geometry = replace(named.geometry, size=(64, 64), shortest=72)
    return changed(adopted(named.module, named.origin, geometry, mean=(0.1, 0.2, 0.3, 0.4)))


@pytest.fixture(scope="module")
def timm_run(timm_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm") / "run"
    hand_back(timm_model, folder, parent_hash="cd" * 32, facts=FACTS)
    return folder


def test_timm_opens_the_folder_and_gives_the_same_answers(timm_model, timm_run):
    import timm

    again = timm.create_model(f"local-dir:{timm_run / PRETRAINED}", pretrained=True).eval()
    batch = images(channels=4)
    torch.testing.assert_close(answers(again, batch), answers(timm_model.module, batch))
    assert list(again.pretrained_cfg["label_names"]) == list(NAMES) and again.pretrained_cfg["num_classes"] == 3
    pixels = timm_pixels(again)
    assert (pixels.geometry, pixels.mean, pixels.std) == (timm_model.geometry, (0.1, 0.2, 0.3, 0.4), (0.5,) * 4)
    assert 'create_model("local-dir:pretrained"' in (timm_run / "README.md").read_text()


def test_a_timm_run_is_opened_by_its_name_alone(timm_model, timm_run):
    state = torch.random.get_rng_state()
    again = load(timm_run)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(again(images(channels=4)).logits, timm_model(images(channels=4)).logits)
    assert (again.mean, again.std) == ((0.1, 0.2, 0.3, 0.4), (0.5,) * 4)  # or another repair would take its images as they are
    assert again.geometry == timm_model.geometry and again.class_names == NAMES and again.origin.kind == "timm" and again.origin.name == "test_resnet"
    assert type(again.rebuild()) is type(again.module)


def test_a_timm_module_that_was_changed_has_no_folder_and_says_so(tmp_path):
    pytest.importorskip("timm")
    named = build_named("timm:test_resnet", 3)
    named.module.act1 = nn.Sigmoid()  # no weight shows it
    model = adopted(named.module, named.origin, named.geometry)
    written = hand_back(model, tmp_path, parent_hash="", facts=FACTS)
    assert not (tmp_path / PRETRAINED).exists() and not any(PRETRAINED in path.name for path in (*written, *tmp_path.iterdir()))
    assert "There is no folder pretrained" in (tmp_path / "README.md").read_text()
    with pytest.raises(InputError, match=r"changed after timm had built it; .*module=\.\.\."):
        load(tmp_path)
    other = build_named("timm:test_resnet", 3).module
    other.act1 = nn.Sigmoid()
    assert torch.equal(load(tmp_path, module=other)(images()).logits, model(images()).logits)


@pytest.fixture(scope="module")
def hf_model(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf") / "before"
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=SIZE, patch_size=8, num_labels=3
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.5]).save_pretrained(folder)
    named = build_named(f"hf:{folder}")
    return changed(adopted(named.module, named.origin, named.geometry))


@pytest.fixture(scope="module")
def hf_run(hf_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "run"
    hand_back(hf_model, folder, parent_hash="", facts=FACTS)
    return folder


def test_transformers_opens_the_folder_and_gives_the_same_answers(hf_model, hf_run):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    again = AutoModelForImageClassification.from_pretrained(hf_run / PRETRAINED)
    torch.testing.assert_close(answers(again, images()), answers(hf_model.module, images()))
    assert again.config.id2label == dict(enumerate(NAMES)) and again.config.label2id == {name: place for place, name in enumerate(NAMES)}
    processor = AutoImageProcessor.from_pretrained(hf_run / PRETRAINED)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert processor_pixels(processor.to_dict(), again).geometry == hf_model.geometry
    assert hf_model.module.config.id2label[0] == "LABEL_0"  # the module at hand stays as it was
    card = (hf_run / "README.md").read_text()
    assert (
        'from_pretrained("pretrained")' in card
        and "hf\\:before" in card
        and str(Path(hf_model.origin.name).parent) not in card
        and "load_state_dict" not in card
    )


def test_a_transformers_run_is_opened_by_its_config_alone(hf_model, hf_run):
    again = load(hf_run)
    assert torch.equal(again(images()).logits, hf_model(images()).logits) and again.geometry == hf_model.geometry
    assert again.origin.processor == hf_model.origin.processor and again.class_names == NAMES
    assert "_name_or_path" not in (hf_run / "model.json").read_text()


@pytest.mark.parametrize("resize", [("squash", 0), ("squash", 40), ("shortest", 40)])
def test_a_processor_says_what_was_used_not_what_was_meant(hf_model, tmp_path, resize):
    from transformers import AutoImageProcessor

    model = copy.deepcopy(hf_model)
    model.geometry = Geometry((SIZE, SIZE), 3, *resize, "bicubic")
    assert write_pretrained(model, tmp_path / PRETRAINED) == ""
    processor = AutoImageProcessor.from_pretrained(tmp_path / PRETRAINED).to_dict()
    assert processor_pixels(processor, model.module).geometry == model.geometry


def test_a_half_written_folder_gives_way_and_an_old_one_too(hf_model, tmp_path):
    for name in (f".{PRETRAINED}-partial", PRETRAINED):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    assert write_pretrained(hf_model, tmp_path / PRETRAINED) == ""
    assert [path.name for path in tmp_path.iterdir()] == [PRETRAINED] and not (tmp_path / PRETRAINED / "old").exists()


def test_a_full_disk_is_no_note_in_a_card(hf_model, tmp_path, monkeypatch):
    def full(self, folder):
        Path(folder).mkdir()
        raise OSError("No space left on device")

    (tmp_path / PRETRAINED).mkdir()
    monkeypatch.setattr(type(hf_model.module), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        write_pretrained(hf_model, tmp_path / PRETRAINED)
    assert [path.name for path in tmp_path.iterdir()] == [PRETRAINED]


@pytest.mark.parametrize("home", ["timm", "hf"])
def test_a_spoilt_entry_is_named(timm_run, hf_run, tmp_path, home):
    import shutil

    shutil.copytree(timm_run if home == "timm" else hf_run, tmp_path / "run")
    path = tmp_path / "run" / "model.json"
    content = json.loads(path.read_text())
    if home == "timm":
        content["adopted"]["recipe"]["architecture"] = "test_resnot"
    else:
        content["adopted"]["recipe"]["config"]["model_type"] = "vot"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="cannot build test_resnot|does not know the network 'vot'"):
        load(tmp_path / "run")


@settings(max_examples=80)
@given(st.integers(16, 1024), st.integers(0, 512), st.floats(0.5, 1) | st.none())
def test_timm_resizes_to_what_the_geometry_says(side, more, crop_pct):
    words = timm_geometry(Geometry((side, side), 3, "shortest", side + more), crop_pct)
    assert math.floor(side / words["crop_pct"]) == side + more  # as its transforms have it
    assert timm_geometry(Geometry((side, side), 3, "shortest", side + more), words["crop_pct"]) == words


# modules


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_repaired_module_is_like_the_original(dtype):
    original = Net().to(dtype).to(memory_format=torch.channels_last).train()
    original.norm.eval()
    original.conv.requires_grad_(False)
    repaired = copy.deepcopy(original).float().requires_grad_(True).eval()
    repaired(images()).sum().backward()
    changed(repaired)
    expected = copy.deepcopy(repaired)
    assert like(original, repaired) is repaired
    for (name, theirs), ours in zip(original.state_dict().items(), repaired.state_dict().values(), strict=True):
        assert (ours.dtype, ours.device, ours.stride()) == (theirs.dtype, theirs.device, theirs.stride()), name
        assert torch.equal(ours, expected.state_dict()[name].to(theirs.dtype)), name
    assert [module.training for module in repaired.modules()] == [module.training for module in original.modules()] and not repaired.norm.training
    assert [value.requires_grad for value in repaired.parameters()] == [value.requires_grad for value in original.parameters()]
    assert repaired.first.weight is repaired.second.weight and all(value.grad is None for value in repaired.parameters())


def test_flags_come_back_and_nothing_else_changes():
    original = Net().train()
    original.out.requires_grad_(False)
    repaired = changed(copy.deepcopy(original)).eval().requires_grad_(True)
    before = copy.deepcopy(repaired.state_dict())
    restore_flags(original, repaired)
    assert repaired.norm.training and not repaired.out.weight.requires_grad and repaired.conv.weight.requires_grad and same(repaired.state_dict(), before)


def test_flags_of_another_structure_are_refused():
    with pytest.raises(ValueError, match="other parts"):
        restore_flags(Net(), nn.Linear(2, 2))


@settings(max_examples=20)
@given(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]), st.integers(0, 5))
def test_a_hash_names_the_weights_and_nothing_else(dtype, seed):
    torch.manual_seed(seed)
    module = Net().to(dtype)
    found = weights_hash(module)
    assert len(found) == 64 and int(found, 16) >= 0
    assert weights_hash(copy.deepcopy(module).to(memory_format=torch.channels_last).eval().requires_grad_(False)) == found
    nudged = copy.deepcopy(module)
    with torch.no_grad():
        nudged.norm.running_var[0] += 0.5
    assert weights_hash(nudged) != found


def test_a_hash_survives_a_file_and_tells_names_types_and_shapes_apart(tmp_path):
    model = own()
    found = weights_hash(model)
    assert found == weights_hash(model.module)
    save_model(model, tmp_path)
    assert weights_hash(load(tmp_path, module=Net())) == found

    def holding(name, value):
        module = nn.Module()
        module.register_buffer(name, value)
        return weights_hash(module)

    zeros = [holding("a", torch.zeros(4)), holding("b", torch.zeros(4)), holding("a", torch.zeros(2, 2)), holding("a", torch.zeros(4, dtype=torch.int32))]
    assert len(set(zeros)) == 4 and len({holding("a", torch.zeros(0)), holding("a", torch.tensor(1.0)), holding("a", torch.tensor(True))}) == 3
