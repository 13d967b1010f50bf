"""The mixing pass of DivideMix and LongReMix against numpy, and what it does to batch norm."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fspmu.data.images import Images
from fspmu.engine.checkpoint import build_model
from fspmu.engine.run import Run
from fspmu.engine.training import sgd
from fspmu.errors import InputError
from fspmu.models.classifier import Description
from fspmu.preprocessing import Preprocessing
from fspmu.pretraining import dividemix
from fspmu.pretraining.mixmatch import ViewBatches, guessed_targets, mixmatch_loss, mixmatch_pass, refined_targets, sharpen, unlabelled_weight

SETTINGS = replace(dividemix.Settings(), warm_up=10, tau=0.5, lambda_u=25.0, penalty=0.0, loss_epochs=1)
EXAMPLES = hypothesis_settings(max_examples=30)
seeds = st.integers(0, 2**32 - 1)


def make_images(count=40, classes=4, size=8):
    """Images that tell their own number: pixel value = number + 1, on black."""
    pixels = (torch.arange(count) + 1).to(torch.uint8)[:, None, None, None].expand(count, 3, size, size).clone()
    preprocessing = Preprocessing((0.0,) * 3, (1 / 255,) * 3, "crop-flip", 2)
    return Images(pixels, torch.arange(count) % classes, tuple("abcdefghij"[:classes]), [str(row) for row in range(count)], preprocessing=preprocessing)


def noisy_images(count=40):
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    preprocessing = Preprocessing((0.5,) * 3, (0.25,) * 3, "crop-flip", 1)
    return Images(pixels, torch.arange(count) % 4, tuple("abcd"), [str(row) for row in range(count)], preprocessing=preprocessing)


def new_model(seed):
    return build_model(Description("smallcnn", {"width": 4}, tuple("abcd")), torch.Generator().manual_seed(seed))


def first(count, total):
    return torch.arange(total) < count


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sharp(p, temperature):
    q = p ** (1 / temperature)
    return q / q.sum(axis=1, keepdims=True)


def loss_of(z, targets, labelled, weight, regulariser):
    """The loss of the definition, in double precision, row by row."""
    p, classes = softmax(z), z.shape[1]
    fit = sum(-sum(t * np.log(q) for t, q in zip(*row, strict=True)) for row in zip(targets[:labelled], p[:labelled], strict=True)) / labelled
    rest = [(q - t) ** 2 for row in zip(targets[labelled:], p[labelled:], strict=True) for t, q in zip(*row, strict=True)]
    spread = sum(1 / classes * np.log(1 / classes / p[:, c].mean()) for c in range(classes))
    return fit + (weight * sum(rest) / len(rest) if rest else 0.0) + regulariser * spread


@EXAMPLES
@given(seeds, st.integers(1, 6), st.integers(2, 12), st.floats(0.2, 2.0))
def test_targets_are_those_of_the_definition(seed, rows, classes, temperature):
    draw = np.random.default_rng(seed)
    own, other, peer, judge = draw.normal(0, 3, (4, rows, classes))
    w, labels = draw.random(rows), draw.integers(0, classes, rows)
    logits = [torch.from_numpy(z).float() for z in (own, other, peer, judge)]
    guessed = sharp((softmax(own) + softmax(other) + softmax(peer) + softmax(judge)) / 4, temperature)
    np.testing.assert_allclose(guessed_targets((logits[0], logits[1]), (logits[2], logits[3]), temperature), guessed, atol=1e-5)
    mean = (softmax(own) + softmax(other)) / 2
    refined = sharp(np.stack([w[i] * np.eye(classes)[labels[i]] + (1 - w[i]) * mean[i] for i in range(rows)]), temperature)
    found = refined_targets((logits[0], logits[1]), torch.from_numpy(labels), torch.from_numpy(w).float(), temperature)
    np.testing.assert_allclose(found, refined, atol=1e-5)
    np.testing.assert_allclose(found.sum(dim=1), 1, atol=1e-5)


def test_a_label_that_is_surely_clean_is_the_target_as_it_is():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    found = refined_targets((logits, logits), torch.tensor([2, 0, 1]), torch.ones(3), 0.5)
    assert torch.equal(found, torch.eye(4)[[2, 0, 1]])


def test_sharpening_leaves_a_distribution_at_any_temperature():
    found = sharpen(torch.tensor([[0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3], [1e-30, 1.0, 0.0]]), 1e-3)
    torch.testing.assert_close(found, torch.tensor([[0, 0, 1], [1 / 3] * 3, [0, 1, 0]]))


@EXAMPLES
@given(seeds, st.integers(1, 5), st.integers(0, 5), st.integers(2, 12), st.floats(0, 150), st.floats(0, 2))
def test_the_loss_is_that_of_the_definition(seed, labelled, rest, classes, weight, regulariser):
    draw = np.random.default_rng(seed)
    logits, targets = draw.normal(0, 3, (labelled + rest, classes)), draw.dirichlet(np.ones(classes), labelled + rest)
    found = mixmatch_loss(torch.from_numpy(logits).float(), torch.from_numpy(targets).float(), labelled, weight, regulariser)
    np.testing.assert_allclose(float(found), loss_of(logits, targets, labelled, weight, regulariser), rtol=1e-4, atol=1e-5)


def test_the_error_of_unlabelled_rows_is_divided_by_the_classes():
    """Ten classes, a uniform prediction, one right answer: L_u = 0.09, 2.25 with a weight of 25; L_reg = 0, L_x = log 10."""
    targets = torch.eye(10)[[3, 5]]
    assert float(mixmatch_loss(torch.zeros(2, 10), targets, 1, 25.0, 1.0)) == pytest.approx(np.log(10) + 2.25, rel=1e-6)
    assert float(mixmatch_loss(torch.zeros(2, 10), targets, 1, 0.0, 1.0)) == pytest.approx(np.log(10), rel=1e-6)


def test_the_loss_is_finite_where_a_class_has_vanished():
    logits = torch.tensor([[500.0, 0.0, 0.0], [500.0, 0.0, 0.0]], requires_grad=True)
    loss = mixmatch_loss(logits, torch.eye(3)[[0, 1]], 1, 25.0, 1.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_the_weight_of_unlabelled_samples_rises_for_16_epochs_after_warm_up():
    """Published epochs count from 0, those of a run from 1."""
    assert [unlabelled_weight(SETTINGS, epoch + 1, 0.0) for epoch in (9, 10, 18, 26, 300)] == [0, 0, 12.5, 25, 25]
    assert unlabelled_weight(SETTINGS, 11, 0.5) == pytest.approx(25 * 0.5 / 16)
    assert unlabelled_weight(SETTINGS, 26, 0.99) < 25 == unlabelled_weight(SETTINGS, 27, 0.0)


@EXAMPLES
@given(st.integers(2, 25), st.integers(2, 25), st.integers(2, 9), st.none() | st.integers(0, 12), st.integers(0, 5))
def test_batches_visit_the_labelled_once_and_cycle_the_others(labelled, rest, size, steps, epoch):
    images = make_images(labelled + rest)
    batches = ViewBatches(images, first(labelled, len(images)), ~first(labelled, len(images)), replace(SETTINGS, batch_size=size), Run(), epoch, steps=steps)
    found = list(batches)
    whole = -(-labelled // size) - (labelled % size == 1)  # a last sample alone joins the batch before
    assert len(found) == len(batches) == (whole if steps is None else steps)
    numbers = [batch.index.tolist() for batch in found]
    for start in range(0, len(found) - whole + 1, whole):
        assert sorted(sum(numbers[start : start + whole], [])) == list(range(labelled))
    others = [[number_of(view) - labelled for view in batch.unlabelled[0]] for batch in found]
    cycle = -(-rest // size) - (rest % size == 1)
    for start in range(0, len(found) - cycle + 1, cycle):
        assert sorted(sum(others[start : start + cycle], [])) == list(range(rest))
    for place, batch in enumerate(found):
        assert batch.progress == pytest.approx((place % whole) / (labelled // size + 1))
        assert 0.5 <= batch.lam <= 1 and len(batch.second) == len(batch) > 1
        assert [number_of(view) for view in batch.images] == [number_of(view) for view in batch.second] == batch.index.tolist()
        assert [number_of(view) for view in batch.unlabelled[0]] == [number_of(view) for view in batch.unlabelled[1]]
        assert torch.equal(batch.given_labels, images.given_labels[batch.index])
        assert sorted(batch.order.tolist()) == list(range(2 * len(batch) + 2 * len(batch.unlabelled[0])))


def number_of(view):
    return round(float(view.max())) - 1


def test_views_differ_and_draws_belong_to_the_epoch():
    images, chosen = make_images(40), first(20, 40)

    def draw(epoch):
        return list(ViewBatches(images, chosen, ~chosen, replace(SETTINGS, batch_size=8), Run(), epoch))

    one, again, other = draw(1), draw(1), draw(2)
    assert all(torch.equal(a.images, b.images) and torch.equal(a.order, b.order) and a.lam == b.lam for a, b in zip(one, again, strict=True))
    assert [batch.index.tolist() for batch in one] != [batch.index.tolist() for batch in other]
    assert not torch.equal(one[0].images, one[0].second) and not torch.equal(*one[0].unlabelled)
    assert len({batch.lam for batch in one}) == len(one)
    half, *_ = one
    assert half.order[: len(half)].max() >= 2 * len(half), "labelled and unlabelled rows mix freely"


def test_the_mixing_is_beta_folded_onto_its_upper_half():
    images, chosen = make_images(40), first(20, 40)
    lam = np.array([batch.lam for batch in ViewBatches(images, chosen, ~chosen, replace(SETTINGS, batch_size=8), Run(), "beta", steps=1500)])
    draw = np.random.default_rng(0).beta(4, 4, 100_000)
    np.testing.assert_allclose(np.quantile(lam, [0.1, 0.5, 0.9]), np.quantile(np.maximum(draw, 1 - draw), [0.1, 0.5, 0.9]), atol=0.02)


def one_step(labelled=10, rest=12, **changes):
    """Return a net before and after one step, its peer before and after, the batch, P(clean), the figures and the settings."""
    images, run, settings = noisy_images(labelled + rest), Run(), replace(SETTINGS, batch_size=16, **changes)
    net, peer = new_model(1), new_model(2)
    for model in (net, peer):  # running statistics that are not those of a fresh network
        with torch.no_grad():
            model.train()(torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3)))
    before, peer_before = copy.deepcopy(net), copy.deepcopy(peer)
    clean = torch.linspace(1, 0, labelled + rest)
    batches = ViewBatches(images, first(labelled, len(images)), ~first(labelled, len(images)), settings, run, "net1", 20)
    figures = mixmatch_pass(net, peer, sgd(net, 0.1), batches, clean, settings, 20, run, "net1")
    return net, before, peer, peer_before, next(iter(batches), None), clean, figures, settings


def statistics(model):
    return [value for name, value in model.state_dict().items() if "running" in name or "num_batches" in name]


def test_batch_norm_sees_u1_u2_x1_x2_and_the_mixed_rows_in_this_order():
    net, reference, peer, peer_before, batch, *_ = one_step()
    views = [*batch.unlabelled, batch.images, batch.second]
    rows = torch.cat([views[2], views[3], views[0], views[1]])
    with torch.no_grad():
        reference.train()
        for view in (*views, batch.lam * rows + (1 - batch.lam) * rows[batch.order]):
            reference(view)
    for found, expected in zip(statistics(net), statistics(reference), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(peer.state_dict().values(), peer_before.state_dict().values(), strict=True))
    assert statistics(net)[2] == statistics(peer)[2] + 5, "five updates"


def test_a_step_has_the_loss_of_the_definition():
    *_, figures, _ = one_step()
    _, before, _, peer, batch, clean, _, settings = one_step()
    with torch.no_grad():
        before.train()
        u = [before(view).logits.double().numpy() for view in batch.unlabelled]
        x = [before(view).logits.double().numpy() for view in (batch.images, batch.second)]
        judged = [peer.eval()(view).logits.double().numpy() for view in batch.unlabelled]
        guessed = sharp(sum(softmax(z) for z in (*u, *judged)) / 4, 0.5)
        w, given_labels = clean[batch.index].double().numpy()[:, None], np.eye(4)[batch.given_labels]
        refined = sharp(w * given_labels + (1 - w) * (softmax(x[0]) + softmax(x[1])) / 2, 0.5)
        rows, targets = torch.cat([batch.images, batch.second, *batch.unlabelled]), np.concatenate([refined, refined, guessed, guessed])
        mixed = before(batch.lam * rows + (1 - batch.lam) * rows[batch.order]).logits.double().numpy()
    targets = batch.lam * targets + (1 - batch.lam) * targets[batch.order]
    weight = 25 * (20 - 1 - 10) / 16
    assert figures["net1"] == pytest.approx(loss_of(mixed, targets, 2 * len(batch), weight, settings.regulariser), rel=1e-4)
    assert figures["net1_labelled"] == pytest.approx(10 / 22)


@pytest.mark.parametrize("rest", [0, 1])
def test_without_unlabelled_samples_the_labelled_are_mixed_with_each_other(rest):
    net, _, _, _, batch, _, figures, _ = one_step(10, rest)
    assert batch.unlabelled is None and len(batch.order) == 20 and np.isfinite(figures["net1"])
    assert all(torch.isfinite(value.float()).all() for value in net.state_dict().values())


@pytest.mark.parametrize("labelled", [0, 1])
def test_without_labels_to_trust_nothing_is_trained(labelled):
    net, before, _, _, batch, _, figures, _ = one_step(labelled, 12)
    assert batch is None and figures == {"net1_labelled": pytest.approx(labelled / (labelled + 12))}
    assert all(torch.equal(*pair) for pair in zip(net.state_dict().values(), before.state_dict().values(), strict=True))


def test_two_labelled_samples_are_enough():
    _, _, _, _, batch, _, figures, _ = one_step(2, 2)
    assert len(batch) == 2 and np.isfinite(figures["net1"])


def test_a_step_beyond_the_memory_says_what_to_do():
    batch = one_step()[4]
    assert batch.parts(1) == [batch]
    with pytest.raises(InputError, match="10 labelled samples.* lower --batch-size"):
        batch.parts(2)
