"""A learning rate that suits a network of another scale: measured by the first recovery step."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.engine.run import Run
from fspmu.errors import EmptySplit
from fspmu.models.classifier import Classifier
from fspmu.preprocessing import Preprocessing
from fspmu.unlearning.feature_preserving import LARGEST_MOVE, Settings, first_move, fit, unlearn

COUNT = 80
STEEP = replace(Settings(), clip=1e9)


def make_images(augment="none"):
    pixels = torch.randint(0, 256, (COUNT, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Images(pixels, torch.arange(COUNT) % 4, tuple("abcd"), [str(row) for row in range(COUNT)], preprocessing=Preprocessing(augment=augment, padding=1))


def make_split(forget=20):
    place = torch.arange(COUNT)
    return Split(place >= forget, place < forget, (place >= forget).float())


def make_model(scale=1.0, norm=True, dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(288, 16)]
        model = Classifier(nn.Sequential(*layers), nn.Linear(16, 4))
    with torch.no_grad():
        for parameter in layers[-1].parameters():
            parameter.mul_(scale)
    return model


def run_of(seed=0):
    run = Run(seed=seed)
    run.stage = "unlearning"
    return run


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    return all(torch.equal(value, right[name]) for name, value in left.items())


def test_a_small_step_is_left_alone():
    gentle = replace(Settings(), lr=1e-7)
    assert first_move(gentle, make_model(), make_images(), make_split(), run_of()) < LARGEST_MOVE
    assert fit(gentle, make_model(), make_images(), make_split(), run_of()) == (gentle, "")


@settings(max_examples=12)
@given(st.floats(-3, 0), st.floats(-3, 3), st.booleans(), st.integers(0, 5))
def test_a_large_step_is_brought_down_to_the_bound_and_no_further(scale, rate, norm, seed):
    model, images, split = make_model(10**scale, norm), make_images(), make_split()
    asked = replace(STEEP, lr=10**rate)
    before = first_move(asked, model, images, split, run_of(seed))
    fitted, told = fit(asked, model, images, split, run_of(seed))
    after = first_move(fitted, model, images, split, run_of(seed))
    if before <= LARGEST_MOVE:
        assert fitted == asked and told == ""
        return
    assert after == pytest.approx(LARGEST_MOVE, rel=0.06), "two digits of a rate"
    assert fitted == replace(asked, lr=fitted.lr) and f"from {asked.lr:g} to {fitted.lr:g}" in told
    assert fit(replace(fitted, lr=0.9 * fitted.lr), model, images, split, run_of(seed))[1] == "", "fitting what was fitted changes nothing"


def test_the_move_is_that_of_the_first_step():
    """Check the share against one step of plain SGD, clipped, on the same batch."""
    model, images, split = make_model(norm=False), make_images(), make_split(0)  # all are retained and fit into one batch: the order says nothing
    asked = replace(Settings(), retain_batch=COUNT, epochs=1, forget_epochs=0, momentum=0.0, weight_decay=0.0, clip=1e-3, lr=0.01)
    share = first_move(asked, model, images, split, run_of())
    moved = unlearn(model, images, split, asked, run_of())
    pairs = list(zip(moved.parameters(), model.parameters(), strict=True))
    expected = torch.cat([(after - before).flatten() for after, before in pairs]).norm() / torch.cat([before.flatten() for _, before in pairs]).norm()
    assert share == pytest.approx(float(expected.detach()), rel=1e-3)
    assert share == pytest.approx(2 * first_move(replace(asked, lr=0.005), model, images, split, run_of()))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(training):
    model, images, split = make_model(dropout=0.5).train(training), make_images("crop-flip"), make_split()
    model.head.weight.requires_grad_(False)
    before, drawn = state_of(model), torch.get_rng_state()
    run = run_of()
    first = fit(STEEP, model, images, split, run)
    assert same(state_of(model), before) and model.training is training and all(parameter.grad is None for parameter in model.parameters())
    assert not model.head.weight.requires_grad and torch.equal(torch.get_rng_state(), drawn)
    torch.rand(3)  # whatever others drew
    assert fit(STEEP, model, images, split, run_of()) == first, "its draws are its own"
    assert run.passes == {"unlearning": {"forward": 60 + 60, "backward": 60}} and run._uncounted == [0, 0]
    assert run.lines == [] and run.notices == []


def test_what_follows_draws_the_same_whether_it_was_fitted_or_not():
    model, images, split, few = make_model(), make_images("crop-flip"), make_split(), replace(Settings(), epochs=2, forget_epochs=1, retain_batch=16)
    plain, fitted = run_of(), run_of()
    fit(few, model, images, split, fitted)
    assert same(state_of(unlearn(model, images, split, few, plain)), state_of(unlearn(model, images, split, few, fitted)))


def test_two_samples_are_enough_and_one_is_not():
    model, images = make_model(), make_images()
    assert fit(STEEP, model, images, make_split(COUNT - 2), run_of())[0].lr > 0
    with pytest.raises(EmptySplit, match="1 of 80 samples are left"):
        fit(STEEP, model, images, make_split(COUNT - 1), run_of())


@pytest.mark.filterwarnings("ignore:.*invalid value")
def test_damaged_weights_are_left_to_training_to_tell():
    broken = copy.deepcopy(make_model())
    with torch.no_grad():
        broken.head.weight.fill_(float("nan"))
    assert fit(STEEP, broken, make_images(), make_split(), run_of()) == (STEEP, "")
