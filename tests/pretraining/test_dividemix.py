"""DivideMix: its settings by noise, its schedule, its division, who learns from whom, which network is kept, and that it resists noise."""

import math
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from fspmu.data.images import Images
from fspmu.data.label_noise import NoiseOptions
from fspmu.data.sources import DataOptions
from fspmu.engine.checkpoint import build_model
from fspmu.engine.processes import Processes
from fspmu.engine.run import Run
from fspmu.errors import InputError, check_settings
from fspmu.experiments.experiment import Compute, Pretrain, Tsne
from fspmu.experiments.pipeline import noisy_source
from fspmu.models.classifier import Description
from fspmu.preprocessing import Preprocessing
from fspmu.pretraining import METHODS, cross_entropy, dividemix, longremix, two_networks
from fspmu.pretraining.trained import Situation
from fspmu.results.store import RunFolder

METHODS_HERE = {"dividemix": dividemix, "longremix": longremix}
TINY = {"warm_up": 2, "lambda_u": 25.0, "penalty": 1.0, "loss_epochs": 5, "ramp_up": 2, "epochs": 5, "batch_size": 8, "warm_up_batch": 16, "lr_step": 4}
EXTRA = {"dividemix": {"tau": 0.5}, "longremix": {"search_epochs": 5, "agreement": 2}}


def make_images(count=48):
    labels = torch.arange(count) % 4
    pixels = torch.randint(0, 100, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pixels[torch.arange(count), :, labels * 2] += 100
    wrong = torch.arange(count) % 5 == 0
    preprocessing = Preprocessing((0.5,) * 3, (0.25,) * 3, "crop-flip", 1)
    return Images(pixels, torch.where(wrong, (labels + 1) % 4, labels), tuple("abcd"), [str(row) for row in range(count)], preprocessing=preprocessing)


def new_model(generator):
    return build_model(Description("smallcnn", {"width": 8}, tuple("abcd")), generator)


def pretrain(name, run, images=None, **changes):
    method = METHODS_HERE[name]
    with run.timed("pretraining"):
        return method.pretrain(images or make_images(), new_model, method.Settings(**(TINY | EXTRA[name] | changes)), run)


def same(left, right):
    return all(torch.equal(value, right.state_dict()[name]) for name, value in left.state_dict().items())


LAMBDA_U = {
    (10, "sym"): {0.2: 0, 0.5: 25, 0.8: 25, 0.9: 50, 0.1: 0, 0.3: 0, 0.4: 0, 0.6: 25, 0.7: 25},
    (100, "sym"): {0.2: 25, 0.5: 150, 0.8: 150, 0.9: 150, 0.1: 25, 0.4: 25, 0.6: 150},
    (10, "asym"): {0.4: 0},
    (100, "asym"): {0.4: 150},
}


@pytest.mark.parametrize("method", METHODS_HERE.values(), ids=METHODS_HERE)
def test_settings_follow_the_noise(method):
    for (classes, mode), table in LAMBDA_U.items():
        for rate, lambda_u in table.items():
            found = method.suited_to(method.Settings(), Situation(classes, mode, rate))
            assert (found.lambda_u, found.warm_up, found.penalty) == (lambda_u, 10 if classes == 10 else 30, float(mode == "asym"))
            assert found.loss_epochs == (5 if rate == 0.9 else 1)
            assert found.tau == (0.6 if rate == 0.9 and method is dividemix else 0.5)
            assert None not in asdict(found).values()
    asked = method.Settings(lambda_u=7.0, warm_up=0, penalty=0.5, loss_epochs=2, tau=0.3)
    assert method.suited_to(asked, Situation(10, "asym", 0.9)) == asked


@pytest.mark.parametrize("method", METHODS_HERE.values(), ids=METHODS_HERE)
def test_no_setting_is_a_flag_that_every_method_has(method):
    shared = {entry.name for kind in (Pretrain, DataOptions, NoiseOptions, Tsne, Compute) for entry in fields(kind)}
    assert not shared & {entry.name for entry in fields(method.Settings)}


@pytest.mark.parametrize("method", METHODS_HERE.values(), ids=METHODS_HERE)
def test_settings_that_cannot_be_are_refused(method):
    check_settings(method.Settings())
    wrong = {"warm_up": -1, "tau": 1.0, "lambda_u": -1.0, "penalty": -0.1, "loss_epochs": 0, "ramp_up": 0, "warm_up_batch": 1, "sharpening": 0.0, "mixup": 0.0}
    wrong |= {"regulariser": -1.0, "held_out": 1.0, "epochs": 0} | ({"search_epochs": 0, "agreement": 0, "last_sets": 0} if method is longremix else {})
    for name, value in wrong.items():
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} is"):
            check_settings(replace(method.Settings(), **{name: value}))


@pytest.mark.parametrize("name", METHODS_HERE)
def test_several_processes_are_refused(name):
    with pytest.raises(InputError, match=f"{name} mixes the rows .* in one process"):
        pretrain(name, Run(processes=Processes(0, 2)))


class Schedule:
    """Stands in for the training passes: notes who trained, at which learning rate, and on what."""

    def __init__(self, monkeypatch, method):
        self.seen = []
        monkeypatch.setattr(method, "warm_up_pass", self.warm_up)
        monkeypatch.setattr(method, "mixing_epoch", self.mixing)
        monkeypatch.setattr(method, "clean_probabilities", lambda pair, images, *_: ([torch.ones(len(images))] * 2, torch.zeros(len(images), 4)))

    def warm_up(self, pair, images, trained_on, settings, epoch, run):
        self.note("warm-up", pair, epoch, run, None)
        return {}

    def mixing(self, pair, images, trained_on, trusted, clean, settings, epoch, run, *, steps=None):
        self.note("mixing", pair, epoch, run, steps)
        return {}

    def note(self, kind, pair, epoch, run, steps):
        (lr,) = {group["lr"] for optimizer in pair.optimizers for group in optimizer.param_groups}
        assert all(group["momentum"] == 0.9 and group["weight_decay"] == 5e-4 and not group["nesterov"] for o in pair.optimizers for group in o.param_groups)
        self.seen.append((run.stage, kind, epoch, lr, steps))


def test_the_published_schedule(monkeypatch):
    schedule, run = Schedule(monkeypatch, dividemix), Run()
    settings = dividemix.suited_to(dividemix.Settings(), Situation(10, "sym", 0.5))
    with run.timed("pretraining"):
        dividemix.pretrain(make_images(8), new_model, settings, run)
    assert [(kind, epoch) for _, kind, epoch, _, _ in schedule.seen] == [("warm-up" if e <= 10 else "mixing", e) for e in range(1, 302)]
    assert [lr for _, _, _, lr, _ in schedule.seen] == pytest.approx([0.02] * 150 + [0.002] * 151)  # published epochs count from 0
    assert {steps for *_, steps in schedule.seen} == {None}


def test_both_mixtures_come_first_then_net1_learns_from_net2_and_net2_from_the_new_net1(monkeypatch):
    seen, original = [], two_networks.mixmatch_pass

    def look(net, peer, optimizer, batches, clean, settings, epoch, run, label):
        seen.append(("pass", label, net, peer, clean, [value.clone() for value in peer.state_dict().values()], optimizer, batches))
        return original(net, peer, optimizer, batches, clean, settings, epoch, run, label)

    def divide(logits, *rest):
        seen.append(("mixture", len(logits)))
        return torch.rand(48, generator=torch.Generator().manual_seed(len(seen)))

    monkeypatch.setattr(two_networks, "mixmatch_pass", look)
    monkeypatch.setattr(two_networks, "clean_probability", divide)
    trained = pretrain("dividemix", Run(), epochs=3, tau=0.4)
    assert [entry[0] for entry in seen] == ["mixture", "mixture", "pass", "pass"]
    (*_, first), (*_, second) = seen[2], seen[3]
    w1, w2 = (torch.rand(48, generator=torch.Generator().manual_seed(number)) for number in (1, 2))
    _, label1, net1, peer1, clean1, *_ = seen[2]
    _, label2, net2, peer2, clean2, state_of_net1, optimizer2, _ = seen[3]
    assert (label1, label2) == ("net1", "net2") and trained.models == (net1, net2) and (peer1, peer2) == (net2, net1)
    assert torch.equal(clean1, w2) and torch.equal(clean2, w1)
    assert first.labelled == int((w2 > 0.4).sum()) and second.labelled == int((w1 > 0.4).sum())
    assert all(torch.equal(*pair) for pair in zip(state_of_net1, net1.state_dict().values(), strict=True)), "net2 sees the net1 that was just trained"
    assert optimizer2.param_groups[0]["params"][0] is next(net2.parameters())


def mixture_of(values, seed):
    fitted = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed).fit(values.double().numpy()[:, None])
    return fitted.predict_proba(values.double().numpy()[:, None])[:, fitted.means_.argmin()]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("length", [1, 5])
def test_the_division_is_that_of_scikit_learn_on_the_mean_of_the_last_scaled_losses(length):
    """As at 80% noise, where the last losses count alone, and at 90%, where the last five do."""
    images, run, recent, scaled = make_images(200), Run(stage="pretraining"), two_networks.Recent(length), []
    draw = torch.Generator().manual_seed(2)
    for epoch in range(8):
        logits = torch.randn(200, 4, generator=draw) * (1 + epoch)
        loss = -torch.log_softmax(logits.double(), 1)[torch.arange(200), images.given_labels]
        scaled.append((loss - loss.min()) / (loss.max() - loss.min()))
        everyone = torch.ones(200, dtype=torch.bool)
        found = two_networks.clean_probability(logits, images, everyone, recent, run, epoch, 1)
        seed = int(torch.randint(0, 2**31 - 1, (), generator=run.generator("pretraining", "mixture", epoch, 1)))
        expected = mixture_of(torch.stack(scaled[-length:]).mean(0), seed)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert ((found > 0.5) == torch.from_numpy(expected > 0.5)).all()


def test_losses_that_are_all_equal_trust_every_label():
    images, run = make_images(), Run(stage="pretraining")
    chosen = torch.arange(48) < 30
    clean = two_networks.clean_probability(torch.zeros(48, 4), images, chosen, two_networks.Recent(5), run, 1)
    assert torch.equal(clean, chosen.float()), "and none outside the chosen"


def test_the_losses_of_warm_up_do_not_count(monkeypatch):
    lengths, original = [], two_networks.Recent.add

    def look(recent, values):
        stacked = original(recent, values)
        lengths.append(len(stacked))
        return stacked

    monkeypatch.setattr(two_networks.Recent, "add", look)
    pretrain("dividemix", Run(), epochs=9)
    assert lengths == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5, 5, 5]


@hypothesis_settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0, 2), st.sampled_from([1.0, 30.0, 1000.0]))
def test_the_confidence_penalty(seed, penalty, scale):
    draw = np.random.default_rng(seed)
    logits, labels = draw.normal(0, scale, (5, 4)), draw.integers(0, 4, 5)
    given_z = torch.from_numpy(logits).float().requires_grad_()

    class Fake:
        images, given_labels = None, torch.from_numpy(labels)

    value, _ = two_networks.cautious_cross_entropy(penalty)(lambda images: type("O", (), {"logits": given_z}), Fake)
    value.backward()
    value = value.detach()
    z = given_z.detach().double().numpy()
    log_p = z - z.max(1, keepdims=True) - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))
    p = np.exp(log_p)
    expected = -log_p[range(5), labels].mean() + penalty * np.where(p > 0, p * log_p, 0).sum(1).mean()
    assert float(value) == pytest.approx(expected, rel=1e-4, abs=1e-5) and torch.isfinite(given_z.grad).all()


@pytest.mark.parametrize("name", METHODS_HERE)
def test_held_out_labels_are_never_trained_on_and_decide(name, monkeypatch):
    images, run, seen = make_images(200), Run(), set()

    def spy(model, batches, loss, optimizer, run, **options):
        for batch in batches:
            seen.update(batch.index.tolist())
        return {}

    for module in ("fspmu.pretraining.two_networks.train_epoch", "fspmu.pretraining.mixmatch.train_epoch"):
        monkeypatch.setattr(module, spy)
    masks, original = [], two_networks.accuracy

    def judge(network, judged, run):
        masks.append(set(judged.ids))
        return original(network, judged, run)

    monkeypatch.setattr(two_networks, "accuracy", judge)
    trained = pretrain(name, run, images, keep="better-on-validation", held_out=0.1)
    held = set(map(int, masks[0]))
    assert len(masks) == 2 and masks[0] == masks[1] and len(held) == 20 and not held & seen and len(seen) == 180
    assert any("held-out given labels" in text for text in run.notices) and trained.kept in ("net1", "net2")
    assert all(not mask[list(held)].any() for mask in trained.sets.values())


@pytest.mark.parametrize(("first", "second", "kept"), [(0.9, 0.8, "net1"), (0.8, 0.9, "net2"), (0.85, 0.85, "net2")])
def test_the_better_network_on_test_data_is_kept_and_that_is_said(first, second, kept, monkeypatch):
    figures = iter([first, second])
    monkeypatch.setattr(two_networks, "accuracy", lambda *_: next(figures))
    run, (one, two) = Run(evaluation=make_images()), (new_model(torch.Generator()), new_model(torch.Generator()))
    models, name = two_networks.order_of([one, two], make_images(), torch.ones(48, dtype=torch.bool), "better-on-test", run)
    assert name == kept and models[0] is (one if kept == "net1" else two) and len(models) == 2
    assert "picked on test data" in run.notices[0] and f"{first:.2%}" in run.notices[0] and f"{second:.2%}" in run.notices[0]


def test_net1_is_kept_unless_something_else_is_asked_for():
    run = Run(evaluation=make_images())
    trained = pretrain("dividemix", run, epochs=3)
    assert trained.kept == "net1" and run.notices == [] and same(trained.models[0], pretrain("dividemix", Run(), epochs=3).models[0])
    assert {"test_accuracy", "test_accuracy_net2", "test_accuracy_ensemble"} <= run.lines[-1].keys()
    with pytest.raises(InputError, match="needs test images"):
        pretrain("dividemix", Run(), keep="better-on-test")
    with pytest.raises(InputError, match="did you mean 'net1'"):
        pretrain("dividemix", Run(), keep="net")


def test_the_history_is_that_of_the_division(monkeypatch):
    images, run = make_images(), Run()
    trained = pretrain("dividemix", run, images, epochs=3, lr=0.0, weight_decay=0.0, lr_step=0)
    assert trained.history.margins.shape == (3, 48)
    assert (trained.history.margins.float() - trained.history.margins[0].float()).abs().max() > 0  # batch norm's statistics still move


@pytest.mark.parametrize("tau", [0.0, 0.999999])
def test_it_goes_on_when_all_labels_are_trusted_or_none(tau, monkeypatch):
    monkeypatch.setattr(two_networks, "clean_probability", lambda logits, images, chosen, *_: 0.5 * chosen.float())
    run = Run()
    trained = pretrain("dividemix", run, tau=tau)
    assert run.lines[-1]["net1_labelled"] == float(tau == 0)
    assert len(run.notices) == (0 if tau == 0 else 2), "once for each network, not for each epoch"
    assert all(torch.isfinite(value.float()).all() for model in trained.models for value in model.state_dict().values())


class Stopping(Run):
    """A run that is stopped before its step number `last`; predicting counts too."""

    last, steps = 10**9, 0

    def begin_step(self):
        self.steps += 1
        if self.steps == self.last:
            raise KeyboardInterrupt
        super().begin_step()


@pytest.mark.parametrize("name", METHODS_HERE)
def test_a_run_stopped_within_any_epoch_ends_in_the_same_bytes(name, tmp_path):
    run = Stopping(folder=RunFolder(tmp_path / "whole"), evaluation=make_images(20), saving=math.inf)
    whole = pretrain(name, run, keep="better-on-test")
    stops, last_lines = {"dividemix": 3, "longremix": 4}[name], []
    for number in range(stops):
        folder = tmp_path / f"cut {number}"
        cut = Stopping(folder=RunFolder(folder), evaluation=make_images(20), saving=math.inf)
        cut.last = round(run.steps * (number + 0.5) / stops)
        with pytest.raises(KeyboardInterrupt):
            pretrain(name, cut, keep="better-on-test")
        last_lines += cut.lines[-1:]
        again = Stopping(folder=RunFolder(folder), evaluation=make_images(20), saving=math.inf)
        trained = pretrain(name, again, keep="better-on-test")
        assert all(same(*models) for models in zip(whole.models, trained.models, strict=True)) and whole.kept == trained.kept
        assert torch.equal(whole.history.margins, trained.history.margins)
        assert all(torch.equal(mask, trained.sets[set_name]) for set_name, mask in whole.sets.items())
        assert (folder / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
        assert again.passes == run.passes and again.notices == run.notices
    assert len({(line["stage"], line["epoch"]) for line in last_lines}) == len(last_lines) >= stops - 1
    if name == "longremix":
        assert {line["stage"] for line in last_lines} == {"high-confidence", "pretraining"}, "stops lie in both trainings"


def learn(method, settings, noisy):
    """Return the test accuracies by epoch, what it cost (1 forward, 2 backward for each sample) and what was trained."""

    def model(generator):
        return build_model(Description("smallcnn", {"width": 16}, noisy.train.class_names), generator)

    run = Run(evaluation=noisy.test, seed=1)
    with run.timed("pretraining"):
        trained = method.pretrain(noisy.train, model, settings, run)
    cost = sum(counts["forward"] + 2 * counts["backward"] for stage, counts in run.passes.items() if stage != "evaluation")
    return run.accuracies("pretraining"), cost, trained


@pytest.mark.slow
def test_on_digits_both_resist_noise_that_cross_entropy_learns_for_the_same_compute():
    """500 digits, half of the labels drawn anew: 45% of them are wrong."""
    _, noisy = noisy_source("digits", DataOptions(limit=500), NoiseOptions(noise_mode="sym", noise_rate=0.5), 0)
    length = {"epochs": 8, "warm_up": 4, "ramp_up": 3, "lr_step": 6, "lambda_u": 25.0, "penalty": 0.0, "loss_epochs": 1, "batch_size": 32, "warm_up_batch": 32}
    alone, cost, _ = learn(dividemix, dividemix.Settings(**length, tau=0.5), noisy)
    twice, double_cost, trained = learn(longremix, longremix.Settings(**length, search_epochs=7, agreement=3), noisy)
    epochs, more = round(cost / 3 / len(noisy.train)), round(double_cost / 3 / len(noisy.train))
    plain, _, _ = learn(cross_entropy, cross_entropy.Settings(epochs=more, lr=0.02, lr_step=more, batch_size=32), noisy)
    held_to = trained.sets["high_confidence"]
    right = noisy.train.given_labels == noisy.true_labels
    assert alone[-1] > plain[epochs - 1] + 0.08  # 88 against 73%
    assert twice[-1] > plain[more - 1] + 0.15  # 93 against 60%
    assert right.float().mean() < 0.55 and right[held_to].float().mean() > 0.8 and held_to.float().mean() > 0.3


@pytest.mark.parametrize(("name", "method"), METHODS_HERE.items())
def test_it_is_listed(name, method):
    listed = METHODS[name]
    assert (listed.pretrain, listed.settings, listed.suited_to, listed.preset) == (method.pretrain, method.Settings(), method.suited_to, "nll")
