import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from fspmu.detection import discriminant, feature_margin
from fspmu.detection.depth import choose_depth, separation
from fspmu.detection.discriminant import class_sums, estimate, fitted_discriminant, suitable_shrinkage
from fspmu.detection.evidence import Evidence
from fspmu.detection.feature_margin import Settings
from fspmu.errors import InputError

PLAIN = Settings(refinements=0, shrinkage=0.0, prior_samples=0.0)


def cloud(samples=600, classes=4, width=6, seed=0, wrong=0.0, distance=3.0):
    """Return features (N, D) of correlated Gaussian classes, given labels of which a share is wrong, and true labels."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(0, classes, (samples,), generator=generator)
    mixing = torch.eye(width) + 0.3 * torch.randn(width, width, generator=generator)
    means = distance * torch.randn(classes, width, generator=generator) / width**0.5
    features = (means[true] + torch.randn(samples, width, generator=generator)) @ mixing
    moved = torch.rand(samples, generator=generator) < wrong
    shift = torch.randint(1, classes, (samples,), generator=generator)
    return features, torch.where(moved, (true + shift) % classes, true), true


def score(features, given_labels, classes, asked=None):
    return feature_margin.score(Evidence(given_labels, classes, block=features), asked or Settings(), torch.Generator())


def test_two_gaussians_have_the_known_discriminant():
    """Means 0 and 4 and variance 4: d_0 - d_1 = (x^2 - (x - 4)^2) / 4 = 2 x - 4."""
    noise = 2 * torch.tensor([-1.0, 1.0]).repeat(1000)[:, None]
    features, labels = torch.cat([noise, noise + 4]), torch.arange(2).repeat_interleave(2000)
    found = fitted_discriminant(features, labels, 2, PLAIN)
    places = torch.tensor([[-2.0], [2.0], [5.0]])
    zeros, ones = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    torch.testing.assert_close(found.margins(places, zeros), torch.tensor([-8.0, 0.0, 6.0]), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found.margins(places, ones), torch.tensor([8.0, 0.0, -6.0]), rtol=2e-3, atol=2e-3)
    assert found.predict(places).tolist()[::2] == [0, 1]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
def test_it_is_sklearns_discriminant(share):
    features, labels, _ = cloud(wrong=0.2)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=share, priors=[0.25] * 4, store_covariance=True)
    theirs.priors = torch.bincount(labels).numpy() / len(labels)  # which it weighs the covariances of the classes by
    theirs.fit(features.numpy(), labels.numpy())
    ours = fitted_discriminant(features, labels, 4, Settings(refinements=0, shrinkage=share, prior_samples=0.0))
    np.testing.assert_allclose(ours.means.numpy(), theirs.means_, rtol=1e-5, atol=1e-5)
    within = theirs.covariance_ * len(labels) / (len(labels) - 4)
    np.testing.assert_allclose(torch.linalg.inv(ours.precision).numpy(), within, rtol=1e-4, atol=1e-4)
    away = features.numpy()[:, None] - theirs.means_
    distances = np.einsum("nkd,de,nke->nk", away, np.linalg.inv(within), away)
    own = np.eye(4, dtype=bool)[labels.numpy()]
    expected = distances[own] - np.where(own, np.inf, distances).min(axis=1)
    np.testing.assert_allclose(ours.margins(features, labels).numpy(), expected, rtol=2e-3, atol=2e-3)
    decisions = theirs.decision_function(features.numpy()) - np.log(theirs.priors)
    assert (ours.predict(features).numpy() == decisions.argmax(axis=1)).mean() > 0.998


@pytest.mark.parametrize(("samples", "width", "share"), [(1000, 10, 0.3), (30, 96, 96 / 126), (96, 96, 0.5)])
def test_the_fewer_samples_for_each_feature_the_rounder_the_covariance(samples, width, share):
    features, labels, _ = cloud(samples, 3, width)
    assert suitable_shrinkage(samples, width) == pytest.approx(share)
    sums = class_sums(features, labels, 3)
    torch.testing.assert_close(estimate(sums, Settings()).precision, estimate(sums, Settings(shrinkage=share)).precision)


@pytest.mark.parametrize("seed", range(5))
def test_a_few_wrong_labels_among_few_images_are_found(seed):
    """With more features than images a discriminant can give every image its own label, however wrong: then it finds nothing."""
    features, given, true = cloud(30, 3, 96, seed, distance=25.0)
    given[:3] = (true[:3] + 1) % 3
    assert (score(features, given, 3) > 0).nonzero().flatten().tolist() == [0, 1, 2]
    learned = score(features, given, 3, Settings(shrinkage=0.01))
    assert int((learned > 0).sum()) < 3


def test_it_finds_wrong_labels_and_refinement_helps():
    features, labels, true = cloud(2000, wrong=0.45, distance=4.0)
    wrong = (labels != true).numpy()
    once, refined = (roc_auc_score(wrong, score(features, labels, 4, Settings(refinements=rounds))) for rounds in (0, 3))
    assert refined > once > 0.85
    found = score(features, labels, 4) > 0
    assert (found.numpy() == wrong).mean() > 0.85


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(1, 60), st.integers(2, 5))
def test_order_of_samples_names_of_classes_and_scale_do_not_matter(seed, samples, classes):
    features, labels, _ = cloud(samples, classes, 3, seed, 0.3)
    ours = score(features, labels, classes, Settings(refinements=1))
    generator = torch.Generator().manual_seed(seed)
    order, names = torch.randperm(samples, generator=generator), torch.randperm(classes, generator=generator)
    assert bool(ours.isfinite().all())
    torch.testing.assert_close(score(features[order], labels[order], classes, Settings(refinements=1)), ours[order], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(score(features, names[labels], classes, Settings(refinements=1)), ours, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(score(100 * features + 7, labels, classes, Settings(refinements=1)), ours, rtol=1e-2, atol=1e-2)


def test_chunks_change_nothing_and_their_sums_add_up(monkeypatch):
    features, labels, _ = cloud(500, wrong=0.3)
    whole = score(features, labels, 4)
    parts = [class_sums(features[rows], labels[rows], 4) for rows in (slice(0, 130), slice(130, 131), slice(131, 500))]
    added = parts[0] + parts[1] + parts[2]
    for mine, all_of_it in zip(vars(added).values(), vars(class_sums(features, labels, 4)).values(), strict=True):
        torch.testing.assert_close(mine, all_of_it)
    monkeypatch.setattr(discriminant, "CHUNK", 7)
    torch.testing.assert_close(score(features, labels, 4), whole, rtol=1e-4, atol=1e-4)


def test_half_precision_is_enough():
    features, labels, _ = cloud(1000, wrong=0.3)
    features = features + 5  # as pooled features are: not centred
    exact, rough = score(features, labels, 4), score(features.half(), labels, 4)
    assert (exact - rough).abs().max() < 0.02 * exact.std()


def test_a_class_of_one_or_none_attracts_nobody():
    features, labels, _ = cloud(400, 4, 6)
    alone = torch.cat([features, features.mean(dim=0, keepdim=True)])
    given_labels = torch.cat([labels, torch.tensor([4])])
    plain, beside = score(features, labels, 4), score(alone, given_labels, 7)
    assert bool(beside.isfinite().all())
    assert ((plain > 0) == (beside[:-1] > 0)).float().mean() > 0.98  # its sample moves the covariance a little
    assert set(fitted_discriminant(alone, given_labels, 7, Settings()).predict(features).tolist()) <= set(range(4))


def test_a_small_class_keeps_near_the_mean_of_all():
    features, labels, _ = cloud(400, 2, 3)
    given_labels = torch.where(torch.arange(400) < 3, 2, labels)
    means = {count: fitted_discriminant(features, given_labels, 3, Settings(refinements=0, prior_samples=count)).means[2] for count in (0.0, 3.0, 1e9)}
    own, everybody = features[:3].double().mean(dim=0), features.double().mean(dim=0)
    torch.testing.assert_close(means[0.0], own)
    torch.testing.assert_close(means[3.0], (own + everybody) / 2)
    torch.testing.assert_close(means[1e9], everybody, rtol=1e-4, atol=1e-4)


def test_a_class_whose_labels_all_look_wrong_keeps_its_mean():
    features, labels, _ = cloud(600, 3, 4, distance=8.0)
    stray = torch.where(torch.arange(600) % 20 == 0, 3, labels)  # a label that only samples of all other classes bear
    before, after = (fitted_discriminant(features, stray, 4, Settings(refinements=rounds, refine_by="masks")) for rounds in (0, 1))
    lost = before.margins(features, stray)[stray == 3]
    assert len(lost) > 3 and bool((lost > 0).all())
    torch.testing.assert_close(after.means[3], before.means[3])
    assert bool(after.rivals[3]) and not torch.equal(after.means[0], before.means[0])
    weighted = fitted_discriminant(features, stray, 4, Settings())
    assert bool(weighted.rivals[3]) and bool((weighted.margins(features, stray)[stray == 3] > 0).all()), "what looks wrong counts for little, and stays wrong"


def test_weights_of_a_refinement_are_repetitions():
    features, labels, _ = cloud(300, 4, 3)
    times = torch.arange(300) % 3
    torch.testing.assert_close(
        vars(class_sums(features, labels, 4, times)), vars(class_sums(features.repeat_interleave(times, 0), labels.repeat_interleave(times), 4))
    )


@pytest.mark.parametrize(
    ("features", "labels", "classes"),
    [
        (torch.ones(5, 3), torch.tensor([0, 0, 1, 1, 1]), 2),
        (torch.full((7, 3), 0.1), torch.tensor([0, 0, 1, 1, 1, 2, 2]), 3),
        (torch.zeros(4, 2), torch.tensor([1, 1, 1, 1]), 3),
        (torch.randn(1, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0]), 1),
        (torch.randn(2, 500, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1]), 2),
        (torch.tensor([[0.0, 1.0]] * 3 + [[0.0, 2.0]] * 3), torch.tensor([0, 0, 0, 1, 1, 1]), 2),
    ],
    ids=["all alike", "all alike but for rounding", "one class", "one sample", "a sample for each class", "a dead feature, no spread"],
)
@pytest.mark.parametrize("share", [None, 0.0, 0.3])
def test_degenerate_features_give_finite_scores(features, labels, classes, share):
    found = score(features, labels, classes, Settings(shrinkage=share))
    assert found.shape == labels.shape and bool(found.isfinite().all())
    assert bool((found <= 1e-6).all())  # nothing here looks wrong


def test_features_that_cannot_be_used_are_named():
    with pytest.raises(InputError, match="not finite on its own training images"):
        score(torch.tensor([[1.0], [torch.inf]]), torch.tensor([0, 1]), 2)
    with pytest.raises(InputError, match="at least one image"):
        score(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), 2)
    with pytest.raises(InputError, match="--shrinkage is 2"):
        score(torch.ones(2, 1), torch.tensor([0, 1]), 2, Settings(shrinkage=2.0))


def stack(seed, memorised=(0.0, 0.0, 0.6, 1.0), blurred=(6.0, 2.0, 0.0, 0.0)):
    """Return what a network that learned by heart has at four depths, for training and held-out images, with their given and the true training labels.

    Early depths are blurred; at late ones a training image lies where its GIVEN label belongs, and a held-out one nowhere better than at chance.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randint(0, 4, (count,), generator=generator)

    true = draw(1600)
    labels = torch.where(torch.rand(1600, generator=generator) < 0.3, draw(1600), true)
    means = 3 * torch.eye(4)
    depths = []
    for by_heart, blur in zip(memorised, blurred, strict=True):
        learned = torch.cat([labels[:1000], draw(600)])
        place = torch.where((torch.rand(1600, generator=generator) < by_heart)[:, None], means[learned], means[true])
        depths.append(place + (1 + blur) ** 0.5 * torch.randn(1600, 4, generator=generator))
    return [depth[:1000] for depth in depths], labels[:1000], [depth[1000:] for depth in depths], labels[1000:], true[:1000]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_depth_that_tells_unseen_labels_is_the_depth_that_finds_wrong_ones(seed):
    train, labels, held, held_labels, true = stack(seed)
    quality = [roc_auc_score(labels != true, score(features, labels, 4)) for features in train]
    best = int(np.argmax(quality))
    found = choose_depth(train, labels, held, held_labels, 4)
    assert (found.index, found.how) == (best, "held-out") and 0 < best < 3
    assert found.accuracies[best] == pytest.approx(max(found.accuracies), abs=0.02)
    assert len(found.accuracies) == 4 and found.accuracies[3] < 0.45
    wanted = (fitted_discriminant(train[1], labels, 4, Settings()).predict(held[1]) == held_labels).float().mean()
    assert found.accuracies[1] == pytest.approx(float(wanted))


@pytest.mark.parametrize(("blurred", "chosen"), [((6.0, 4.0, 2.0, 0.0), 3), ((0.0, 2.0, 4.0, 6.0), 0)])
def test_without_unseen_images_the_depth_with_two_groups_is_chosen(blurred, chosen):
    for seed in range(3):
        train, labels, *_ = stack(seed, memorised=(0.0,) * 4, blurred=blurred)
        found = choose_depth(train, labels, None, None, 4)
        assert (found.index, found.how) == (chosen, "separation")
    train, labels, *_ = stack(0)
    assert choose_depth(train, labels, [features[:0] for features in train], labels[:0], 4).how == "separation"


def test_without_labels_known_by_heart_the_last_of_the_depths_that_are_about_as_clear_is_chosen():
    train, labels, *_ = stack(0, memorised=(0.0,) * 4, blurred=(6.0, 0.0, 0.1, 6.0))
    gaps = choose_depth(train, labels, None, None, 4).accuracies
    assert gaps[1] > gaps[2] > 0.9 * gaps[1] > gaps[3]
    assert [choose_depth(train, labels, None, None, 4, agreement).index for agreement in (0.5, 0.89, 0.9, 1.0)] == [2, 2, 1, 1]


def test_of_equal_depths_the_last_is_chosen():
    train, labels, held, held_labels, _ = stack(0)
    for unseen in ((held[1:2] * 3, held_labels), (None, None)):
        assert choose_depth(train[1:2] * 3, labels, *unseen, 4).index == 2
    with pytest.raises(InputError, match="no depth"):
        choose_depth([], labels, None, None, 4)


def test_separation_is_that_of_the_two_sides_of_zero():
    left, right = torch.tensor([-5.0, -3.0] * 500), torch.tensor([1.0, 3.0] * 500)
    assert separation(torch.cat([left, right])) == pytest.approx(6.0 / (2 * math.sqrt(2 / math.pi) / math.sqrt(1 - 2 / math.pi)), rel=1e-2)
    assert separation(torch.cat([left, right[:1]])) == 0.0  # everything learned by heart
    assert separation(torch.cat([left, torch.zeros(0)])) == 0.0 and separation(torch.zeros(3)) == 0.0
    assert separation(torch.tensor([-1.0, -1.0, 1.0, 1.0])) == 1e3, "a number that JSON knows"


def test_one_gaussian_is_no_two_groups_wherever_it_is_cut():
    drawn = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for share in (0.5, 0.15, 0.022, 0.0107):
        assert separation(drawn - drawn.quantile(1 - share)) == pytest.approx(1, rel=0.02)
    apart = torch.cat([drawn[:100_000] * 0.7 - 1, drawn[100_000:] * 0.7 + 1])  # AUC .98
    assert separation(apart) > 1.2 > 1.05 > separation(drawn - drawn.quantile(0.98)), "though the parts of the latter lie further apart"


def test_the_benchmark_measures_the_score(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    benchmark = importlib.import_module("discriminants")
    del sys.modules["discriminants"]
    for name in ("feature-margin", "noise-transition"):
        benchmark.main(["--detector", name, "--samples", "3000", "--features", "16", "--classes", "5", "--json"])
        found = json.loads(capsys.readouterr().out)
        assert found["seconds"] > 0 and found["peak_bytes"] >= found["ready_bytes"] > 0 and found["judged_rightly"] > 0.95
    benchmark.main(["--samples", "300", "--features", "4", "--classes", "3"])
    assert capsys.readouterr().out.startswith("feature-margin: N = 300, D = 4, K = 3, threads")
