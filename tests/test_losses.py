"""The losses and their gradients against numpy in double precision, written from the formulas of docs/method.md."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from fspmu.losses import (
    centroid_attraction,
    centroid_repulsion,
    consistency,
    cosines,
    distillation,
    divergences,
    forget_loss,
    forget_losses,
    margins,
    retain_loss,
    retain_losses,
    unit_rows,
)

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def make_case(batch, classes, width, seed):
    draw = np.random.default_rng(seed)
    scale = draw.uniform(0.1, 5, size=(classes, 1))
    return {
        "logits": 3 * draw.normal(size=(batch, classes)),
        "teacher": 3 * draw.normal(size=(batch, classes)),
        "features": draw.normal(size=(batch, width)) * draw.uniform(0.1, 5, size=(batch, 1)),
        "centroids": draw.normal(size=(classes, width)) * scale,
        "labels": draw.integers(0, classes, size=batch),
    }


def leaf(array):
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def cosine_and_slopes(features, centroids):
    """Return c_ik (B, K) and dc_ik / df_i (B, K, D), from cos(f, mu) = f.mu / (|f| |mu|)."""
    lengths = np.sqrt((features**2).sum(1))[:, None]
    others = np.sqrt((centroids**2).sum(1))[None, :]
    cosine = features @ centroids.T / (lengths * others)
    slopes = centroids[None] / (lengths * others)[..., None] - cosine[..., None] * features[:, None] / lengths[..., None] ** 2
    return cosine, slopes


def weights_of(cosine, t):
    raised = np.where(cosine > 0, cosine, 0) ** (1 / t)
    total = raised.sum(1, keepdims=True)
    return np.divide(raised, total, out=np.zeros_like(raised), where=total > 0)


cases = st.tuples(st.integers(1, 9), st.integers(2, 7), st.integers(2, 8), st.integers(0, 2**31))


@given(cases, st.sampled_from([0.25, 0.5]), st.sampled_from([0.5, 1.0, 4.0]))
@settings(max_examples=60)
def test_forget_loss_and_its_gradients(shape, t, temperature):
    case, batch, eta, zeta = make_case(*shape), shape[0], 1.3, 0.7
    logits, features = leaf(case["logits"]), leaf(case["features"])
    teacher, centroids = leaf(case["teacher"]), torch.tensor(case["centroids"])
    loss = forget_loss(logits, teacher, features, centroids, eta=eta, zeta=zeta, t=t, temperature=temperature)
    loss.backward()

    target, ours = softmax(case["teacher"] / temperature, axis=1), softmax(case["logits"] / temperature, axis=1)
    gap = log_softmax(case["teacher"] / temperature, axis=1) - log_softmax(case["logits"] / temperature, axis=1)
    kl = temperature**2 * (target * gap).sum(1).mean()
    cosine, slopes = cosine_and_slopes(case["features"], case["centroids"])
    weight = weights_of(cosine, t)
    np.testing.assert_allclose(loss.item(), -eta * kl + zeta * (weight * cosine).sum(1).mean(), **TIGHT)
    np.testing.assert_allclose(logits.grad.numpy(), -eta * temperature * (ours - target) / batch, **TIGHT)
    np.testing.assert_allclose(features.grad.numpy(), zeta / batch * (weight[..., None] * slopes).sum(1), **TIGHT)
    assert teacher.grad is None


@given(cases)
@settings(max_examples=60)
def test_retain_loss_and_its_gradients(shape):
    case, batch, gamma, delta = make_case(*shape), shape[0], 1.7, 500.0
    logits, features = leaf(case["logits"]), leaf(case["features"])
    loss = retain_loss(logits, features, torch.tensor(case["labels"]), torch.tensor(case["centroids"]), gamma=gamma, delta=delta)
    loss.backward()

    rows, labels = np.arange(batch), case["labels"]
    cosine, slopes = cosine_and_slopes(case["features"], case["centroids"])
    entropy = -log_softmax(case["logits"], axis=1)[rows, labels].mean()
    np.testing.assert_allclose(loss.item(), gamma * entropy - delta * cosine[rows, labels].mean(), **TIGHT)
    hot = np.eye(case["logits"].shape[1])[labels]
    np.testing.assert_allclose(logits.grad.numpy(), gamma * (softmax(case["logits"], axis=1) - hot) / batch, **TIGHT)
    np.testing.assert_allclose(features.grad.numpy(), -delta / batch * slopes[rows, labels], **TIGHT)


def test_repulsion_by_hand():
    # cosines .8 and .6: power 4 gives .4096 and .1296, power 2 gives .64 and .36
    features, centroids = torch.tensor([[8.0, 6.0]]), torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    assert centroid_repulsion(features, centroids, 0.25).item() == pytest.approx((0.4096 * 0.8 + 0.1296 * 0.6) / 0.5392)
    assert float(centroid_repulsion(features, centroids, 0.5)) == pytest.approx(0.64 * 0.8 + 0.36 * 0.6)


def test_a_negative_cosine_never_weighs():
    # with an even power of the raw cosine the opposite centroid (-1) would outweigh the near one (.6)
    features, centroids = torch.tensor([[0.6, -0.8]]), torch.tensor([[1.0, 0.0], [-0.6, 0.8]])
    assert float(centroid_repulsion(features, centroids, 0.5)) == pytest.approx(0.6)


def test_the_published_coefficients_enter_with_their_signs():
    logits, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    features, centroids = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    plain = {"eta": 0.0, "zeta": 0.0, "t": 0.25, "temperature": 0.5}
    assert float(forget_loss(logits, teacher, features, centroids, **plain | {"eta": 1.0})) < 0
    assert float(forget_loss(logits, teacher, features, centroids, **plain | {"zeta": 1.0})) == pytest.approx(1.0)
    assert float(retain_loss(logits, features, torch.tensor([0]), centroids, gamma=0.0, delta=2.0)) == pytest.approx(-2.0)


@pytest.mark.parametrize("t", [0.25, 0.5])
def test_far_from_every_centroid_nothing_pushes(t):
    features = torch.tensor([[-1.0, -2.0], [1.0, 1.0]], requires_grad=True)
    value = centroid_repulsion(features, torch.eye(2), t)
    value.backward()
    assert value.item() == pytest.approx(0.5 * np.sqrt(0.5))  # the first row counts 0, the second its two equal cosines
    assert torch.equal(features.grad[0], torch.zeros(2))
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("zero", ["features", "centroids"])
def test_a_zero_row_gives_cosine_zero_and_a_finite_gradient(zero):
    case = make_case(4, 3, 5, 0)
    case[zero][1] = 0
    logits, features, centroids = leaf(case["logits"]), leaf(case["features"]), torch.tensor(case["centroids"])
    cosine = cosines(features, centroids)
    assert (cosine[1] == 0).all() if zero == "features" else (cosine[:, 1] == 0).all()
    loss = forget_loss(logits, leaf(case["teacher"]), features, centroids, eta=1, zeta=0.5, t=0.25, temperature=0.5)
    loss = loss + retain_loss(logits, features, torch.tensor([0, 1, 1, 2]), centroids, gamma=1, delta=500)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all() and torch.isfinite(logits.grad).all()


def test_unit_rows_keep_directions():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-5.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(unit_rows(rows).numpy(), [[0.6, 0.8], [0, 0], [-1, 0]], atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("centroid_dtype", [None, torch.float32])
def test_every_float_dtype(dtype, centroid_dtype):
    case = make_case(16, 10, 32, 1)
    logits, features = (torch.tensor(case[name], dtype=dtype, requires_grad=True) for name in ("logits", "features"))
    teacher, centroids = torch.tensor(case["teacher"], dtype=dtype), torch.tensor(case["centroids"], dtype=centroid_dtype or dtype)
    labels = torch.tensor(case["labels"])
    values = {
        "forget": forget_loss(logits, teacher, features, centroids, eta=1, zeta=0.5, t=0.25, temperature=0.5),
        "retain": retain_loss(logits, features, labels, centroids, gamma=1, delta=5),
    }
    exact = {
        "forget": forget_loss(logits.double(), teacher.double(), features.double(), centroids.double(), eta=1, zeta=0.5, t=0.25, temperature=0.5),
        "retain": retain_loss(logits.double(), features.double(), labels, centroids.double(), gamma=1, delta=5),
    }
    rounding = max(torch.finfo(dtype).eps, torch.finfo(centroids.dtype).eps)
    for name, value in values.items():
        assert value.dtype == dtype
        assert value.item() == pytest.approx(exact[name].item(), rel=20 * rounding, abs=20 * rounding)
    sum(values.values()).backward()
    for tensor in (logits, features):
        assert tensor.grad.dtype == dtype and torch.isfinite(tensor.grad).all()
    assert margins(logits, labels).dtype == dtype


def test_distillation_of_itself_is_nothing_and_overconfidence_stays_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    assert distillation(logits, logits, 0.5).item() == pytest.approx(0, abs=1e-6)
    value = distillation(logits, logits.flip(0), 0.5)
    value.backward()
    assert torch.isfinite(value) and value > 0 and torch.isfinite(logits.grad).all()


def test_attraction_takes_each_samples_own_centroid():
    features, centroids = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[5.0, 0.0], [0.0, 7.0]])
    assert float(centroid_attraction(features, torch.tensor([0, 1]), centroids)) == pytest.approx(1.0)
    assert float(centroid_attraction(features, torch.tensor([0, 0]), centroids)) == pytest.approx(0.5)


@given(cases)
@settings(max_examples=30)
def test_margins(shape):
    case = make_case(*shape)
    logits, labels = case["logits"], case["labels"]
    expected = [row[label] - np.delete(row, label).max() for row, label in zip(logits, labels, strict=True)]
    given_logits = torch.tensor(logits)
    result = margins(given_logits, torch.tensor(labels)).numpy()
    np.testing.assert_allclose(result, expected, **TIGHT)
    assert ((result < 0) == (logits.argmax(1) != labels)).all()
    assert np.array_equal(given_logits.numpy(), logits)


@given(cases)
@settings(max_examples=40)
def test_rows_that_count_for_more(shape):
    """A mean by whole weights is that over rows which stand there as often; gradients too."""
    case, batch = make_case(*shape), shape[0]
    times = np.random.default_rng(shape[3]).integers(0, 4, size=batch)
    times[0] = 1
    weights, rows = torch.tensor(times / times.mean()), torch.tensor(np.repeat(np.arange(batch), times))
    labels, centroids, teacher = (torch.tensor(case[name]) for name in ("labels", "centroids", "teacher"))
    forgetting = {"eta": 1.3, "zeta": 0.7, "t": 0.25, "temperature": 0.5}
    found = []
    for often in (False, True):
        logits, features = leaf(case["logits"]), leaf(case["features"])
        if often:
            loss = forget_loss(logits[rows], teacher[rows], features[rows], centroids, **forgetting)
            loss = loss + retain_loss(logits[rows], features[rows], labels[rows], centroids, gamma=1.7, delta=50)
        else:
            each = forget_losses(logits, teacher, features, centroids, **forgetting)
            each = each + retain_losses(logits, features, labels, centroids, gamma=1.7, delta=50)
            assert each.shape == (batch,)
            loss = (weights * each).mean()
        loss.backward()
        found.append((loss.item(), logits.grad.numpy(), features.grad.numpy()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(divergences(logits, teacher, 4.0).mean().item(), distillation(logits, teacher, 4.0).item(), rtol=1e-9)


@given(cases, st.sampled_from([0.3, 0.5, 1.0]), st.sampled_from([0.0, 0.4, 0.7]))
@settings(max_examples=40)
def test_consistency_and_its_gradients(shape, sharpening, confidence):
    case = make_case(*shape)
    first, second = leaf(case["logits"]), leaf(case["teacher"])
    each = consistency(first, second, sharpening=sharpening, confidence=confidence)
    each.sum().backward()

    p, q = softmax(case["logits"], axis=1), softmax(case["teacher"], axis=1)
    together = (p + q) / 2
    target = together ** (1 / sharpening)
    target /= target.sum(1, keepdims=True)
    sure = (together.max(1) > confidence).astype(float)
    expected = sum((target * (np.log(target) - np.log(view))).sum(1) for view in (p, q)) / 2
    np.testing.assert_allclose(each.detach().numpy(), sure * expected, **TIGHT)
    for view, said in ((first, p), (second, q)):  # no gradient through the target: that of a cross-entropy to a fixed one
        np.testing.assert_allclose(view.grad.numpy(), sure[:, None] * (said - target) / 2, **TIGHT)
    swapped = consistency(second, first, sharpening=sharpening, confidence=confidence)
    assert torch.allclose(each, swapped) and bool((each >= -1e-12).all())


def test_consistency_of_sure_and_equal_views_is_nothing():
    sure = torch.tensor([[80.0, -80.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    value = consistency(sure, sure, sharpening=0.5, confidence=0.8)
    value.sum().backward()
    assert value.detach().numpy() == pytest.approx([0, 0], abs=1e-6) and torch.isfinite(sure.grad).all()
    apart = consistency(sure, sure.flip(0), sharpening=0.5, confidence=0.8)
    assert apart.tolist() == [0, 0], "views that contradict each other are not sure together"
