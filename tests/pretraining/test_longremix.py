"""LongReMix: the search for labels to hold to, what the second training makes of them, and the warm-up that both share."""

from functools import reduce

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fspmu.data.images import Images
from fspmu.engine.checkpoint import build_model
from fspmu.engine.run import Run
from fspmu.models.classifier import Description
from fspmu.preprocessing import Preprocessing
from fspmu.pretraining import longremix, two_networks
from fspmu.pretraining.longremix import Largest, Settings, pretrain
from fspmu.pretraining.trained import Situation
from fspmu.pretraining.two_networks import Recent
from fspmu.results.store import RunFolder

TINY = {"warm_up": 2, "lambda_u": 25.0, "penalty": 1.0, "loss_epochs": 5, "ramp_up": 2, "batch_size": 8, "warm_up_batch": 16, "agreement": 2}
masks_of_20 = st.lists(st.booleans(), min_size=20, max_size=20).map(torch.tensor)


def make_images(count=48, size=8):
    labels = torch.arange(count) % 4
    pixels = torch.randint(0, 100, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    if size == 8:
        pixels[torch.arange(count), :, labels * 2] += 100
    wrong = torch.arange(count) % 5 == 0
    preprocessing = Preprocessing((0.5,) * 3, (0.25,) * 3, "crop-flip", 1)
    return Images(pixels, torch.where(wrong, (labels + 1) % 4, labels), tuple("abcd"), [str(row) for row in range(count)], preprocessing=preprocessing)


def new_model(generator):
    return build_model(Description("smallcnn", {"width": 8}, tuple("abcd")), generator)


def train(run=None, images=None, **changes):
    run = run or Run()
    with run.timed("pretraining"):
        return pretrain(images or make_images(), new_model, Settings(**(TINY | {"epochs": 4, "search_epochs": 5} | changes)), run)


def same(left, right):
    return all(torch.equal(value, right.state_dict()[name]) for name, value in left.state_dict().items())


class Script:
    """Stands in for training and mixtures: P(clean) is read from a script, and who would have trained on what is noted."""

    def __init__(self, monkeypatch, samples, clean=None):
        self.clean, self.samples, self.noted, self.trained = clean or {}, samples, [], []
        monkeypatch.setattr(longremix, "warm_up_pass", self.warm_up)
        monkeypatch.setattr(longremix, "mixing_epoch", self.mixing)
        monkeypatch.setattr(longremix, "clean_for_both", lambda pair, images, trained_on, epoch, run: (self.seen(run, epoch)[0], self.logits))
        monkeypatch.setattr(longremix, "clean_probabilities", lambda pair, images, trained_on, epoch, run: (self.seen(run, epoch), self.logits))

    @property
    def logits(self):
        return torch.zeros(self.samples, 4)

    def seen(self, run, epoch):
        return [w.clone() for w in self.clean.get((run.stage, epoch), [torch.full((self.samples,), 0.9)] * 2)]

    def warm_up(self, pair, images, trained_on, settings, epoch, run):
        self.noted.append((run.stage, "warm-up", epoch, pair.optimizers[1].param_groups[0]["lr"], None))
        return {}

    def mixing(self, pair, images, trained_on, trusted, clean, settings, epoch, run, *, steps=None):
        self.noted.append((run.stage, "mixing", epoch, pair.optimizers[1].param_groups[0]["lr"], steps))
        self.trained.append((run.stage, epoch, trusted, [w.clone() for w in clean]))
        return {}


def test_the_published_schedule_at_full_size(monkeypatch):
    """50,000 samples: 782 steps in each pass of the second training, whatever is trusted; a learning rate that falls in the second alone."""
    script, run = Script(monkeypatch, 50_000), Run()
    monkeypatch.setattr(two_networks.SampleHistory, "end_epoch", lambda history: None)
    settings = longremix.suited_to(Settings(), Situation(10, "sym", 0.5))
    with run.timed("pretraining"):
        pretrain(make_images(50_000, 1), new_model, settings, run)
    first = [note for note in script.noted if note[0] == "high-confidence"]
    second = [note for note in script.noted if note[0] == "pretraining"]
    assert [note[1:3] for note in first] == [("warm-up" if e <= 10 else "mixing", e) for e in range(1, 302)]
    assert {note[3] for note in first} == {0.02} and {note[4] for note in first} == {None}
    assert [note[1:3] for note in second] == [("mixing", e) for e in range(11, 302)], "the warm-up is not repeated"
    assert [note[3] for note in second] == pytest.approx([0.02] * 140 + [0.002] * 151) and {note[4] for note in second} == {782}
    assert [line["epoch"] for line in run.lines if line["stage"] == "pretraining"] == list(range(1, 302))


@hypothesis_settings(max_examples=50)
@given(st.lists(masks_of_20, min_size=1, max_size=9), st.integers(1, 6))
def test_masks_that_agree_are_the_intersection_of_the_last_sets(masks, length):
    recent, sets = Recent(length), []
    for mask in masks:
        found = recent.add(mask).all(dim=0)
        sets.append(set(mask.nonzero().squeeze(1).tolist()))
        assert set(found.nonzero().squeeze(1).tolist()) == reduce(set.intersection, sets[-length:])


def test_of_equally_large_sets_the_most_recent_is_kept():
    largest = Largest(4)
    for mask, kept in (("1100", "1100"), ("0011", "0011"), ("1000", "0011"), ("1110", "1110"), ("0111", "0111"), ("0000", "0111")):
        largest.offer(torch.tensor([digit == "1" for digit in mask]))
        assert largest.mask.tolist() == [digit == "1" for digit in kept]


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(0, 3), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_the_search_against_sets_of_numbers(monkeypatch, data, warm_up, mains, agreement, last_sets):
    """Two networks whose P(clean) is anything: who trains on what, and which set of the last ones is chosen."""
    total, stage = warm_up + mains, "high-confidence"
    clean = {
        (stage, e): [torch.tensor(data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.8]), min_size=8, max_size=8))) for _ in (1, 2)] for e in range(1, total + 1)
    }
    with monkeypatch.context() as patch:
        script = Script(patch, 8, clean)
        trained = train(images=make_images(8), warm_up=warm_up, search_epochs=total, epochs=warm_up + 1, agreement=agreement, last_sets=last_sets)

    def numbers(mask):
        return set(mask.nonzero().squeeze(1).tolist())

    views = [[numbers(clean[stage, e][k if e > warm_up else 0] > 0.5) for e in range(1, total + 1)] for k in (0, 1)]  # warm-up: net1's for both
    agreed = [{e: reduce(set.intersection, views[k][max(0, e - agreement) : e]) for e in range(warm_up + 1, total + 1)} for k in (0, 1)]
    searched = [entry for entry in script.trained if entry[0] == stage]
    assert [entry[1] for entry in searched] == list(range(warm_up + 1, total + 1))
    for _, epoch, trusted, w in searched:
        assert [numbers(mask) for mask in trusted] == [agreed[0][epoch], agreed[1][epoch]]
        assert all(torch.equal(*pair) for pair in zip(w, clean[stage, epoch], strict=True)), "the weights are those of this epoch"
    stored = list(agreed[0].values())[-last_sets:]
    largest = max(map(len, stored))
    chosen = [found for found in stored if len(found) == largest][-1]
    assert numbers(trained.sets["high_confidence"]) == chosen


def test_the_second_training_is_sure_of_what_the_first_one_found(monkeypatch):
    found, later = torch.tensor([0.9] * 4 + [0.2] * 8), [torch.linspace(0, 1, 12), torch.linspace(1, 0, 12)]
    clean = {("high-confidence", e): [found, 1 - found] for e in (1, 2, 3)} | {("pretraining", 3): later}
    script = Script(monkeypatch, 12, clean)
    trained = train(images=make_images(12), epochs=3, search_epochs=3, agreement=1, batch_size=5)
    assert trained.sets["high_confidence"].tolist() == [True] * 4 + [False] * 8
    (_, _, trusted, w), steps = script.trained[-1], script.noted[-1][4]
    assert steps == 12 // 5 + 1
    for k in (0, 1):
        assert torch.equal(w[k], torch.cat([torch.ones(4), later[k][4:]]))
        assert torch.equal(trusted[k], w[k] > 0.5)


def test_losses_of_warm_up_count_and_net2_takes_those_of_net1():
    pair = longremix.fresh_pair(make_images(), new_model, Settings(**TINY), Run())
    run, images = Run(stage="pretraining"), make_images()
    everyone = torch.ones(48, dtype=torch.bool)
    for epoch in (1, 2):
        longremix.clean_for_both(pair, images, everyone, epoch, run)
    one, two = (recent.state_dict()["kept"] for recent in pair.losses)
    assert len(one) == len(two) == 2 and all(torch.equal(*rows) for rows in zip(one, two, strict=True))
    two_networks.clean_probabilities(pair, images, everyone, 3, run)
    one, two = (recent.state_dict()["kept"] for recent in pair.losses)
    assert len(one) == len(two) == 3 and torch.equal(one[1], two[1]) and not torch.equal(one[2], two[2])


@pytest.mark.parametrize("resumed", [False, True])
def test_the_shared_warm_up_is_the_one_that_would_be_repeated(resumed, monkeypatch, tmp_path):
    """The second training begins where the first one's warm-up ended: same weights, optimisers, losses, margins, figures; only cheaper."""
    shared = Run(evaluation=make_images(20), folder=RunFolder(tmp_path / "shared"))
    if resumed:
        original, calls = longremix.mixing_epoch, []

        def stop(*arguments, **options):
            calls.append(1)
            if len(calls) == 4:  # the first of the second training, so that the warm-up comes from the file
                raise KeyboardInterrupt
            return original(*arguments, **options)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(longremix, "mixing_epoch", stop)
            train(Run(evaluation=make_images(20), folder=RunFolder(tmp_path / "shared")))
        (tmp_path / "shared" / "state" / "pretraining.safetensors").unlink()  # as if stopped between the two
    once = train(shared)
    monkeypatch.setattr(longremix, "same_warm_up", lambda settings: False)
    repeated = Run(evaluation=make_images(20))
    twice = train(repeated)
    assert all(same(*models) for models in zip(once.models, twice.models, strict=True))
    assert torch.equal(once.history.margins, twice.history.margins) and once.history.margins.shape == (4, 48)
    assert torch.equal(once.sets["high_confidence"], twice.sets["high_confidence"])
    assert [line for line in shared.lines if line["stage"] == "pretraining"] == [line for line in repeated.lines if line["stage"] == "pretraining"]
    assert shared.passes["high-confidence"] == repeated.passes["high-confidence"]
    assert repeated.passes["pretraining"]["backward"] - shared.passes["pretraining"]["backward"] == 2 * 2 * 48


@pytest.mark.parametrize("changes", [{"lr_step": 1}, {"epochs": 1}, {"search_epochs": 1}, {"warm_up": 0}])
def test_the_warm_up_is_repeated_where_the_two_differ(changes):
    settings, run = Settings(**(TINY | {"epochs": 4, "search_epochs": 5} | changes)), Run(evaluation=make_images(20))
    assert longremix.same_warm_up(settings) == (settings.warm_up == 0)
    trained = train(run, **changes)
    stages = [(line["stage"], line["epoch"]) for line in run.lines]
    assert stages == [("high-confidence", e + 1) for e in range(settings.search_epochs)] + [("pretraining", e + 1) for e in range(settings.epochs)]
    assert len(run.accuracies("pretraining")) == len(trained.history.margins) == settings.epochs
    assert bool(trained.sets["high_confidence"].any()) != bool(run.notices)
    if settings.search_epochs < settings.warm_up:
        assert "found no label to hold to" in run.notices[0]


def test_the_second_training_starts_afresh():
    """With no epochs of its own but the warm-up it ends where the warm-up ended, whatever the first one did afterwards."""
    short, long = train(epochs=2, search_epochs=3), train(epochs=2, search_epochs=5)
    assert all(same(*models) for models in zip(short.models, long.models, strict=True))
