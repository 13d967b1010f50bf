"""Anybody's classifier taken in: the right layer is its head, and nothing about the module changes."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fspmu.errors import InputError
from fspmu.models import smallcnn
from fspmu.models.adopt import Adopted, adopt
from fspmu.models.classifier import copy_of, drawn_from, frozen, reinitialised
from fspmu.models.named import build_named

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")


def images(count=2, channels=3, side=32, seed=0):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def plain(channels=3, classes=5):
    return nn.Sequential(nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def hf_vit(classes=5):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8, num_labels=classes
    )
    return transformers.ViTForImageClassification(config)


def hf_resnet(classes=5):
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=classes))


def of_timm(name, **arguments):
    return lambda: timm.create_model(name, num_classes=5, **arguments)


KINDS = {
    "sequential": (plain, "5"),
    "resnet18": (of_timm("resnet18"), "fc"),
    "convnext": (of_timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)), "head.fc"),
    "efficientnet": (of_timm("efficientnet_b0"), "classifier"),
    "mobilenetv3": (of_timm("mobilenetv3_small_050"), "classifier"),
    "vit": (of_timm("vit_tiny_patch16_224", img_size=32, depth=1, init_values=1e-3), "head"),
    "grey resnet18": (of_timm("resnet18", in_chans=1), "fc"),
    "four channels": (lambda: plain(4), "5"),
    "HF ViT": (hf_vit, "classifier"),
    "HF ResNet": (hf_resnet, "classifier.1"),
}


@pytest.fixture(scope="module")
def modules():
    with drawn_from(torch.Generator().manual_seed(1)):
        built = {kind: build().train() for kind, (build, _) in KINDS.items()}
        for module in built.values():  # as if somebody had trained them
            for parameter in module.parameters():
                parameter.data += 0.02 * torch.randn_like(parameter)
        return built


def example_for(module):
    return images(channels=next((layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)), 3))


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_found_and_the_pair_is_right(modules, kind):
    module = modules[kind]
    names, modes = list(module.state_dict()), [part.training for part in module.modules()]
    example = example_for(module)
    adopted = adopt(module, example)
    assert adopted.head_name == KINDS[kind][1] and adopted.num_classes == 5 and adopted.module is module
    assert [part.training for part in module.modules()] == modes and adopted.training
    assert list(adopted.state_dict()) == [f"module.{name}" for name in names]
    assert len(list(adopted.parameters())) == len(list(module.parameters()))
    adopted.eval()
    logits, features = adopted(example)
    answer = module(example)
    torch.testing.assert_close(logits, getattr(answer, "logits", answer))
    assert features.shape == (2, adopted.feature_width)
    torch.testing.assert_close(logits, F.linear(features, adopted.head_layer.weight, adopted.head_layer.bias))
    assert not adopted.head_layer._forward_pre_hooks and not adopted.head_layer._forward_hooks
    adopted.train()


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_works_and_goes_through_files(modules, kind):
    adopted = adopt(modules[kind], example_for(modules[kind])).eval()
    example = example_for(adopted.module)
    with torch.no_grad():
        expected = adopted(example)
        student, teacher = copy_of(adopted), frozen(adopted)
        assert all(parameter.requires_grad for parameter in student.parameters()) and not any(parameter.requires_grad for parameter in teacher.parameters())
        again = pickle.loads(pickle.dumps(adopted))
        for parameter in student.parameters():
            parameter.zero_()
        assert not torch.equal(student(example).features, expected.features) and torch.equal(adopted(example).features, expected.features)
        student.load_state_dict(adopted.state_dict())
        for other in (student, teacher, again):
            assert type(other.module) is type(adopted.module)
            torch.testing.assert_close(other(example).logits, expected.logits)
            torch.testing.assert_close(other(example).features, expected.features)
    adopted.train()


@pytest.mark.parametrize("kind", ["resnet18", "vit", "HF ViT"])
def test_it_learns_also_in_bf16(modules, kind):
    adopted = copy_of(adopt(modules[kind], images()))
    with torch.autocast("cpu", torch.bfloat16):
        output = adopted(images(4))
    assert output.logits.dtype == torch.bfloat16 and output.features.shape == (4, adopted.feature_width)
    (F.cross_entropy(output.logits.float(), torch.arange(4)) + output.features.float().square().mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in adopted.parameters())


def test_it_goes_through_the_compiler():
    adopted = adopt(plain(), images()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        compiled = torch.compile(adopted, backend="eager", dynamic=False)
        with torch.no_grad():
            for seed in range(2):
                logits, features = compiled(images(seed=seed))
                torch.testing.assert_close((logits, features), tuple(adopted(images(seed=seed))))


class Odd(nn.Module):
    """A network whose outputs and layers can be bent out of shape."""

    def __init__(self, kind=""):
        super().__init__()
        self.kind, self.body = kind, nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6))
        self.fc, self.other = nn.Linear(6, 5), nn.Linear(6, 5)
        self.conv = nn.Conv2d(6, 5, 1)

    def forward(self, pixels):
        found = self.body(pixels)
        logits = self.conv(found[:, :, None, None]).flatten(1) if self.kind == "convolution" else self.fc(found)
        other = self.other(found)
        return {
            "average": lambda: (logits + other) / 2,
            "softmax": lambda: logits.softmax(1),
            "log": lambda: logits.log_softmax(1),
            "twice": lambda: self.fc(found + logits.sum(1, keepdim=True)),
            "dict": lambda: {"features": found, "logits": logits},
            "list": lambda: [logits, other],
            "text": lambda: "five",
            "three": lambda: logits[:, :, None],
            "nan": lambda: logits * float("nan"),
        }.get(self.kind, lambda: logits)()


@pytest.mark.parametrize("kind", ["", "dict", "list", "log"])
def test_logits_in_many_wrappings(kind):
    adopted = adopt(Odd(kind), images())
    assert adopted.head_name == "fc" and adopted(images()).logits.shape == (2, 5)


def test_a_head_given_one_row_among_unit_dimensions():
    class Rows(Odd):
        def forward(self, pixels):
            return self.fc(self.body(pixels)[:, None, :]).squeeze(1)

    output = adopt(Rows(), images())(images())
    assert output.features.shape == (2, 6) and output.logits.shape == (2, 5)


MISTAKES = {
    "average": "not what any linear layer.*fc .6 -> 5., other .6 -> 5.; name the one that makes the logits with --head",
    "softmax": "not what any linear layer of the module makes",
    "convolution": "a convolution, several heads or something after the last layer makes them",
    "twice": "fc was called 2 times for one batch",
    "text": "returned a str without logits",
    "three": r"returned \(2, 5, 1\) for 2 images, not one row of logits each",
    "nan": "not finite",
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_module_without_a_plain_head_says_what_it_has(kind):
    with pytest.raises(InputError, match=MISTAKES[kind]):
        adopt(Odd(kind), images())


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("nope", "no layer 'nope'; its linear layers: body.1 .3072 -> 6., fc .6 -> 5."),
        ("conv", "conv is a Conv2d and no linear layer"),
        ("other", "the logits are not what other .6 -> 5. makes"),
        ("body.1", "the logits are not what body.1 .3072 -> 6. makes"),
    ],
)
def test_a_head_that_is_named_is_checked(head, words):
    with pytest.raises(InputError, match=words):
        adopt(Odd(), images(), head=head)
    assert adopt(Odd(), images(), head="fc").head_name == "fc"


def test_a_head_that_is_never_called():
    class Unused(Odd):
        def forward(self, pixels):
            return F.linear(self.body(pixels), self.fc.weight)

    with pytest.raises(InputError, match="fc was called never for one batch"):
        adopt(Unused(), images(), head="fc")


def test_a_module_that_changes_its_ways_later_is_noticed():
    adopted = adopt(Odd(), images())
    adopted.module.kind = "twice"
    with pytest.raises(InputError, match="fc was called 2 times"):
        adopted(images())
    adopted.module.kind = "three"
    with pytest.raises(InputError, match=r"returned \(2, 5, 1\) for 2 images, and its head fc makes 5 classes"):
        adopted(images())


def test_heads_that_begin_as_zeros_do_not_look_alike():
    module = Odd("average")
    for layer in (module.fc, module.other):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    with pytest.raises(InputError, match="the logits are not what other .* makes: several heads are averaged"):
        adopt(module, images())


def test_a_distilled_network_with_two_heads_is_refused():
    module = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=5)
    with pytest.raises(InputError, match="several heads.*head .192 -> 5., head_dist .192 -> 5."):
        adopt(module, images())
    with pytest.raises(InputError, match="not what head .192 -> 5. makes.*wrap the module"):
        adopt(module, images(), head="head")


def test_classes_and_names_are_checked():
    assert adopt(plain(), images(), 5, class_names="abcde").class_names == tuple("abcde")
    with pytest.raises(InputError, match="tells 5 classes apart, and 7 were asked for"):
        adopt(plain(), images(), 7)
    with pytest.raises(InputError, match="tells 5 classes apart, and 2 names were given"):
        adopt(plain(), images(), class_names=["a", "b"])


def test_a_network_of_ours_may_be_taken_in_as_anybody_elses():
    own = smallcnn(4, width=4)
    adopted = adopt(own, images())
    assert isinstance(adopted, Adopted) and adopted.module is own and adopted.head_name == "head"
    with pytest.raises(InputError, match="tells 4 classes apart, and 5"):
        adopt(own, images(), 5)


def test_wrappers_of_training_programs_are_named():
    with pytest.raises(InputError, match="a DataParallel is wrapped around the network; hand over what is inside: its .module"):
        adopt(nn.DataParallel(plain()), images())
    with pytest.raises(InputError, match="its ._orig_mod"):
        adopt(torch.compile(plain(), backend="eager"), images())


def test_images_of_the_wrong_shape_are_told():
    with pytest.raises(InputError, match="does not work on images of 1 x 32 x 32 .channels x height x width.: .*give its --size"):
        adopt(plain(), images(channels=1))


@pytest.mark.parametrize("kind", ["resnet18", "vit", "HF ViT", "HF ResNet", "sequential"])
def test_every_weight_begins_afresh(modules, kind):
    module = modules[kind]
    adopted = adopt(module, example_for(module))
    before = copy.deepcopy(adopted.state_dict())
    fresh, again, other = (reinitialised(adopted, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert type(fresh.module) is type(module) and fresh.head_name == adopted.head_name
    for name, value in fresh.named_parameters():
        assert torch.equal(adopted.state_dict()[name], before[name])
        assert value.isfinite().all() and not torch.equal(value, before[name]), name
        assert torch.equal(value, again.get_parameter(name))
        constant = bool((value == value.flatten()[0]).all())  # ones and zeros by design: norms, biases, scales
        assert constant or not torch.equal(value, other.get_parameter(name)), name
        if value.ndim > 1 and "cls_token" not in name:
            assert not constant or "pos" in name or "head" in name, name


def test_a_weight_that_nothing_resets_is_named(modules):
    module = modules["convnext"]
    adopted = adopt(module, images())
    with pytest.raises(InputError, match=r"how module.stages.0.blocks.0.gamma, .* and 1 more begin, and retrain and gmm-probe train a fresh network"):
        reinitialised(adopted, torch.Generator())
    adopted.rebuild = KINDS["convnext"][0]
    fresh, again = (reinitialised(adopted, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in fresh.state_dict().items())
    assert not torch.equal(fresh.head_layer.weight, adopted.head_layer.weight)


def test_attention_of_pytorch_begins_afresh():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, pixels):
            rows = pixels.flatten(2)[:, :, :8]
            return self.fc(self.layer(rows, rows, rows)[0].mean(1))

    adopted = adopt(Attending(), images())
    assert not torch.equal(reinitialised(adopted, torch.Generator()).module.layer.in_proj_weight, adopted.module.layer.in_proj_weight)


def test_weights_leave_under_the_owners_names(modules):
    adopted = adopt(modules["resnet18"], images())
    buffer = io.BytesIO()
    torch.save(adopted.module.state_dict(), buffer)
    buffer.seek(0)
    other = build_named("timm:resnet18", 5).module
    other.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(other(images()), adopted.eval()(images()).logits)
    adopted.train()
