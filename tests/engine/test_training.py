"""The step against a textbook loop, memory that runs out, losses that break, and passes without training."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fspmu.data.augment import normalise
from fspmu.data.batches import Batches
from fspmu.data.images import Images
from fspmu.engine.inference import accuracy, accuracy_of, evaluate, predict
from fspmu.engine.run import Run
from fspmu.engine.training import set_lr, sgd, step_decay, train_epoch
from fspmu.errors import NonFiniteLoss
from fspmu.models import MODELS
from fspmu.models.classifier import Classifier
from fspmu.preprocessing import Preprocessing

PLAIN = Preprocessing()
VIEWS = Preprocessing((0.5,) * 3, (0.25,) * 3, "crop-flip", 1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_images(count=40, preprocessing=PLAIN):
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=seeded(1))
    return Images(pixels, torch.arange(count) % 5, tuple("abcde"), [str(row) for row in range(count)], preprocessing=preprocessing)


def with_norm():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS["smallcnn"](5, width=4)


def without_norm():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh()), nn.Linear(16, 5))


def cross_entropy(model, batch):
    logits = model(batch.images).logits
    return F.cross_entropy(logits, batch.given_labels), {"length": logits.detach().norm()}


def in_memory_for(rows):
    """Return a loss that runs out of memory above `rows` rows, and the sizes it was asked for."""
    asked = []

    def loss(model, batch):
        asked.append(len(batch))
        if len(batch) > rows:
            raise torch.OutOfMemoryError("not enough memory")
        return cross_entropy(model, batch)

    return loss, asked


@pytest.mark.parametrize("clip", [None, 0.01])
def test_steps_are_textbook_sgd(clip):
    images, model, twin = make_images(), with_norm(), with_norm().train()
    lr, momentum, decay = 0.05, 0.9, 5e-4
    optimizer = sgd(model, lr, momentum=momentum, weight_decay=decay)
    batches = Batches(images, torch.arange(40), 16, seeded(3))
    for _ in range(2):
        reported = train_epoch(model, batches, cross_entropy, optimizer, Run(), clip=clip, label="ce")

    velocity, losses, clipped = {}, [], 0
    for _ in range(2):
        losses = []
        for batch in batches:
            loss = F.cross_entropy(twin(batch.images).logits, batch.given_labels)
            names, parameters = zip(*twin.named_parameters(), strict=True)
            losses.append(loss.item())
            for name, parameter, gradient in zip(names, parameters, torch.autograd.grad(loss, parameters), strict=True):
                if clip is not None:
                    clipped += int((gradient.abs() > clip).sum())
                    gradient = gradient.clamp(-clip, clip)
                gradient = gradient + decay * parameter.detach()
                velocity[name] = momentum * velocity[name] + gradient if name in velocity else gradient
                parameter.data -= lr * velocity[name]
    assert clip is None or clipped
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)
    assert reported["ce"] == pytest.approx(np.average(losses, weights=[16, 16, 8]), rel=1e-5)
    assert set(reported) == {"ce", "length"}


def test_frozen_parameters_stay():
    model = with_norm()
    model.backbone.requires_grad_(False)
    before = [parameter.clone() for parameter in model.backbone.parameters()]
    train_epoch(model, Batches(make_images(), torch.arange(40), 16), cross_entropy, sgd(model, 0.1), Run())
    assert all(torch.equal(*pair) for pair in zip(before, model.backbone.parameters(), strict=True))


def test_a_pass_over_nothing_changes_nothing():
    model = with_norm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert train_epoch(model, Batches(make_images(), torch.arange(0), 16), cross_entropy, sgd(model, 0.1), Run()) == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("milestones", [(), (3,), (2, 4), (2, 3, 3)])
def test_step_decay(milestones):
    for epoch in range(1, 7):
        factor = math.prod(0.1 for milestone in milestones if epoch > milestone)
        assert step_decay(epoch, milestones) == pytest.approx(factor, rel=1e-12)


def test_set_lr_reaches_every_group():
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [layer.weight]}, {"params": [layer.bias], "lr": 3.0}], lr=1.0)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 3])
def test_a_broken_loss_names_stage_epoch_and_step(bad, step):
    run, calls = Run(), []

    def loss(model, batch):
        calls.append(1)
        value, reported = cross_entropy(model, batch)
        return value * (bad if len(calls) == 4 + step else 1), reported

    model, images = without_norm(), make_images(64)
    optimizer = sgd(model, 0.01)
    with run.timed("forgetting"):
        train_epoch(model, Batches(images, torch.arange(64), 16), loss, optimizer, run)
        run.log(1)
        with pytest.raises(NonFiniteLoss, match=rf"in forgetting, epoch 2, step {step};.*--lr"):
            train_epoch(model, Batches(images, torch.arange(64), 16), loss, optimizer, run)


def test_a_broken_loss_stops_a_long_pass_early():
    seen = []

    def loss(model, batch):
        seen.append(1)
        return cross_entropy(model, batch)[0] * math.nan, {}

    model = without_norm()
    with pytest.raises(NonFiniteLoss, match="step 1;"):
        train_epoch(model, Batches(make_images(600), torch.arange(600), 2), loss, sgd(model, 0.01), Run())
    assert len(seen) < 150


def test_out_of_memory_takes_the_same_step_in_halves():
    images, whole, halved, run = make_images(), without_norm(), without_norm(), Run(stage="pretraining")
    expected = train_epoch(whole, Batches(images, torch.arange(40), 20), cross_entropy, sgd(whole, 0.1), Run())
    loss, asked = in_memory_for(10)
    reported = train_epoch(halved, Batches(images, torch.arange(40), 20), loss, sgd(halved, 0.1), run)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halved.state_dict()[name], value, rtol=0, atol=1e-6)
    assert reported["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert asked == [20, 10, 10, 10, 10]  # what was learned in the first step is kept
    assert len(run.notices) == 1
    assert "out of memory in pretraining" in run.notices[0]


def test_the_gradient_of_unequal_parts_is_that_of_the_whole_batch():
    images, model = make_images(23), without_norm().train()
    (batch,) = Batches(images, torch.arange(23), 23)
    expected = torch.autograd.grad(cross_entropy(model, batch)[0], list(model.parameters()))
    loss, _ = in_memory_for(7)
    train_epoch(model, [batch], loss, sgd(model, 0.0), Run())  # a rate of 0 leaves the gradient to look at
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("last", [1, 2, 3, 5])
@pytest.mark.parametrize("build", [with_norm, without_norm])
def test_a_short_last_batch_is_not_cut_into_nothing(build, last):
    images, model, whole = make_images(32 + last), build(), build()
    batches = Batches(images, torch.arange(len(images)), 16)
    loss, asked = in_memory_for(4)
    reported = train_epoch(model, batches, loss, sgd(model, 0.1), Run())  # four parts or more from the first batch on
    expected = train_epoch(whole, batches, cross_entropy, sgd(whole, 0.1), Run())
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert min(asked) >= 1
    if build is without_norm:
        assert reported["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        torch.testing.assert_close(model.head.weight, whole.head.weight, rtol=0, atol=1e-6)


def test_memory_that_is_too_small_for_anything_is_an_error():
    loss, asked = in_memory_for(0)
    with pytest.raises(torch.OutOfMemoryError):
        model = without_norm()
        train_epoch(model, Batches(make_images(), torch.arange(40), 16), loss, sgd(model, 0.1), Run())
    assert min(asked) >= 2


def test_another_error_is_not_taken_for_memory():
    def loss(model, batch):
        raise RuntimeError("something else")

    model, run = without_norm(), Run()
    with pytest.raises(RuntimeError, match="something else"):
        train_epoch(model, Batches(make_images(), torch.arange(40), 16), loss, sgd(model, 0.1), run)
    assert not run.notices


class Tight(Run):
    """A run whose forward runs out of memory above 20 images."""

    def forward(self, model, **options):
        whole = super().forward(model)

        def call(images):
            if len(images) > 20:
                raise torch.OutOfMemoryError("not enough memory")
            return whole(images)

        return call


def test_predictions_in_parts_are_the_same():
    images, model, run = make_images(40), with_norm().eval(), Tight(stage="detection")
    expected, found = predict(model, images, Run()), predict(model, images, run)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.features, expected.features)
    assert len(run.notices) == 1 and "out of memory in detection" in run.notices[0]


def moved_model():
    """Return a model whose running statistics are neither fresh nor those of the images."""
    model = with_norm()
    model(torch.randn(30, 3, 8, 8, generator=seeded()))
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reference", [True, False])
def test_predicting_leaves_the_model_as_it_was(training, reference):
    images, model = make_images(preprocessing=VIEWS), moved_model().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, images, Run(), reference=reference)
    assert model.training is training and all(part.training is training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_pass_that_fails_restores_the_mode():
    class Broken(Run):
        def forward(self, model, **options):
            def call(images):
                raise RuntimeError("broken")

            return call

    model = with_norm().train()
    with pytest.raises(RuntimeError, match="broken"):
        predict(model, make_images(), Broken())
    assert model.training


def test_predictions_are_plain_and_in_dataset_order():
    images, model = make_images(300, VIEWS), moved_model().train()
    found = predict(model, images, Run())
    with torch.no_grad():
        expected = model.eval()(normalise(images.pixels, VIEWS))
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.features, expected.features)
    chosen = torch.arange(300) % 7 == 3
    torch.testing.assert_close(predict(model, images, Run(), chosen=chosen).logits, expected.logits[chosen])
    assert not found.logits.requires_grad and not found.logits.is_inference()


def test_the_reference_pass_uses_batch_statistics_of_128_in_order():
    images, model = make_images(160), moved_model().eval()
    found = predict(model, images, Run(), reference=True)
    with torch.no_grad():
        twin = moved_model().train()
        plain = normalise(images.pixels, images.preprocessing)
        expected = torch.cat([twin(part).logits for part in plain.split(128)])
    torch.testing.assert_close(found.logits, expected)
    augmented = images.prepared_as(VIEWS)
    first, again, other = (predict(model, augmented, Run(seed=seed), reference=True).logits for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_accuracy():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 4.0], [1.0, 0.0]])
    assert accuracy_of(logits, torch.tensor([0, 1, 0, 1])) == 0.5
    images, model = make_images(), with_norm()
    predicted = predict(model, images, Run()).logits.argmax(1)
    assert accuracy(model, images.with_labels(predicted), Run()) == 1.0
    assert accuracy(model, images.with_labels((predicted + 1) % 5), Run()) == 0.0
    assert evaluate(model, Run()) is None and evaluate(model, Run(evaluation=images.with_labels(predicted))) == 1.0


def test_figures_of_an_epoch_are_means_over_samples():
    images, model = make_images(130), without_norm()
    batches = Batches(images, torch.arange(130), 128, seeded(5))

    def told(model, batch):
        return F.cross_entropy(model(batch.images).logits, batch.given_labels), {"of_128": torch.tensor(float(len(batch) == 128))}

    found = train_epoch(model, batches, told, sgd(model, 0.0), Run())
    assert found["of_128"] == pytest.approx(128 / 130)
    with torch.no_grad():
        expected = F.cross_entropy(model(normalise(images.pixels, images.preprocessing)).logits, images.given_labels)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
