"""Depths of networks: our own, and those of torchvision, timm and transformers, found by looking at one batch."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fspmu.errors import InputError
from fspmu.models import MODELS
from fspmu.models.adopt import adopt
from fspmu.models.blocks import LAST, MOST, AtDepths, find_blocks, named_block, pooled
from fspmu.models.classifier import Classifier


def batch(size=32, channels=3, count=3):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def timm_model(name, **options):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=5, **options)


def torchvision_model(build):
    return build(pytest.importorskip("torchvision").models)


def transformers_model(kind, **config):
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, f"{kind}ForImageClassification")(getattr(transformers, f"{kind}Config")(num_labels=5, **config))


class WithPools(nn.Module):
    """Blocks of one kind that never hand on to each other: a plain function stands between them."""

    class Step(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.layer = nn.Conv2d(inputs, outputs, 3, padding=1)

        def forward(self, images):
            return torch.relu(self.layer(images))

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = self.Step(3, 4), self.Step(4, 6), nn.Linear(6, 5)

    def forward(self, images):
        images = nn.functional.max_pool2d(self.one(images), 2)
        return self.head(nn.functional.max_pool2d(self.two(images), 2).mean(dim=(2, 3)))


# The names of the first and the last block, and how wide they are; the last block is left out where the features are its own mean.
NETWORKS = {
    "preactresnet18": (lambda: MODELS["preactresnet18"](5, width=4), 32, 7, "backbone.3", "backbone.9", 4, 32),
    "resnet18": (lambda: MODELS["resnet18"](5, width=4), 32, 7, "backbone.3", "backbone.9", 4, 32),
    "smallcnn": (lambda: MODELS["smallcnn"](5, width=4), 8, 2, "backbone.2", "backbone.6", 4, 8),
    "allcnn": (lambda: MODELS["allcnn"](5, width=4), 16, 7, "backbone.2", "backbone.20", 4, 8),
    "blocks apart": (WithPools, 16, 2, "one", "two", 4, 6),
    "timm resnet": (lambda: timm_model("resnet10t"), 32, 3, "layer1.0", "layer3.0", 64, 256),
    "timm vit": (lambda: timm_model("vit_tiny_patch16_224", img_size=32, depth=3), 32, 3, "blocks.0", "blocks.2", 192, 192),
    "timm convnext": (lambda: timm_model("convnext_atto", dims=(8, 16, 16, 24), depths=(1, 2, 2, 1)), 64, 6, "stages.0.blocks.0", "stages.3.blocks.0", 8, 24),
    "timm swin": (
        lambda: timm_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2)),
        32,
        4,
        "layers.0.blocks.0",
        "layers.1.blocks.1",
        16,
        32,
    ),
    "timm regnet": (lambda: timm_model("regnetx_002"), 32, 12, "s1.b1", "s4.b6", 24, 368),
    "torchvision resnet": (lambda: torchvision_model(lambda models: models.resnet18(num_classes=5)), 32, 7, "layer1.0", "layer4.0", 64, 512),
    "torchvision vit": (
        lambda: torchvision_model(lambda models: models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5)),
        16,
        2,
        "encoder.layers.encoder_layer_0",
        "encoder.layers.encoder_layer_1",
        16,
        16,
    ),
    "transformers vit": (
        lambda: transformers_model("ViT", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8),
        16,
        2,
        "vit.layers.0",
        "vit.layers.1",
        16,
        16,
    ),
    "transformers resnet": (
        lambda: transformers_model("ResNet", embedding_size=4, hidden_sizes=[4, 8], depths=[2, 2], layer_type="basic"),
        16,
        3,
        "resnet.encoder.stages.0.layers.0",
        "resnet.encoder.stages.1.layers.0",
        4,
        8,
    ),
}


@pytest.fixture(scope="module")
def built():
    """Return each network once, adopted, with a batch that it takes."""
    cache = {}

    def build(name):
        if name not in cache:
            make, size, *_ = NETWORKS[name]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module = make().eval()
            cache[name] = (module if isinstance(module, Classifier) else adopt(module, batch(size)), batch(size))
        return cache[name]

    return build


@pytest.mark.parametrize("name", NETWORKS)
def test_the_depths_of_real_networks(name, built):
    model, images = built(name)
    _, _, count, first, last, narrow, wide = NETWORKS[name]
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
    blocks = find_blocks(model, images)
    assert [block.name for block in blocks][:1] == [first] and blocks[-2].name == last and blocks[-1].name == LAST
    assert len(blocks) == min(count + 1, MOST)
    at = AtDepths.of(model, blocks, images)
    assert (at.widths[0], at.widths[-2], at.widths[-1]) == (narrow, wide, model.feature_width)
    with torch.no_grad():
        plain, seen = model(images), at(images)
    assert torch.equal(plain.logits, seen.logits)
    parts = torch.split(seen.features, list(at.widths), dim=1)
    assert torch.equal(parts[-1], plain.features.float()) and seen.features.shape == (3, at.feature_width)
    assert all(part.isfinite().all() and part.std() > 0 for part in parts)
    assert hooks == sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@pytest.mark.parametrize("name", ["preactresnet18", "torchvision resnet", "transformers vit", "timm swin"])
def test_a_depth_is_the_mean_of_what_the_block_makes(name, built):
    model, images = built(name)
    block = find_blocks(model, images)[1]
    made = []
    listening = block.module.register_forward_hook(lambda part, given, output: made.append(output[0] if isinstance(output, tuple) else output))
    try:
        with torch.no_grad():
            model(images)
    finally:
        listening.remove()
    expected = made[0].mean(dim=(1, 2) if "swin" in name else (2, 3)) if made[0].ndim == 4 else made[0].mean(dim=1)
    with torch.no_grad():
        assert torch.equal(AtDepths.of(model, [block], images)(images).features, expected)


def test_a_copy_looks_at_itself_and_the_original_stays_as_it_was(built):
    model, images = built("torchvision resnet")
    at = AtDepths.of(model, find_blocks(model, images), images)
    twin = copy.deepcopy(at)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert not torch.equal(twin(images).features, at(images).features)
        assert torch.equal(at(images).logits, model(images).logits)


def test_training_mode_is_put_back_part_by_part():
    model = MODELS["smallcnn"](5, width=4).train()
    model.backbone[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_blocks(model, batch(8))
    assert model.training and not model.backbone[1].training and model.backbone[4].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # batch norm saw nothing


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.broken = nn.Linear(12, 4), nn.Linear(4, 5), False

    def forward(self, images):
        made = self.head(self.body(images.flatten(1)))
        if self.broken:
            raise RuntimeError("no more")
        return made


def test_no_hook_is_left_behind_by_a_failing_network():
    model = adopt(Failing().eval(), batch(2))
    block = find_blocks(model, batch(2))[0]
    at = AtDepths.of(model, [block], batch(2))
    model.module.broken = True
    for look in (lambda: find_blocks(model, batch(2)), lambda: at(batch(2))):
        with pytest.raises(RuntimeError, match="no more"):
            look()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_linear_model_has_one_depth():
    model = Classifier(nn.Flatten(), nn.Linear(12, 5))
    assert [block.name for block in find_blocks(model, batch(2))] == [LAST]


def test_parts_by_name():
    model = MODELS["smallcnn"](5, width=4)
    blocks = find_blocks(model, batch(8))
    for name in (LAST, "backbone.2", "backbone.0"):
        assert named_block(model, name, blocks).name == name
    for name in ("backbone.99", ""):
        with pytest.raises(InputError, match="no part .*backbone.2"):
            named_block(model, name, blocks)


def test_a_part_that_makes_no_rows_is_refused_in_a_sentence():
    model = Classifier(nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (-1, 3)), nn.Flatten()), nn.Linear(12, 5))
    with pytest.raises(InputError, match="backbone.0 .*no row of features for each image"):
        AtDepths.of(model, [named_block(model, "backbone.0", find_blocks(model, batch(2)))], batch(2))


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_pooling_is_a_mean_over_places_wherever_the_channels_are(count, channels, height, width, tokens):
    made = torch.randn(count, channels, height, width, dtype=torch.float64)
    if tokens:
        assert torch.allclose(pooled(made.flatten(2).transpose(1, 2)), made.flatten(2).mean(dim=2))
        assert torch.equal(pooled(made[:, :, 0, 0]), made[:, :, 0, 0])
    elif not (channels == height != width):  # else the channels look as if they came last
        assert torch.allclose(pooled(made), made.mean(dim=(2, 3)))
    if height == width != channels:
        assert torch.allclose(pooled(made.permute(0, 2, 3, 1)), made.mean(dim=(2, 3)))
