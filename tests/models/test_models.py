"""The networks: the published sizes, what the skip carries, and the pair that every one of them returns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fspmu.models import MODELS, WIDTHS
from fspmu.models.classifier import Output, copy_of, frozen, reinitialised
from fspmu.models.preact_resnet import PreActBlock


def build(name, width=4, classes=5, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name](classes, width=width, **options)


def random_images(count=3, side=8, channels=3):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("classes", "parameters"), [(10, 11_171_274), (100, 11_217_444)])
def test_the_published_size_of_preactresnet18(classes, parameters):
    model = build("preactresnet18", WIDTHS["preactresnet18"], classes)
    assert size_of(model) == parameters
    assert model.feature_width == 512 and model.num_classes == classes
    assert [module.bias for module in model.modules() if isinstance(module, nn.Conv2d)] == [None] * 20


def test_the_published_size_of_allcnn():
    plan = [(3, 96, 9), (96, 96, 9), (96, 192, 9), (192, 192, 9), (192, 192, 9), (192, 192, 9), (192, 192, 9), (192, 192, 1)]
    expected = sum(inputs * outputs * places + 3 * outputs for inputs, outputs, places in plan) + 192 * 10 + 10
    model = build("allcnn", WIDTHS["allcnn"], 10)
    assert size_of(model) == expected and model.feature_width == 192
    assert [module.stride[0] for module in model.modules() if isinstance(module, nn.Conv2d)] == [1, 1, 2, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", [8, 32, 64])
def test_always_the_pair(name, side):
    model = build(name)
    for mode in (True, False):
        output = model.train(mode)(random_images(side=side))
        assert isinstance(output, Output)
        assert output.logits.shape == (3, 5) and output.features.shape == (3, model.feature_width)
        assert torch.isfinite(output.logits).all() and torch.isfinite(output.features).all()
        torch.testing.assert_close(output.logits, F.linear(output.features, model.head.weight, model.head.bias))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(name, channels):
    assert build(name, channels=channels)(random_images(channels=channels)).logits.shape == (3, 5)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name):
    model = build(name)
    output = model(random_images(6))
    F.cross_entropy(output.logits, torch.arange(6) % 5).backward()
    without = [label for label, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.isfinite().all()]
    assert not without
    # a bias before batch norm has no effect, so its gradient is rounding error: every other one is really there
    flat = [label for label, parameter in model.named_parameters() if label.endswith("weight") and not parameter.grad.any()]
    assert not flat


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2), (4, 8, 1)])
def test_the_skip_carries_the_activated_tensor(inputs, outputs, stride):
    block = PreActBlock(inputs, outputs, stride).eval()
    nn.init.uniform_(block.norm1.running_mean, -1, 1)
    nn.init.zeros_(block.conv2.weight)  # leaves the skip alone
    images = random_images(2, 6, inputs)
    mean, variance = (part.view(1, -1, 1, 1) for part in (block.norm1.running_mean, block.norm1.running_var))
    active = ((images - mean) / torch.sqrt(variance + block.norm1.eps)).clamp(min=0)
    if stride == 1 and inputs == outputs:
        assert not list(block.skip.parameters())
        expected = active
    else:
        expected = torch.einsum("oi,bihw->bohw", block.skip.weight[:, :, 0, 0], active[:, :, ::stride, ::stride])
    torch.testing.assert_close(block(images), expected)


def test_preactresnet18_has_no_final_norm_and_averages_all_places():
    model = build("preactresnet18").eval()
    images = random_images(2, 32)
    places = model.backbone[:-1](images)
    assert places.shape == (2, 32, 4, 4)
    torch.testing.assert_close(model(images).features, places.flatten(2).mean(2))
    assert (places < 0).any()  # no batch norm and no rectifier after the last block


@pytest.mark.parametrize("name", MODELS)
def test_reinitialised(name):
    model = build(name)
    model(random_images(6))  # moves the running statistics
    before = {label: value.clone() for label, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    fresh, again, other = (reinitialised(model, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for label, value in model.state_dict().items():
        assert torch.equal(value, before[label])
        assert torch.equal(fresh.state_dict()[label], again.state_dict()[label])
        if "running" in label or "num_batches" in label:
            assert torch.equal(fresh.state_dict()[label], torch.ones_like(value) if "var" in label else torch.zeros_like(value))
        elif value.ndim > 1:
            assert not torch.equal(fresh.state_dict()[label], value)
            assert not torch.equal(fresh.state_dict()[label], other.state_dict()[label])


def test_students_learn_and_teachers_do_not():
    model = build("smallcnn")
    model.head.weight.requires_grad_(False)
    student, teacher = copy_of(model), frozen(model)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters()) and not teacher.training
    student.head.bias.data.add_(1)
    assert model.training and not model.head.weight.requires_grad
    assert not torch.equal(student.head.bias, model.head.bias)
