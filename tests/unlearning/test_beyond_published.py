"""What FSPMU can do beyond the published method: weights, a cosine, images without labels, going back. Each alone, and all together."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_unlearning_contract import PLAIN, make_images, make_split, same, state_of, textbook, unlearn, with_norm, without_norm

from fspmu.centroids import class_centroids
from fspmu.data.augment import normalise
from fspmu.data.batches import Batch
from fspmu.data.split import Split
from fspmu.data.stream import StreamedPixels
from fspmu.engine.inference import find_centroids, right_answers
from fspmu.engine.run import Run
from fspmu.errors import EmptySplit, InputError
from fspmu.losses import retain_losses
from fspmu.models.adopt import adopt
from fspmu.preprocessing import Geometry
from fspmu.results.store import RunFolder
from fspmu.unlearning import feature_preserving
from fspmu.unlearning.feature_preserving import Settings, fit
from fspmu.unlearning.rewinding import Kept, expected_agreement
from fspmu.unlearning.schedules import Cooled, cosine_decay, decay_at
from fspmu.unlearning.unlabelled import JointBatch, put_beside, with_unlabelled
from fspmu.unlearning.weighing import Part, parts_of

FEW = Settings(epochs=4, forget_epochs=2, forget_batch=8, retain_batch=16, lr=5e-3, delta=50.0)
SOFT = replace(FEW, weighting="clean-probability")
EACH = {
    "soft": SOFT,
    "cosine": replace(FEW, schedule="cosine"),
    "unlabelled": replace(FEW, unlabelled=1.0, tau_conf=0.1),
    "chance": replace(FEW, stop="chance"),
    "everything": replace(SOFT, schedule="cosine", unlabelled=1.0, tau_conf=0.1, stop="chance"),
}
COUNT = 60


def graded(seed=0, count=COUNT):
    """Return a split by probabilities between 0 and 1."""
    clean = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return Split(clean > 0.5, clean <= 0.5, clean)


def staged(**fields):
    run = Run(**fields)
    run.stage = "unlearning"
    return run


# weights


def test_probabilities_of_nought_and_one_are_the_masks():
    split = make_split()
    hard, soft = (unlearn("fspmu", with_norm(), split=split, settings=chosen) for chosen in (FEW, SOFT))
    for name, value in hard.state_dict().items():
        torch.testing.assert_close(soft.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_the_masks_do_not_look_at_the_probabilities():
    split = graded()
    other = replace(split, clean_probability=torch.where(split.retain, 1.0, 0.0))
    hard = [state_of(unlearn("fspmu", with_norm(), split=part, settings=FEW)) for part in (split, other)]
    soft = [state_of(unlearn("fspmu", with_norm(), split=part, settings=SOFT)) for part in (split, other)]
    assert same(*hard) and not same(*soft)


def test_weights_are_the_formula():
    images, split, model = make_images(preprocessing=PLAIN), graded(3), without_norm()
    s = replace(SOFT, epochs=3, forget_epochs=0, retain_batch=COUNT, retain_above=0.3)
    clean = split.clean_probability
    chosen = (clean > 0.3) | split.retain
    counts = (clean / clean[chosen].mean())[chosen]
    with torch.no_grad():
        seen = model(normalise(images.pixels, PLAIN)[chosen])
    unit = F.normalize(seen.features.double())
    centroids = F.normalize((seen.logits.double().softmax(1) * counts[:, None]).T @ unit).float()

    def retain(logits, features, pixels, labels):
        near = F.cosine_similarity(features, centroids[labels])
        return (counts * (F.cross_entropy(logits, labels, reduction="none") - s.delta * near)).mean()

    expected = textbook(model, images, Split(chosen, ~chosen, clean), s, None, retain).state_dict()
    result = unlearn("fspmu", model, images, split, s).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=0, atol=5e-6)


@given(st.integers(0, 10_000), st.floats(0.05, 0.45), st.floats(0.03, 0.95))
@settings(max_examples=40)
def test_who_takes_part_and_by_how_much(seed, retain_above, threshold):
    clean = graded(seed).clean_probability
    split = Split(clean > threshold, clean <= threshold, clean)
    retained, forgotten = parts_of(split, "clean-probability", retain_above)
    clean = clean.double()
    assert torch.equal(retained.chosen, clean > min(retain_above, threshold)) and torch.equal(forgotten.chosen, split.forget)
    for part, worth in ((retained, clean.clamp(min=retain_above)), (forgotten, 1 - clean)):
        kept = part.weights[part.chosen].double()
        if len(kept):
            assert float(kept.mean()) == pytest.approx(1, abs=1e-5), "the learning rate keeps its meaning"
            torch.testing.assert_close(kept / kept.max(), worth[part.chosen] / worth[part.chosen].max(), rtol=1e-4, atol=1e-5)


def test_what_is_in_neither_mask_stays_out_and_what_is_retained_counts():
    clean = torch.tensor([0.0, 0.0, 0.6, float("nan"), 1.0, 0.9, 0.3])
    retain, forget = torch.tensor([True, False, False, False, True, True, False]), torch.tensor([False, False, False, False, False, False, True])
    kept, gone = parts_of(Split(retain, forget, clean), "clean-probability", 0.2)
    assert kept.chosen.tolist() == [True, False, False, False, True, True, True], "dropped, unsure and held-out samples are in neither"
    assert gone.chosen.tolist() == [False, False, False, False, False, False, True], "what a floor keeps is not forgotten beside"
    assert float(kept.weights[0] / kept.weights[4]) == pytest.approx(0.2), "the floor under a class holds"
    assert bool(kept.weights[kept.chosen].isfinite().all()) and bool(gone.weights[gone.chosen].isfinite().all())


def test_weighted_centroids():
    images, model, split = make_images(), with_norm().eval(), graded()
    retained, _ = parts_of(split, "clean-probability", 0.2)
    found = find_centroids(model, images, staged(), chosen=retained.chosen, weights=retained.weights)
    with torch.no_grad():
        seen = model(normalise(images.pixels, images.preprocessing)[retained.chosen])
    weights = retained.weights[retained.chosen]
    torch.testing.assert_close(found, class_centroids(seen.features, seen.logits.softmax(1) * weights[:, None]), rtol=1e-4, atol=1e-5)
    plain, ones = (find_centroids(model, images, staged(), chosen=split.retain, weights=weights) for weights in (None, torch.ones(COUNT)))
    assert torch.equal(plain, ones) and not torch.allclose(plain, found, atol=1e-3)


def test_the_fitted_rate_accounts_for_weights():
    steep = replace(SOFT, lr=10.0, clip=1e9)
    images, split, model = make_images(), graded(), without_norm()
    rates = [fit(asked, model, images, split, staged())[0].lr for asked in (steep, replace(steep, weighting="masks"))]
    assert rates[0] != rates[1] and max(rates) < 10


# the cosine


def test_the_cosine_ends_at_nothing():
    assert cosine_decay(0) == 1 and cosine_decay(0.5) == pytest.approx(0.5) and cosine_decay(1) == 0
    assert decay_at("steps", 8, 15, (7, 10, 10)) == pytest.approx(0.1) and decay_at("cosine", 1, 15, (7,)) == 1


def test_the_rate_falls_before_every_step(monkeypatch):
    rates = []

    def look(student, batches, loss, optimizer, run, *, clip=None, label="loss"):
        for _ in batches:
            rates.append((label, optimizer.param_groups[0]["lr"]))
        return {}

    monkeypatch.setattr(feature_preserving, "train_epoch", look)
    unlearn("fspmu", with_norm(), settings=replace(EACH["cosine"], milestones=(1, 2)))
    kept = [rate for label, rate in rates if label == "retain"]
    assert kept == pytest.approx([5e-3 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]), "three steps in each of four epochs"
    assert [rate for label, rate in rates if label == "forget"] == pytest.approx([kept[0]] * 2 + [kept[3]] * 2), "a forget pass begins its epoch"
    assert len(Cooled([1, 2, 3], None, 1.0, 1, 4)) == 3


# images without their labels


def batch_of(first, count, size=None):
    return Batch(torch.arange(first, first + count)[:, None].float(), torch.zeros(count, dtype=torch.int64), torch.arange(first, first + count), size=size)


@given(st.integers(0, 9), st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=40)
def test_parts_keep_both_views_of_an_image_together(labelled, pairs, count):
    whole = put_beside(batch_of(0, labelled), batch_of(100, pairs), batch_of(200, pairs), 0.3)
    parts = whole.parts(count)
    assert len(parts) <= count and all(isinstance(part, JointBatch) and part.total == whole.total for part in parts)
    assert sum(part.labelled for part in parts) == labelled and sum(part.pairs for part in parts) == pairs
    for part in parts:
        first, second = part.index[part.labelled : part.labelled + part.pairs], part.index[part.labelled + part.pairs :]
        assert torch.equal(first + 100, second) and bool((part.index[: part.labelled] < 100).all())
        assert torch.equal(part.images[:, 0], part.index.float())


@given(st.integers(0, 6), st.integers(1, 6), st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=40)
def test_shares_of_several_processes_are_the_mean_of_the_whole(mine, theirs, my_pairs, their_pairs):
    rows, pairs = mine + theirs, my_pairs + their_pairs
    values = torch.rand(300, generator=torch.Generator().manual_seed(0))
    shares = [
        put_beside(batch_of(start, count, rows), batch_of(100 + first, number, pairs), batch_of(200 + first, number, pairs), 0.7)
        for start, count, first, number in ((0, mine, 0, my_pairs), (mine, theirs, my_pairs, their_pairs))
    ]
    found = sum(float((share.weight * values[share.index]).sum()) for share in shares) / shares[0].total
    beside = (values[100 : 100 + pairs].mean() + values[200 : 200 + pairs].mean()) / 2 if pairs else 0
    assert found == pytest.approx(float(values[:rows].mean() + 0.7 * beside), rel=1e-5)


def test_an_epoch_takes_every_forgotten_image_along_once():
    images, run = make_images(), staged()
    chosen = torch.arange(COUNT) >= 40
    retain = run.batches(images, ~chosen, 16, "retain", 3)
    batches = list(with_unlabelled(retain, images, chosen, 1.0, 16, run, 3))
    beside = [batch for batch in batches if isinstance(batch, JointBatch)]
    views = [(batch.index[batch.labelled :][: batch.pairs], batch.index[batch.labelled + batch.pairs :]) for batch in beside]
    assert all(torch.equal(*pair) for pair in views)
    assert torch.cat([first for first, _ in views]).sort().values.tolist() == list(range(40, 60))
    plain = list(run.batches(images, ~chosen, 16, "retain", 3))
    assert len(batches) == len(plain)
    for batch, own in zip(batches, plain, strict=True):
        assert torch.equal(batch.images[: len(own)], own.images), "the retain pass draws what it draws without them"
    pixels = [batch.images[batch.labelled :].split(batch.pairs) for batch in beside]
    assert any(not torch.equal(*pair) for pair in pixels), "two views"
    few = with_unlabelled(retain, images, torch.arange(COUNT) == 41, 1.0, 16, run, 3)
    assert few is retain, "batch norm has no statistics of one sample"


def test_the_weight_of_images_without_labels_enters_linearly():
    """One step of plain SGD: the move by the consistency grows with its weight, and where nobody is sure nothing changes but batch statistics."""
    images, model = make_images(preprocessing=replace(PLAIN, augment="crop-flip", padding=1)), without_norm()
    base = replace(FEW, epochs=1, forget_epochs=0, retain_batch=COUNT, momentum=0.0, weight_decay=0.0, clip=1e9, sharpening=0.3)
    heads = [unlearn("fspmu", model, images, settings=replace(base, unlabelled=weight, tau_conf=0.1)).head.weight.detach() for weight in (0.0, 1.0, 2.0)]
    torch.testing.assert_close(heads[2] - heads[0], 2 * (heads[1] - heads[0]), rtol=1e-3, atol=1e-7)
    assert float((heads[1] - heads[0]).abs().max()) > 1e-6
    unsure = unlearn("fspmu", model, images, settings=replace(base, unlabelled=5.0, tau_conf=1.0)).head.weight.detach()
    torch.testing.assert_close(unsure, heads[0], rtol=1e-4, atol=1e-7)


def test_forgotten_labels_do_not_enter():
    images, split = make_images(), make_split()
    labels = images.given_labels.clone()
    labels[split.forget] = (labels[split.forget] + 1) % 5
    asked = replace(EACH["unlabelled"], forget_epochs=0)
    results = [state_of(unlearn("fspmu", with_norm(), part, split, asked)) for part in (images, images.with_labels(labels))]
    assert same(*results)
    pixels = images.pixels.clone()
    pixels[split.forget] = 0
    assert not same(results[0], state_of(unlearn("fspmu", with_norm(), replace(images, pixels=pixels), split, asked))), "but the images do"


# going back


def test_what_is_to_be_expected_of_forgotten_labels():
    split = Split(torch.tensor([True, False, False]), torch.tensor([False, True, True]), torch.tensor([0.9, 0.0, 0.4]))
    assert expected_agreement(split, split.forget, 10) == pytest.approx((0.1 + 0.4 + 0.6 / 10) / 2)
    model, images = without_norm(), make_images(preprocessing=PLAIN)
    with torch.no_grad():
        said = model(normalise(images.pixels, PLAIN)).logits.argmax(1)
    chosen = torch.arange(COUNT) % 3 == 0
    assert torch.equal(right_answers(model, images, staged(), chosen=chosen), (said == images.given_labels)[chosen])


@given(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1, max_size=9))
@settings(max_examples=60)
def test_which_epoch_is_kept(level, seen):
    kept, model = Kept(level), torch.nn.Linear(1, 1)
    for epoch, value in enumerate(seen, 1):
        with torch.no_grad():
            model.weight.fill_(epoch)
        kept.look(model, epoch, value)
        again = Kept(level)
        again.load_state_dict(kept.state_dict())
        kept = again
    reached = [epoch for epoch, value in enumerate(seen, 1) if value <= level]
    nearest = max(epoch for epoch, value in enumerate(seen, 1) if value == min(seen))
    assert kept.epoch == (reached[-1] if reached else nearest)
    assert float(kept.weights["weight"]) == kept.epoch and kept.agreement == seen[kept.epoch - 1]


def test_the_network_of_an_earlier_epoch_is_handed_back(monkeypatch):
    """The agreement is told to rise after the third epoch: what is handed back is what three epochs made, and it is said."""
    said = iter([1, 1, 9])
    monkeypatch.setattr(feature_preserving, "right_answers", lambda *_, chosen: torch.arange(10) < next(said))
    run = Run()
    back = unlearn("fspmu", with_norm(), settings=EACH["chance"], run=run)
    three = unlearn("fspmu", with_norm(), settings=replace(EACH["chance"], stop="last", epochs=3))
    assert same(state_of(back), state_of(three))
    assert any("epoch 3 of 4 is kept" in notice and "10.0% of the forgotten labels" in notice for notice in run.notices)
    assert [line.get("forgotten_agreement") for line in run.lines] == [None, 0.1, 0.1, 0.9], "epochs before the last forget pass do not count"


def test_where_all_is_well_the_last_epoch_is_handed_back(monkeypatch):
    monkeypatch.setattr(feature_preserving, "right_answers", lambda *_, chosen: torch.zeros(10))
    run = Run()
    assert same(state_of(unlearn("fspmu", with_norm(), settings=EACH["chance"], run=run)), state_of(unlearn("fspmu", with_norm(), settings=FEW)))
    assert run.notices == []


def test_what_is_learned_again_on_purpose_is_no_reason_to_go_back():
    split = make_split(both=15)  # as of gmm-probe: everything forgotten is retained too
    run = Run()
    assert same(
        state_of(unlearn("fspmu", with_norm(), split=split, settings=EACH["chance"], run=run)),
        state_of(unlearn("fspmu", with_norm(), split=split, settings=FEW)),
    )
    assert all("forgotten_agreement" not in line for line in run.lines)
    assert run.notices == ["--stop chance: without effect, since every image that is forgotten is retained as well"]


def test_images_without_labels_that_have_no_epoch_are_said():
    run = Run()
    unlearn("fspmu", with_norm(), settings=replace(EACH["unlabelled"], epochs=2), run=run)
    assert run.notices == ["--unlabelled 1: without effect, since it begins after 2 epochs of forgetting and there are 2 in all"]


# each of them, wherever it may run


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("after", [2, 4])
def test_a_stopped_run_goes_on_where_it_was(name, after, tmp_path, monkeypatch):
    whole = Run(folder=RunFolder(tmp_path / "whole"), saving=100.0)
    expected = state_of(unlearn("fspmu", with_norm(), split=graded(), settings=EACH[name], run=whole))
    log = Run.log

    def stop(run, epoch, **values):
        if epoch == after:
            raise Stopped
        log(run, epoch, **values)

    monkeypatch.setattr(Run, "log", stop)
    with pytest.raises(Stopped):
        unlearn("fspmu", with_norm(), split=graded(), settings=EACH[name], run=Run(folder=RunFolder(tmp_path / "cut"), saving=100.0))
    monkeypatch.setattr(Run, "log", log)
    again = Run(folder=RunFolder(tmp_path / "cut"))
    assert same(state_of(unlearn("fspmu", with_norm(), split=graded(), settings=EACH[name], run=again)), expected)
    assert again.lines == whole.lines
    finished = Run(folder=RunFolder(tmp_path / "cut"))
    assert same(state_of(unlearn("fspmu", with_norm(), split=graded(), settings=EACH[name], run=finished)), expected), "nothing is left to do"


class Tight(Run):
    """A run whose forward runs out of memory above 12 images."""

    def forward(self, model, **options):
        whole = super().forward(model)

        def call(images):
            if len(images) > 12:
                raise torch.OutOfMemoryError("not enough memory")
            return whole(images)

        return call


@pytest.mark.parametrize("name", EACH)
def test_little_memory_takes_the_same_steps(name):
    asked = replace(EACH[name], delta=5.0)
    plenty, tight = (unlearn("fspmu", without_norm(), split=graded(), settings=asked, run=run).state_dict() for run in (Run(), Tight()))
    for label, value in plenty.items():
        torch.testing.assert_close(tight[label], value, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", EACH)
def test_an_adopted_network(name):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 12), torch.nn.BatchNorm1d(12), torch.nn.ReLU(), torch.nn.Linear(12, 5))
    images = make_images()
    network = adopt(module.train(), torch.zeros(2, 3, 8, 8), 5, class_names=images.class_names)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    result = unlearn("fspmu", network, images, graded(), EACH[name])
    after = state_of(result)
    assert same(state_of(network), before) and not any(torch.equal(value, before[key]) for key, value in after.items())
    assert all(bool(value.isfinite().all()) for value in after.values())


@pytest.mark.parametrize("name", ["soft", "everything"])
def test_images_that_stay_on_disk(name):
    images = make_images()
    streamed = replace(images, pixels=StreamedPixels(lambda row: images.pixels[row].permute(1, 2, 0).numpy(), list(images.ids), Geometry((8, 8))))
    assert not isinstance(streamed.pixels, torch.Tensor)
    kept, read = (unlearn("fspmu", with_norm(), part, graded(), EACH[name]) for part in (images, streamed))
    assert same(state_of(kept), state_of(read))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weighting": "soft"}, "unknown --weighting 'soft'.*known: clean-probability, masks"),
        ({"schedule": "cosin"}, "unknown --schedule 'cosin'; did you mean 'cosine'"),
        ({"stop": "best"}, "unknown --stop 'best'"),
        ({"retain_above": 1.5}, "--retain-above is 1.5, but it must be a fraction"),
        ({"tau_conf": 2.0}, "--tau-conf is 2.0, but it must be a fraction"),
        ({"unlabelled": -1.0}, "--unlabelled is -1.0, but it must be at least 0"),
    ],
)
def test_settings_that_are_none(changes, sentence):
    for call in (lambda asked: unlearn("fspmu", with_norm(), settings=asked), lambda asked: fit(asked, with_norm(), make_images(), make_split(), staged())):
        with pytest.raises(InputError, match=sentence):
            call(replace(FEW, **changes))


def test_nothing_to_retain_is_refused_with_weights_too():
    with pytest.raises(EmptySplit):
        unlearn("fspmu", with_norm(), split=make_split(forget=COUNT), settings=SOFT)


def test_the_rows_of_a_joint_batch_cost_what_the_parts_do():
    """The weighted mean over all rows is L_retain of the labelled ones and the weight times the consistency of the others."""
    draw = torch.Generator().manual_seed(0)
    logits, features, centroids = torch.randn(11, 5, generator=draw), torch.randn(11, 6, generator=draw), torch.randn(5, 6, generator=draw)
    asked = replace(FEW, unlabelled=0.4, tau_conf=0.0, sharpening=1.0)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    joined = put_beside(Batch(torch.zeros(7, 1), labels, torch.arange(7)), batch_of(20, 2), batch_of(30, 2), 0.4)
    found = feature_preserving._mean_of_all(logits, features, joined, centroids, Part(torch.ones(40, dtype=torch.bool)), asked)
    own = retain_losses(logits[:7], features[:7], labels, centroids, gamma=asked.gamma, delta=asked.delta).mean()
    p, q = logits[7:9].softmax(1), logits[9:11].softmax(1)
    m = (p + q) / 2
    apart = ((m * (m / p).log()).sum(1) + (m * (m / q).log()).sum(1)) / 2  # without sharpening: Jensen and Shannon's divergence
    assert float(found) == pytest.approx(float(own + 0.4 * apart.mean()), rel=1e-5)
