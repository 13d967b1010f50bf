"""What every pretraining method promises, and the history of margins it keeps."""

import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from fspmu.data.augment import normalise
from fspmu.data.images import Images
from fspmu.engine.checkpoint import build_model
from fspmu.engine.run import Run
from fspmu.models.classifier import Classifier, Description
from fspmu.preprocessing import Preprocessing
from fspmu.pretraining import METHODS, cross_entropy
from fspmu.pretraining.trained import SampleHistory, Situation
from fspmu.results.store import RunFolder
from fspmu.unlearning import METHODS as UNLEARNING

PLAIN = Preprocessing((0.5,) * 3, (0.25,) * 3)
VIEWS = replace(PLAIN, augment="crop-flip", padding=1)


def make_images(count=60, preprocessing=VIEWS):
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 4
    pixels = torch.randint(0, 100, (count, 3, 8, 8), dtype=torch.uint8, generator=draw)
    pixels[torch.arange(count), :, labels * 2] += 100  # a bright line tells the class
    return Images(pixels, labels, tuple("abcd"), [str(row) for row in range(count)], preprocessing=preprocessing)


def new_model(generator):
    return build_model(Description("smallcnn", {"width": 4}, tuple("abcd")), generator)


def pretrain(name, images=None, run=None, **changes):
    method, run = METHODS[name], run or Run()
    short = {"epochs": 3, "batch_size": 16, "warm_up": 1, "warm_up_batch": 16, "search_epochs": 2} | changes
    known = {field.name for field in fields(method.settings)}
    settings = replace(method.settings, **{key: value for key, value in short.items() if key in known})
    settings = method.suited_to(settings, Situation(4, "sym", 0.2))
    with run.timed("pretraining"):
        return method.pretrain(images or make_images(), new_model, settings, run)


def same(left, right):
    return all(torch.equal(value, right.state_dict()[name]) for name, value in left.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_contract(name):
    images, state = make_images(), torch.random.get_rng_state()
    pixels, labels = images.pixels.clone(), images.given_labels.clone()
    run = Run(evaluation=images)
    trained = pretrain(name, images, run)
    assert torch.equal(images.pixels, pixels) and torch.equal(images.given_labels, labels)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert trained.models and all(isinstance(model, Classifier) for model in trained.models)
    assert all(torch.isfinite(value.float()).all() for model in trained.models for value in model.state_dict().values())
    margins = trained.history.margins
    assert margins.shape == (3, 60) and margins.dtype == torch.float16 and torch.isfinite(margins).all()
    assert [line["epoch"] for line in run.lines if line["stage"] == "pretraining"] == [1, 2, 3] and len(run.accuracies("pretraining")) == 3

    again, other = pretrain(name), pretrain(name, run=Run(seed=1))
    assert same(trained.models[0], again.models[0]) and torch.equal(margins, again.history.margins)
    assert not same(trained.models[0], other.models[0])


@pytest.mark.parametrize("name", METHODS)
def test_it_learns(name):
    run = Run(evaluation=make_images())
    trained = pretrain(name, make_images(preprocessing=PLAIN), run, epochs=12, lr=0.05)
    assert run.accuracies("pretraining")[-1] > 0.9
    first, last = trained.history.margins[0].float(), trained.history.margins[-1].float()
    assert last.mean() > first.mean() + 1 and (last > 0).float().mean() > 0.9


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_where_it_was(name, tmp_path):
    whole = pretrain(name, run=Run(folder=RunFolder(tmp_path / "whole"), saving=math.inf))

    class Stopping(Run):
        def log(self, epoch, **values):
            if epoch == 3:
                raise KeyboardInterrupt
            super().log(epoch, **values)

    with pytest.raises(KeyboardInterrupt):
        pretrain(name, run=Stopping(folder=RunFolder(tmp_path / "cut"), saving=math.inf))
    again = pretrain(name, run=Run(folder=RunFolder(tmp_path / "cut")))
    assert same(whole.models[0], again.models[0]) and torch.equal(whole.history.margins, again.history.margins)
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_its_preset_exists(name):
    assert METHODS[name].preset in UNLEARNING["fspmu"].presets


def test_the_published_settings_and_schedule(monkeypatch):
    settings = METHODS["ce"].settings
    assert (settings.epochs, settings.batch_size, settings.lr, settings.momentum, settings.weight_decay) == (201, 128, 0.01, 0.9, 5e-4)
    rates, counts = [], set()

    def look(model, batches, loss, optimizer, run, **options):
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        counts.add((batches.samples, len(batches), group["momentum"], group["weight_decay"], *options.values()))
        return {}

    monkeypatch.setattr(cross_entropy, "train_epoch", look)
    monkeypatch.setattr(cross_entropy.SampleHistory, "end_epoch", lambda history: None)  # nothing is recorded either
    run = Run()
    with run.timed("pretraining"):
        METHODS["ce"].pretrain(make_images(300), new_model, settings, run)
    assert rates == pytest.approx([0.01] * 100 + [0.001] * 101)  # published epochs count from 0: lr / 10 from epoch 100
    assert counts == {(300, 3, 0.9, 5e-4)}


def test_the_history_holds_the_margins_of_the_training_forward():
    images = make_images(preprocessing=PLAIN)
    run = Run()
    trained = pretrain("ce", images, run, epochs=2, lr=0.0, weight_decay=0.0, batch_size=64)
    model = new_model(run.generator("weights")).train()
    with torch.no_grad():
        logits = model(normalise(images.pixels, PLAIN)).logits
    hot = F.one_hot(images.given_labels, 4).bool()
    expected = logits[hot] - logits.masked_fill(hot, -torch.inf).amax(1)
    for row in trained.history.margins:
        torch.testing.assert_close(row.float(), expected, rtol=2e-3, atol=2e-3)
    accuracy = float((logits.argmax(1) == images.given_labels).float().mean())
    assert run.lines[0]["train_accuracy"] == pytest.approx(accuracy)
    assert run.lines[0]["loss"] == pytest.approx(float(F.cross_entropy(logits, images.given_labels)), rel=1e-5)


def test_margins_beyond_float16_stay_finite():
    history = SampleHistory(2, Run())
    history.record(torch.tensor([1, 0]), torch.tensor([[1e6, -1e6], [1e6, -1e6]]), torch.tensor([0, 1]))
    history.end_epoch()
    assert history.margins.tolist() == [[-65504.0, 65504.0]]


def test_an_epoch_that_missed_a_sample_is_no_history():
    history = SampleHistory(3, Run())
    history.record(torch.tensor([0, 2, 2]), torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="1 of 3 samples were not counted exactly once"):
        history.end_epoch()
