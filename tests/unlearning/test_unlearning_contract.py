"""What every unlearning method promises, its published schedule, and FSPMU and SCRUB against a loop written from the formulas."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fspmu.data.augment import normalise
from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.engine.run import Run
from fspmu.engine.training import train_epoch
from fspmu.errors import EmptySplit, InputError
from fspmu.models import MODELS
from fspmu.models.classifier import Classifier
from fspmu.preprocessing import Preprocessing
from fspmu.results.store import RunFolder
from fspmu.unlearning import METHODS, feature_preserving, finetune, neggrad_plus, retrain, scrub
from fspmu.unlearning.feature_preserving import statistics_moved_twice

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
PLAIN = Preprocessing((0.5,) * 3, (0.25,) * 3)
VIEWS = replace(PLAIN, augment="crop-flip", padding=1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_images(count=60, preprocessing=VIEWS):
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=seeded(1))
    return Images(pixels, torch.arange(count) % 5, tuple("abcde"), [str(row) for row in range(count)], preprocessing=preprocessing)


def make_split(count=60, forget=15, both=0):
    """Return a split that forgets the first samples and retains the rest, and `both` of the forgotten ones too."""
    place = torch.arange(count)
    return Split(place >= forget - both, place < forget, (place >= forget).float())


def with_norm(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS["smallcnn"](5, width=4)
        model(torch.randn(20, 3, 8, 8))  # moves the running statistics
        return model


def without_norm(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh()), nn.Linear(16, 5))


def few_epochs(settings, epochs=2, **changes):
    names = {field.name for field in dataclasses.fields(settings)}
    return replace(settings, epochs=epochs, **{name: value for name, value in changes.items() if name in names})


def unlearn(name, model, images=None, split=None, settings=None, run=None):
    method, run = METHODS[name], run or Run()
    with run.timed("unlearning"):
        return method.unlearn(model, images or make_images(), split or make_split(), settings or few_epochs(method.settings), run)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_contract(name, training):
    model, images, split = with_norm().train(training), make_images(), make_split(both=5)
    model.backbone[0].momentum = model.backbone[1].momentum = 0.2
    before, pixels, labels = state_of(model), images.pixels.clone(), images.given_labels.clone()
    masks = split.retain.clone(), split.forget.clone(), split.clean_probability.clone()
    settings = few_epochs(METHODS[name].settings)
    if name == "fspmu":
        settings = replace(settings, reference_statistics=training)
    run = Run(evaluation=images)
    result = unlearn(name, model, images, split, settings, run)

    assert result is not model and same(state_of(model), before)
    assert model.training is training and model.backbone[1].momentum == 0.2
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(images.pixels, pixels) and torch.equal(images.given_labels, labels)
    assert all(torch.equal(*pair) for pair in zip(masks, (split.retain, split.forget, split.clean_probability), strict=True))
    after = state_of(result)
    assert after.keys() == before.keys() and all(torch.isfinite(value.float()).all() for value in after.values())
    changed = {label for label, value in after.items() if not torch.equal(value, before[label])}
    assert changed == after.keys()  # every weight and every running statistic moved
    assert [norm.momentum for norm in result.modules() if isinstance(norm, NORMS)] == [0.2, 0.1, 0.1]
    assert [line["epoch"] for line in run.lines] == [1, 2]
    assert all(np.isfinite(value) for line in run.lines for key, value in line.items() if key != "stage")
    assert len(run.accuracies("unlearning")) == 2

    assert same(state_of(unlearn(name, model, images, split, settings, Run(evaluation=images))), after)
    assert not same(state_of(unlearn(name, model, images, split, settings, Run(seed=1))), after)


@pytest.mark.parametrize("name", METHODS)
def test_a_frozen_model_still_learns(name):
    model = with_norm().requires_grad_(False)
    assert not torch.equal(unlearn(name, model).head.weight, model.head.weight)


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("name", METHODS)
def test_nothing_to_retain(name, kept):
    with pytest.raises(EmptySplit, match=f"{kept} of 60 samples are left to learn from; lower --threshold"):
        unlearn(name, with_norm(), split=make_split(forget=60 - kept))


@pytest.mark.parametrize("name", METHODS)
def test_nothing_to_forget(name):
    model = with_norm()
    result = unlearn(name, model, split=make_split(forget=0))
    assert all(torch.isfinite(value.float()).all() for value in state_of(result).values())
    assert not torch.equal(result.head.weight, model.head.weight)


class Tight(Run):
    """A run whose forward runs out of memory above 16 images."""

    def forward(self, model, **options):
        whole = super().forward(model)

        def call(images):
            if len(images) > 16:
                raise torch.OutOfMemoryError("not enough memory")
            return whole(images)

        return call


@pytest.mark.parametrize("name", METHODS)
def test_little_memory_takes_the_same_steps(name):
    changes = {"forget_batch": 30, "retain_batch": 30, "batch_size": 30}
    settings = few_epochs(METHODS[name].settings, 1, delta=5.0, **changes)
    results = []
    for run in (Run(), Tight()):
        results.append(state_of(unlearn(name, without_norm(), split=make_split(forget=30), settings=settings, run=run)))
    assert run.notices
    for label, value in results[0].items():
        torch.testing.assert_close(results[1][label], value, rtol=0, atol=2e-6, msg=lambda text, label=label: f"{label}: {text}")


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_where_it_was(name, tmp_path, monkeypatch):
    settings = few_epochs(METHODS[name].settings, 3)
    whole = Run(folder=RunFolder(tmp_path / "whole"))
    expected = state_of(unlearn(name, with_norm(), settings=settings, run=whole))
    log = Run.log

    def stop(run, epoch, **values):
        if epoch == 3:
            raise Stopped
        log(run, epoch, **values)

    monkeypatch.setattr(Run, "log", stop)
    with pytest.raises(Stopped):
        unlearn(name, with_norm(), settings=settings, run=Run(folder=RunFolder(tmp_path / "cut")))
    monkeypatch.setattr(Run, "log", log)
    again = Run(folder=RunFolder(tmp_path / "cut"))
    assert same(state_of(unlearn(name, with_norm(), settings=settings, run=again)), expected)
    assert again.lines == whole.lines


def published_schedule(monkeypatch, module, name, settings=None, split=None):
    """Return what every pass of a method is asked for, without taking a step: (label, samples, steps, lr, clip, momentum, decay)."""
    passes = []

    def look(student, batches, loss, optimizer, run, *, clip=None, label="loss"):
        group = optimizer.param_groups[0]
        passes.append((label, getattr(batches, "samples", None), len(batches), group["lr"], clip, group.get("momentum"), group["weight_decay"]))
        assert type(optimizer).__name__ == ("Adam" if getattr(settings, "optimizer", "sgd") == "adam" else "SGD")
        assert isinstance(student, Classifier) and all(parameter.requires_grad for parameter in student.parameters())
        return {}

    monkeypatch.setattr(module, "train_epoch", look)
    unlearn(name, with_norm(), split=split, settings=settings or METHODS[name].settings)
    return passes


@pytest.mark.parametrize(("name", "module"), [("fspmu", feature_preserving), ("scrub-reference", scrub)])
def test_the_published_schedule_of_forgetting_and_recovery(monkeypatch, name, module):
    passes = published_schedule(monkeypatch, module, name)
    expected = []
    for epoch in range(1, 16):
        lr = 5e-4 * (1 if epoch <= 7 else 0.1 if epoch <= 10 else 0.001)
        if epoch <= 5:
            expected.append(("forget", 15, 1, lr, 1.0, 0.9, 5e-4))
        expected.append(("retain", 45, 1, lr, 1.0, 0.9, 5e-4))
    assert [line[:3] + line[4:] for line in passes] == [line[:3] + line[4:] for line in expected]
    assert [line[3] for line in passes] == pytest.approx([line[3] for line in expected], rel=1e-9)


def test_batches_have_the_asked_size(monkeypatch):
    settings = replace(METHODS["fspmu"].settings, forget_batch=4, retain_batch=10, epochs=1)
    assert [line[:3] for line in published_schedule(monkeypatch, feature_preserving, "fspmu", settings)] == [("forget", 15, 4), ("retain", 45, 5)]


def test_a_sample_in_both_masks_is_visited_in_both_passes(monkeypatch):
    passes = published_schedule(monkeypatch, feature_preserving, "fspmu", split=make_split(both=15))
    assert passes[0][:2] == ("forget", 15) and passes[1][:2] == ("retain", 60)


@pytest.mark.parametrize(("name", "lowered"), [("retrain", set(range(101, 202))), ("retrain-reference", {101})])
def test_the_schedules_of_retraining(monkeypatch, name, lowered):
    passes = published_schedule(monkeypatch, retrain, name)
    rates = [line[3] for line in passes]
    # published epochs count from 0: .001 from epoch 100 on, or in epoch 100 alone
    assert rates == pytest.approx([0.001 if epoch in lowered else 0.01 for epoch in range(1, 202)])
    assert {line[:3] + line[4:] for line in passes} == {("retain", 45, 1, None, 0.9, 5e-4)}


def test_scrub_at_small_scale(monkeypatch):
    passes = published_schedule(monkeypatch, scrub, "scrub", scrub.PRESETS["small-scale"])
    assert [line[0] for line in passes] == ["forget", "retain"] * 3 + ["retain"] * 7
    retained = [line for line in passes if line[0] == "retain"]
    assert [line[3] for line in retained] == pytest.approx([5e-4] * 5 + [5e-5] * 3 + [5e-6, 5e-7])
    assert {line[4:] for line in passes} == {(None, None, 0.1)}


def test_the_presets_of_fspmu():
    assert METHODS["fspmu"].presets is feature_preserving.PRESETS and METHODS["fspmu"].settings == feature_preserving.PRESETS["original"]
    table = {"original": (500, 0.5, 1, 0.25, 512, 128), "nll": (1, 1, 5, 0.25, 512, 128), "as-coded": (500, 20, 1, 0.5, 512, 128)}
    found = {name: (s.delta, s.zeta, s.gamma, s.t, s.forget_batch, s.retain_batch) for name, s in feature_preserving.PRESETS.items()}
    tuned = ("tuned", "tuned-soft")
    assert found == table | dict.fromkeys(tuned, (10, 0.025, 1, 0.25, 512, 128))
    for name, s in feature_preserving.PRESETS.items():
        assert (s.temperature, s.forget_epochs, s.momentum, s.weight_decay, s.clip) == (0.5, 5, 0.9, 5e-4, 1)
        assert (s.eta, s.lr * s.eta) == ((0.05, 5e-4) if name in tuned else (1, 5e-4)), "a forget step goes as far as published"
        assert (s.lr, s.schedule, s.epochs) == ((1e-2, "cosine", 20) if name in tuned else (5e-4, "steps", 15)) and not s.reference_statistics
        assert s.weighting == ("clean-probability" if name == "tuned-soft" else "masks") and s.momentum_between == ("dropped" if name in tuned else "carried")
        assert (s.unlabelled, s.stop) == (0, "last"), "what nobody published is off"


def test_the_presets_of_scrub():
    def values(s):
        return s.optimizer, s.lr, s.eta, s.gamma, s.alpha, s.temperature, s.epochs, s.forget_epochs, s.milestones

    assert values(METHODS["scrub"].settings) == values(scrub.PRESETS["large-scale"]) == ("sgd", 5e-4, 1, 0.99, 0.001, 4, 3, 2, ())
    small = scrub.PRESETS["small-scale"]
    assert (*values(small), small.weight_decay) == ("adam", 5e-4, 1, 1, 0.5, 2, 10, 3, (5, 8, 9), 0.1)
    published = METHODS["scrub-reference"].settings
    assert values(published)[:6] == ("sgd", 5e-4, 0.5, 1, 0, 0.5) and (published.forget_batch, published.retain_batch, published.clip) == (512, 128, 1)


def test_an_unknown_optimiser_is_named():
    with pytest.raises(InputError, match="unknown --optimizer 'adamm'; did you mean 'adam'"):
        unlearn("scrub", with_norm(), settings=replace(METHODS["scrub"].settings, optimizer="adamm"))


def textbook(model, images, split, s, forget, retain):
    """Take the steps of `s.epochs` epochs in one batch each, with clipped SGD written out."""
    student = without_norm()
    student.load_state_dict(model.state_dict())
    pixels, velocity = normalise(images.pixels, images.preprocessing), {}
    for epoch in range(1, s.epochs + 1):
        for wanted, mask, loss in ((epoch <= s.forget_epochs, split.forget, forget), (True, split.retain, retain)):
            if wanted:
                logits, features = student(pixels[mask])
                names, parameters = zip(*student.named_parameters(), strict=True)
                if getattr(s, "momentum_between", "carried") == "dropped" and epoch <= s.forget_epochs:
                    velocity.clear()  # this pass forgets, or comes after one that did
                gradients = torch.autograd.grad(loss(logits, features, pixels[mask], images.given_labels[mask]), parameters)
                for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
                    gradient = (gradient if s.clip is None else gradient.clamp(-s.clip, s.clip)) + s.weight_decay * parameter.detach()
                    velocity[name] = s.momentum * velocity[name] + gradient if name in velocity else gradient
                    cooled = 0.5 + 0.5 * np.cos(np.pi * (epoch - 1) / s.epochs) if getattr(s, "schedule", "") == "cosine" else 1
                    parameter.data -= s.lr * cooled * velocity[name]
    return student


def divergence(teacher, student, temperature):
    ours, theirs = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * (theirs * (theirs.log() - ours.log())).sum(1).mean()


@pytest.mark.parametrize("preset", feature_preserving.PRESETS)
def test_fspmu_is_the_published_algorithm(preset):
    images, split, model = make_images(preprocessing=PLAIN), make_split(both=4), without_norm()
    s = replace(feature_preserving.PRESETS[preset], epochs=3, forget_epochs=2, lr=5e-3)
    counts = torch.ones(60) if s.weighting == "masks" else split.clean_probability.clamp(min=0.2)  # four are retained although their labels look wrong
    counts = (counts / counts[split.retain].mean())[split.retain]
    with torch.no_grad():
        seen = model(normalise(images.pixels, PLAIN)[split.retain])
    unit = seen.features.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centroids = (seen.logits.double().softmax(1) * counts[:, None]).numpy().T @ unit
    centroids = torch.tensor(centroids / np.linalg.norm(centroids, axis=1, keepdims=True), dtype=torch.float32)

    def cosine(features):
        return F.cosine_similarity(features[:, None], centroids[None], dim=2)

    def forget(logits, features, pixels, labels):
        with torch.no_grad():
            judged = model(pixels).logits
            weight = cosine(features).clamp(min=0) ** (1 / s.t)
            weight = (weight / weight.sum(1, keepdim=True)).nan_to_num(0)
        return -s.eta * divergence(judged, logits, s.temperature) + s.zeta * (weight * cosine(features)).sum(1).mean()

    def retain(logits, features, pixels, labels):
        near = cosine(features)[torch.arange(len(labels)), labels]
        return (counts * (s.gamma * F.cross_entropy(logits, labels, reduction="none") - s.delta * near)).mean()

    expected = textbook(model, images, split, s, forget, retain).state_dict()
    result = unlearn("fspmu", model, images, split, s).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["scrub", "scrub-reference"])
def test_scrub_is_its_formula(name):
    images, split, model = make_images(preprocessing=PLAIN), make_split(), without_norm()
    s = replace(METHODS[name].settings, epochs=3, forget_epochs=2, lr=5e-3, forget_batch=512, alpha=0.5 if name == "scrub" else 0.0)

    def kl(logits, pixels):
        with torch.no_grad():
            judged = model(pixels).logits
        return divergence(judged, logits, s.temperature)

    def forget(logits, features, pixels, labels):
        return (-1 if name == "scrub" else -0.5) * kl(logits, pixels)

    def retain(logits, features, pixels, labels):
        return s.gamma * F.cross_entropy(logits, labels) + (s.alpha * kl(logits, pixels) if name == "scrub" else 0)

    expected = textbook(model, images, split, s, forget, retain).state_dict()
    result = unlearn(name, model, images, split, s).state_dict()
    for label, value in expected.items():
        torch.testing.assert_close(result[label], value, rtol=0, atol=2e-6)


def loss_on(model, images, mask):
    with torch.no_grad():
        logits = model.eval()(normalise(images.pixels, images.preprocessing)[mask]).logits
    return float(F.cross_entropy(logits, images.given_labels[mask]))


def memorised():
    """Return a model that has learned every label of the images, and the images."""
    images, model = make_images(preprocessing=PLAIN), without_norm()
    optimizer, pixels = torch.optim.Adam(model.parameters(), 0.01), normalise(images.pixels, PLAIN)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(pixels).logits, images.given_labels).backward()
        optimizer.step()
    return model, images


@pytest.mark.parametrize("name", ["fspmu", "neggrad_plus"])
def test_forgetting_costs_the_forget_set_and_not_the_rest(name):
    model, images = memorised()
    split = make_split()
    changes = {"lr": 0.05, "delta": 5.0, "forget_batch": 8, "retain_batch": 16, "batch_size": 16, "milestones": ()}
    with_it, without_it = (
        unlearn(name, model, images, split, few_epochs(METHODS[name].settings, 15, forget_epochs=wanted, beta=beta, **changes))
        for wanted, beta in ((12, 0.8), (0, 1.0))
    )
    assert loss_on(with_it, images, split.forget) > 1.5 * loss_on(without_it, images, split.forget)
    assert loss_on(with_it, images, split.retain) < loss_on(model, images, split.retain)


def test_finetuning_never_sees_the_forget_set():
    model, split, settings = with_norm(), make_split(), few_epochs(finetune.Settings())
    images = make_images()
    pixels = images.pixels.clone()
    pixels[split.forget] = 0
    other = replace(images, pixels=pixels)
    for name in ("finetune", "retrain"):
        settings = few_epochs(METHODS[name].settings)
        assert same(state_of(unlearn(name, model, images, split, settings)), state_of(unlearn(name, model, other, split, settings)))


def test_retraining_owes_nothing_to_the_old_weights():
    assert same(state_of(unlearn("retrain", with_norm(0))), state_of(unlearn("retrain", with_norm(1))))


def test_neggrad_plus_visits_every_retained_sample_and_restarts_the_forget_set():
    seen = []

    def look(student, batches, loss, optimizer, run, **options):
        batches = list(batches)
        for batch in batches:
            seen.append((batch.index[batch.weight > 0].tolist(), batch.index[batch.weight < 0].tolist()))
        return train_epoch(student, batches, loss, optimizer, run, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neggrad_plus, "train_epoch", look)
        unlearn("neggrad_plus", with_norm(), settings=replace(neggrad_plus.Settings(), epochs=1, batch_size=10))
    assert sorted(index for retained, _ in seen for index in retained) == list(range(15, 60))
    assert [len(forgotten) for _, forgotten in seen] == [10, 5, 10, 5, 10]
    assert {index for _, forgotten in seen for index in forgotten} == set(range(15))


def test_a_beta_that_is_no_fraction_is_refused():
    with pytest.raises(InputError, match="--beta is 1.5"):
        unlearn("neggrad_plus", with_norm(), settings=neggrad_plus.Settings(beta=1.5))


@pytest.mark.parametrize("build", [with_norm, lambda: MODELS["preactresnet18"](5, width=2)])
def test_statistics_moved_twice_are_those_of_two_forwards(build):
    images = torch.randn(12, 3, 8, 8, generator=seeded(4))
    once, twice = build().train(), build().train()
    twice.load_state_dict(once.state_dict())
    with torch.no_grad():
        with statistics_moved_twice(once, True):
            once(images)
        twice(images)
        twice(images)
    for name, value in twice.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(once.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_statistics_are_left_alone_unless_asked():
    model = with_norm()
    with statistics_moved_twice(model, False):
        assert [norm.momentum for norm in model.modules() if isinstance(norm, NORMS)] == [0.1] * 3
    with pytest.raises(Stopped), statistics_moved_twice(model, True):
        assert model.backbone[1].momentum == pytest.approx(0.19)
        raise Stopped
    assert [norm.momentum for norm in model.modules() if isinstance(norm, NORMS)] == [0.1] * 3


def test_reference_statistics_change_the_centroids_and_the_norms():
    settings = few_epochs(METHODS["fspmu"].settings, 1)
    sound, published = (unlearn("fspmu", with_norm(), settings=replace(settings, reference_statistics=wanted)) for wanted in (False, True))
    assert not torch.equal(sound.backbone[1].running_mean, published.backbone[1].running_mean)
    assert not torch.equal(sound.head.weight, published.head.weight)


@pytest.mark.parametrize("name", METHODS)
def test_one_sample_to_forget(name):
    """Batch norm has no statistics of one sample: a step on it alone uses the running ones."""
    forget = torch.zeros(60, dtype=torch.bool)
    forget[7] = True
    student = unlearn(name, with_norm(), split=Split(~forget, forget, (~forget).float()))
    assert all(tensor.isfinite().all() for tensor in student.state_dict().values())
