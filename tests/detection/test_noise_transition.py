import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fspmu.detection import feature_margin, noise_transition
from fspmu.detection.discriminant import fitted_discriminant
from fspmu.detection.evidence import Evidence
from fspmu.detection.noise_transition import Candidates, Noise, Settings, candidates, estimate_noise, find_temperature


def draw(sizes, apart, moves=(), seed=0, width=8):
    """Return evidence of Gaussian classes, any two of them `apart` standard deviations, and what is wrong: `moves` are (from, to, share)."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    block = apart / math.sqrt(2) * torch.eye(len(sizes), width)[true] + torch.randn(len(true), width, generator=generator)
    given_labels, luck = true.clone(), torch.rand(len(true), generator=generator)
    for start, end, share in moves:
        given_labels[(true == start) & (luck < share)] = end
    return Evidence(given_labels, len(sizes), block=block), given_labels != true


def score(evidence, asked=None):
    return noise_transition.score(evidence, asked or Settings(), torch.Generator())


def margin(evidence):
    return feature_margin.score(evidence, feature_margin.Settings(), torch.Generator())


def noise_of(evidence, common_samples=50.0):
    found = candidates(fitted_discriminant(evidence.block, evidence.given_labels, evidence.num_classes, Settings()), evidence.block, evidence.given_labels)
    return estimate_noise(found, find_temperature(found, common_samples), common_samples)


def test_the_order_of_many_images_does_not_matter(monkeypatch):
    monkeypatch.setattr(noise_transition, "MOST_SEARCHED", 400)
    evidence, wrong = draw([400] * 4, 4.0, [(0, 1, 0.3), (1, 2, 0.3), (2, 3, 0.3), (3, 0, 0.3)])
    turns = torch.arange(1600).view(4, 400).T.flatten()  # classes by turns: every fourth image is of one
    flagged = {}
    for name, order in {"by turns": turns, "at random": torch.randperm(1600, generator=torch.Generator().manual_seed(1))}.items():
        found = score(Evidence(evidence.given_labels[order], 4, block=evidence.block[order])) > 0
        flagged[name] = float((found == wrong[order]).double().mean())
    assert flagged["by turns"] == pytest.approx(flagged["at random"], abs=0.02) and flagged["by turns"] > 0.9


def test_the_transition_matrix_is_that_by_which_labels_were_moved():
    evidence, _ = draw([1000] * 4, 4.0, [(0, 1, 0.3), (2, 3, 0.2)])
    expected = torch.eye(4, dtype=torch.float64)
    expected[0, :2], expected[2, 2:] = torch.tensor([0.7, 0.3]), torch.tensor([0.8, 0.2])
    found = noise_of(evidence, common_samples=0.0)
    torch.testing.assert_close(found.transition, expected, atol=0.04, rtol=0)
    torch.testing.assert_close(found.shares, torch.full((4,), 0.25, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(found.transition.sum(dim=1), torch.ones(4, dtype=torch.float64))


def test_its_probabilities_come_true():
    evidence, wrong = draw([1500] * 4, 3.0, [(0, 1, 0.4), (1, 0, 0.4), (2, 3, 0.1)])
    said = torch.sigmoid(score(evidence))
    assert float(said.mean()) == pytest.approx(float(wrong.float().mean()), abs=0.03)
    for low, high in [(0.0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.0)]:
        inside = (said >= low) & (said < high)
        assert float(wrong[inside].float().mean()) == pytest.approx(float(said[inside].mean()), abs=0.1), "of those said to be wrong with p, about a share p is"


def test_where_classes_are_taken_for_certain_others_it_knows_more_than_the_margin():
    for seed in range(3):
        evidence, wrong = draw([500] * 6, 2.5, [(0, 1, 0.4), (2, 3, 0.4)], seed)
        assert roc_auc_score(wrong, score(evidence)) > roc_auc_score(wrong, margin(evidence)) + 0.03


@pytest.mark.parametrize("sizes", [[800] * 5, [3000, 600, 150, 60]])
def test_without_wrong_labels_hardly_any_looks_wrong_however_the_classes_overlap(sizes):
    evidence, _ = draw(sizes, 2.0)
    assert float((score(evidence) > 0).float().mean()) < 0.02 < 0.2 < float((margin(evidence) > 0).float().mean())


def test_rare_classes_are_not_what_common_images_show():
    evidence, wrong = draw([3000, 600, 150, 60], 3.0, [(0, 1, 0.1), (0, 2, 0.05), (1, 0, 0.2)])
    found = score(evidence)
    assert roc_auc_score(wrong, found) > roc_auc_score(wrong, margin(evidence)) + 0.01
    assert float((found > 0)[evidence.given_labels == 0].float().mean()) < 0.1


def test_the_score_is_bayes_rule():
    generator = np.random.default_rng(0)
    classes, samples = 3, 20
    distances, labels = generator.exponential(4, (samples, classes)), generator.integers(0, classes, samples)
    transition, shares, temperature = generator.dirichlet(np.ones(classes), classes), generator.dirichlet(np.ones(classes)), 1.7
    order = np.argsort(np.arange(classes)[None] != labels[:, None], axis=1, kind="stable")
    found = Candidates(torch.tensor(order), torch.tensor(np.take_along_axis(distances, order, 1)).float(), torch.tensor(labels), classes)
    joint = shares * np.exp(-distances / (2 * temperature)) * transition[:, labels].T
    wrong = 1 - joint[np.arange(samples), labels] / joint.sum(axis=1)
    said = Noise(torch.tensor(shares), torch.tensor(transition), temperature, 0.0).log_odds(found)
    np.testing.assert_allclose(said.numpy(), np.log(wrong / (1 - wrong)), rtol=1e-4, atol=1e-4)


def test_classes_far_from_an_image_may_be_left_out(monkeypatch):
    evidence, _ = draw([60] * 30, 4.0, [(0, 1, 0.3)], width=30)
    near = score(evidence)
    monkeypatch.setattr(noise_transition, "NEAREST", 29)
    whole = score(evidence)
    assert ((near > 0) == (whole > 0)).float().mean() > 0.99 and float((torch.sigmoid(near) - torch.sigmoid(whole)).abs().mean()) < 0.02


def test_the_likeliest_temperature_is_one_where_features_are_gaussian():
    evidence, _ = draw([2000] * 3, 3.0)
    discriminant = fitted_discriminant(evidence.block, evidence.given_labels, 3, Settings(refinements=0, shrinkage=0.0))
    found = candidates(discriminant, evidence.block, evidence.given_labels)
    best = find_temperature(found, 50.0)
    assert best == pytest.approx(1.0, abs=0.12)
    assert all(estimate_noise(found, best, 50.0).likelihood >= estimate_noise(found, best * other, 50.0).likelihood for other in (0.7, 1.4))


def test_a_small_class_is_mislabelled_as_all_are():
    evidence, _ = draw([1000, 1000, 12], 5.0, [(0, 1, 0.3), (1, 0, 0.3), (2, 0, 0.99)])
    evidence.given_labels[-2:] = 2
    alone, together = (float(noise_of(evidence, common_samples=count).transition[2, 2]) for count in (0.0, 50.0))
    assert alone < 0.3 and together == pytest.approx((2 + 50 * 0.7) / (12 + 50), abs=0.05), "2 of its own 12 samples, and 70% of all"


@settings(max_examples=4)
@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 5))
def test_order_names_and_units_do_not_matter_and_few_samples_do_no_harm(seed, samples, classes):
    generator = torch.Generator().manual_seed(seed)
    block, labels = torch.randn(samples, 3, generator=generator), torch.randint(0, classes, (samples,), generator=generator)
    found = score(Evidence(labels, classes, block=block))
    assert found.shape == (samples,) and bool((found.abs() <= noise_transition.SUREST).all())
    order, names = torch.randperm(samples, generator=generator), torch.randperm(classes, generator=generator)
    moved = {
        "order": (score(Evidence(labels[order], classes, block=block[order])), found[order]),
        "names": (score(Evidence(names[labels], classes, block=block)), found),
    }
    moved["units"] = (score(Evidence(labels, classes, block=100 * block)), found)
    moved["classes that nobody is of"] = (score(Evidence(labels, classes + 2, block=block)), found)
    for what, (then, before) in moved.items():
        assert float((torch.sigmoid(then) - torch.sigmoid(before)).abs().max()) < 0.02, what


def test_one_class_is_clean():
    assert float(score(Evidence(torch.zeros(5, dtype=torch.int64), 1, block=torch.randn(5, 2))).max()) == -noise_transition.SUREST


def leaning(drawn, seed=0, apart=9.0, classes=6, share=0.35):
    """Return evidence of a network that half knows wrong labels by heart: their features lie a part of the way from the true to the given class."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.arange(classes).repeat_interleave(250)
    wrong = torch.rand(len(true), generator=generator) < share
    given_labels = torch.where(wrong, (true + torch.randint(1, classes, (len(true),), generator=generator)) % classes, true)
    means = apart / math.sqrt(2) * torch.eye(classes, 12)
    block = means[true] + drawn * (means[given_labels] - means[true]) + torch.randn(len(true), 12, generator=generator)
    return Evidence(given_labels, classes, block=block), wrong


@pytest.mark.parametrize(("drawn", "found"), [(0.0, 0.99), (0.2, 0.95), (0.3, 0.7)])
def test_wrong_labels_are_found_though_features_lean_to_what_they_are_called(drawn, found):
    evidence, wrong = leaning(drawn)
    flagged = score(evidence) > 0
    assert float(flagged[wrong].float().mean()) > found and float(wrong[flagged].float().mean()) > 0.98


def test_the_likeliest_temperature_alone_takes_them_for_images_of_their_classes(monkeypatch):
    evidence, wrong = leaning(0.2)
    monkeypatch.setattr(noise_transition, "temperature_of_shape", lambda *anything: math.inf)
    assert float((score(evidence) > 0)[wrong].float().mean()) < 0.1


def of_shape(spread, sizes=(3000, 3000), apart=4.0, width=6):
    """Return distances by the identity to the means of Gaussian classes with a variance of `spread`, and what is of which class, (N, K)."""
    generator = torch.Generator().manual_seed(0)
    true = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    means = apart / math.sqrt(2) * torch.eye(len(sizes), width)
    block = means[true] + math.sqrt(spread) * torch.randn(len(true), width, generator=generator)
    return (block[:, None] - means).square().sum(dim=2), torch.eye(len(sizes), dtype=torch.float64)[true]


@pytest.mark.parametrize("spread", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("sizes", [(3000, 3000), (4000, 2000, 1000)])
def test_the_shape_of_gaussian_classes_is_their_variance(spread, sizes):
    distances, true = of_shape(spread, sizes)
    assert noise_transition.shape(true, distances) == pytest.approx(spread, rel=0.08)
    offset = torch.randn(len(true), 1, generator=torch.Generator().manual_seed(1))
    assert noise_transition.shape(true, distances + offset) == pytest.approx(noise_transition.shape(true, distances), rel=1e-4)


def test_classes_of_few_samples_have_no_shape():
    distances, true = of_shape(1.0, (500, 500, 9))
    assert noise_transition.shape(true, distances) == pytest.approx(noise_transition.shape(true[:1000, :2], distances[:1000, :2]), rel=1e-6)
    assert noise_transition.shape(true[-509:, 1:], distances[-509:, 1:]) == math.inf
    assert noise_transition.shape(true, torch.zeros_like(distances)) == math.inf, "nobody lies apart from anybody"


def test_classes_without_any_width_are_told_apart():
    block, labels = torch.eye(3).repeat_interleave(40, dim=0), torch.arange(3).repeat_interleave(40)
    labels[:5] = 1
    found = score(Evidence(labels, 3, block=block))
    assert bool(found.isfinite().all()) and torch.equal(found > 0, torch.arange(120) < 5)


def test_the_temperature_of_the_shape_is_found_among_wrong_labels():
    evidence, _ = draw([2000] * 4, 4.0, [(0, 1, 0.3), (1, 0, 0.3), (2, 3, 0.3)])
    discriminant = fitted_discriminant(evidence.block, evidence.given_labels, 4, Settings())
    found = candidates(discriminant, evidence.block, evidence.given_labels)
    assert noise_transition.temperature_of_shape(found, discriminant.relative(evidence.block), 50.0) == pytest.approx(1.0, abs=0.25)
