"""Models by name: built, named and prepared as their own libraries do it."""

import json
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from fspmu.data.augment import normalise
from fspmu.data.decoding import read_picture
from fspmu.errors import InputError
from fspmu.models.named import build_named, unique_names, what_is_known
from fspmu.models.pixels import Pixels, processor_pixels, timm_pixels
from fspmu.preprocessing import Geometry, Preprocessing

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")


def picture(width=90, height=60):
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.BICUBIC)


def prepared(image, pixels: Pixels):
    """Return what a model of ours would be given."""
    found = torch.from_numpy(read_picture(np.asarray(image), pixels.geometry).copy())[None]
    return normalise(found, Preprocessing(pixels.mean, pixels.std))[0]


class WithConfig(nn.Module):
    def __init__(self, **config):
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 32, 32), "crop_pct": 0.875, "interpolation": "bicubic", **config}


TIMM = [
    {},
    {"interpolation": "bilinear", "crop_pct": 0.95, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    {"crop_pct": 1.0},
    {"crop_pct": 1.0, "crop_mode": "squash"},
    {"crop_pct": 1.0, "crop_mode": "squash", "input_size": (3, 32, 24), "interpolation": "bilinear"},
    {"crop_pct": 0.9, "input_size": (3, 40, 40)},
    {"crop_pct": 0.9, "crop_mode": "squash"},
]


@pytest.mark.parametrize("config", TIMM)
@pytest.mark.parametrize("size", [(90, 60), (60, 96), (48, 48), (32, 32)])
def test_images_are_prepared_as_timm_does(config, size):
    module = WithConfig(**config)
    theirs = timm.data.create_transform(**timm.data.resolve_data_config({}, model=module), is_training=False)
    torch.testing.assert_close(prepared(picture(*size), timm_pixels(module)), theirs(picture(*size)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [{"crop_mode": "border"}, {"interpolation": "random"}])
def test_what_timm_does_otherwise_is_refused(config):
    with pytest.raises(InputError, match="timm resizes for this model by .* which is not known here; give --size, --mean and --std"):
        timm_pixels(WithConfig(**config))


PROCESSORS = {
    "ViTImageProcessor": [
        {"size": {"height": 32, "width": 24}, "resample": 3},
        {"size": {"height": 32, "width": 32}, "do_normalize": False},
        {"size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]},
        {"size": {"height": 32, "width": 32}, "do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 61.0, 62.0], "resample": 0},
    ],
    "CLIPImageProcessor": [
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 24}, "resample": 1},
    ],
    "BitImageProcessor": [{"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 2}],
    "ConvNextImageProcessor": [{"size": {"shortest_edge": 28}}, {"size": {"shortest_edge": 384}}, {"size": {"shortest_edge": 32}, "crop_pct": 0.8}],
    "EfficientNetImageProcessor": [{"size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": True}],
    "DeiTImageProcessor": [{"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}],
    "LevitImageProcessor": [{"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}],
    "PoolFormerImageProcessor": [{"size": {"shortest_edge": 36}, "crop_size": {"height": 36, "width": 36}, "crop_pct": 0.9}],
}


@pytest.mark.parametrize(("kind", "options"), [(kind, options) for kind, cases in PROCESSORS.items() for options in cases])
def test_images_are_prepared_as_transformers_does(kind, options):
    processor = getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind)
    theirs = processor(**options)
    pixels = processor_pixels(json.loads(theirs.to_json_string()), nn.Identity())
    for size in ((96, 64), (64, 64), (32, 32)):
        expected = theirs(picture(*size), return_tensors="pt")["pixel_values"][0].float()
        torch.testing.assert_close(prepared(picture(*size), pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_processor_type": "ImageGPTImageProcessor"}, "what the ImageGPT image processor does"),
        ({"image_processor_type": "MobileViTImageProcessorFast", "do_flip_channel_order": True}, "MobileViT image processor with do_flip_channel_order"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"shortest_edge": 32}}, "crops to nothing"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": 32, "resample": 4}, "not known here"),
        (
            {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_center_crop": True, "size": {"shortest_edge": 32}, "crop_size": 40},
            "not known here",
        ),
    ],
)
def test_image_processors_with_steps_of_their_own_are_refused(settings, words):
    with pytest.raises(InputError, match=f"{words}.*give --size, --mean and --std yourself"):
        processor_pixels(settings, nn.Identity())


def test_a_timm_model_by_name():
    state = torch.random.get_rng_state()
    named = build_named("timm:resnet18", 4, {"in_chans": 1})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(named.module) is timm.models.ResNet and not named.module.training and named.module.fc.out_features == 4
    assert named.geometry == Geometry((224, 224), 1, "shortest", 235, "bicubic")
    assert named.mean == (pytest.approx(0.449, abs=1e-3),) and any("takes 1 channel and its configuration normalises 3" in note for note in named.notes)
    assert any("fresh weights: nothing was loaded" in note for note in named.notes)
    assert (named.origin.kind, named.origin.name, named.origin.arguments) == ("timm", "resnet18", {"in_chans": 1})
    assert named.rebuild().fc.out_features == 4
    assert build_named("timm:vit_tiny_patch16_224", 4, {"img_size": 32, "depth": 1}, load=False).geometry.size == (32, 32)


def test_a_stored_timm_model(tmp_path):
    module = timm.create_model("resnet18", num_classes=3, in_chans=4)
    timm.models.save_for_hf(module, tmp_path, model_config={"label_names": ["ant", "bee", "cat"]}, safe_serialization="both")
    named = build_named(f"timm:local-dir:{tmp_path}")
    assert named.class_names == ("ant", "bee", "cat") and named.geometry.channels == 4 and len(named.mean) == 4
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in named.module.state_dict().items())
    assert named.origin.weights == tmp_path / "model.safetensors"
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no model.safetensors; give its weights with --weights"):
        build_named(f"timm:local-dir:{tmp_path}")
    with pytest.raises(InputError, match="is no folder of a timm model"):
        build_named(f"timm:local-dir:{tmp_path / 'no'}")


@pytest.mark.parametrize(
    ("spec", "classes", "arguments", "words"),
    [
        ("timm:resnet81", 4, {}, "timm knows no model 'resnet81'; did you mean .*resnet18"),
        ("timm:resnet18", None, {}, "how many classes timm:resnet18 is to tell apart is not known; give its weights with --weights"),
        ("timm:resnet18", 4, {"wings": 2}, "timm:resnet18 cannot be built: .*wings"),
        ("timm:resnet18", 4, {"checkpoint_path": "x"}, "the argument checkpoint_path of timm models is set here"),
        ("resnet18", 4, {}, "'resnet18' names no model; give timm:NAME"),
        ("timm:", 4, {}, "names no model"),
        ("some/net.py:build", 4, {}, "names no model"),
        ("hf:no/such-model-here", None, {}, "hf:no/such-model-here cannot be opened: "),
        ("hf:anything", None, {"trust_remote_code": True}, "take no argument 'trust_remote_code' here"),
        ("fspmu_no_such_module:build", 4, {}, "there is no Python module 'fspmu_no_such_module' here; run from the folder"),
        ("fspmu.models.smallcnn:smallcn", 4, {}, "has no 'smallcn'; did you mean 'smallcnn'"),
        ("fspmu.models:WIDTHS", 4, {}, "no function or class that builds a network, but a dict"),
        ("collections:OrderedDict", None, {}, "returned a OrderedDict and no torch.nn.Module"),
        ("fspmu.models.smallcnn:smallcnn", 4, {"depth": 2}, r"smallcnn\(num_classes=4, depth=2\) failed: TypeError"),
    ],
)
def test_names_that_name_nothing(spec, classes, arguments, words):
    with pytest.raises(InputError, match=words):
        build_named(spec, classes, arguments)


@pytest.mark.parametrize(("package", "spec", "extra"), [("timm", "timm:resnet18", "timm"), ("transformers", "hf:x/y", "hf")])
def test_absent_packages_are_named(monkeypatch, package, spec, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs {package}; pip install -e '.\[{extra}\]'"):
        build_named(spec, 3)


def test_code_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "nets_of_mine.py").write_text(
        textwrap.dedent("""
            from torch import nn
            class Net(nn.Sequential):
                def __init__(self, num_classes, width=4):
                    super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, width), nn.Linear(width, num_classes))
            def fixed(): return Net(7).double()
            def anything(**options): return Net(**options)
            def broken(): raise RuntimeError("no luck\\ntoday")
        """)
    )
    (tmp_path / "halves_of_mine.py").write_text("import a_package_that_nobody_has")
    (tmp_path / "wrong_of_mine.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    named = build_named("nets_of_mine:Net", 3, {"width": 5})
    assert named.module[2].out_features == 3 and named.module[1].out_features == 5 and (named.geometry, named.mean, named.class_names) == (None, None, ())
    assert (named.origin.kind, named.origin.name) == ("code", "nets_of_mine:Net") and named.rebuild is None
    fixed = build_named("nets_of_mine:fixed", 3).module
    assert fixed[2].out_features == 7 and fixed[2].weight.dtype == torch.float32
    assert build_named("nets_of_mine:anything", 3).module[2].out_features == 3
    with pytest.raises(InputError, match=r"nets_of_mine:broken\(\) failed: RuntimeError: no luck$"):
        build_named("nets_of_mine:broken")
    with pytest.raises(InputError, match="importing halves_of_mine failed: No module named 'a_package_that_nobody_has'; install what it needs"):
        build_named("halves_of_mine:build")
    with pytest.raises(InputError, match="importing wrong_of_mine failed: ZeroDivisionError"):
        build_named("wrong_of_mine:build")
    assert sys.path == path


def tiny_vit(labels):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8, id2label=dict(enumerate(labels))
    )
    return transformers.ViTForImageClassification(config)


def test_a_stored_transformers_model(tmp_path):
    module = tiny_vit(["cat", "crane", "crane"]).eval()
    module.half().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no preprocessor_config.json, so that its normalisation is not known; give --size, --mean and --std"):
        build_named(f"hf:{tmp_path}")
    assert build_named(f"hf:{tmp_path}", know_pixels=False).geometry is None
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4] * 3).save_pretrained(tmp_path)
    named = build_named(f"hf:{tmp_path}")
    assert type(named.module) is transformers.ViTForImageClassification and named.module.dtype == torch.float32
    assert named.class_names == ("cat", "crane (1)", "crane (2)") and any("several classes of one name" in note for note in named.notes)
    assert named.geometry == Geometry((32, 32), 3, "squash", 0, "bilinear") and named.mean == (0.4,) * 3
    assert named.origin.processor["image_processor_type"].startswith("ViTImageProcessor")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(named.module(images).logits, module.float()(images).logits)
    other = build_named(f"hf:{tmp_path}", 6, load=False)
    assert other.module.classifier.out_features == 6 and other.class_names == ()


def test_a_network_without_its_classifier_is_no_classifier(tmp_path):
    tiny_vit(["a", "b"]).vit.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no trained classifier.bias, classifier.weight: it is no finished classifier"):
        build_named(f"hf:{tmp_path}")
    with pytest.raises(InputError, match="is no folder of a Hugging Face model"):
        build_named(f"hf:{tmp_path.parent}")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be opened: .*weights that are no safetensors can be given by --weights"):
        build_named(f"hf:{tmp_path}")


def test_what_a_module_says_of_itself():
    assert what_is_known(nn.Linear(2, 2)) == ((), Pixels(), ())
    names, pixels, notes = what_is_known(tiny_vit(["x", "y"]))
    assert names == ("x", "y") and pixels == Pixels() and "not known" in notes[0]
    assert what_is_known(tiny_vit(["LABEL_0", "LABEL_1"]))[0] == ()
    names, pixels, _ = what_is_known(timm.create_model("resnet18", num_classes=2, pretrained_cfg_overlay={"label_names": ["x", "y"]}))
    assert names == ("x", "y") and pixels.geometry == Geometry((224, 224), 3, "shortest", 235, "bicubic")
    assert what_is_known(timm.create_model("resnet18", num_classes=3, pretrained_cfg_overlay={"label_names": ["x", "y"]}))[0] == ()


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=6))
def test_names_are_told_apart(names):
    unique, notes = unique_names(names)
    assert len(set(unique)) == len(unique) == len(names) and bool(notes) == (len(set(names)) < len(names))
    assert all(new == old for new, old in zip(unique, names, strict=True) if names.count(old) == 1)
