"""The fits behind the cuts against independent ones, and the question of one group or two."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score
from sklearn.mixture import GaussianMixture

from fspmu.detection.cuts import CUTS, beta, bounded
from fspmu.detection.cuts.groups import condense, fit_groups, log_density, log_odds
from fspmu.detection.cuts.one_or_two import ONE, TWO, _scale_of, bent, loosened, read_groups
from fspmu.detection.cuts.squash import squashed
from fspmu.errors import DetectionWarning

READ = {"separation": 2.0, "penalty": 6.0, "most": 160}


def tensor(values):
    return torch.from_numpy(np.asarray(values, dtype=np.float64))


def cut(name, score, labels=None, **changes):
    labels = torch.zeros(len(score), dtype=torch.int64) if labels is None else labels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DetectionWarning)
        return CUTS[name].cut(score, labels, type(CUTS[name].settings)(**changes), torch.Generator().manual_seed(0)).clean


def mixed(draw, count, share, distance, kind="normal"):
    """Return scores of clean and wrong labels, `distance` standard deviations apart, and which are wrong."""
    wrong = draw.random(count) < share
    clean, high = {
        "normal": lambda: (draw.normal(size=count), draw.normal(size=count)),
        "logistic": lambda: (draw.logistic(scale=0.55, size=count), draw.logistic(scale=0.55, size=count)),
        "skewed": lambda: (draw.gamma(2, 0.7, count) - 1, draw.normal(size=count)),
        "mirrored": lambda: (1 - draw.gamma(2, 0.7, count), draw.gamma(2, 0.7, count) - 1),
    }[kind]()
    return tensor(np.where(wrong, high + distance, clean)), wrong


@pytest.mark.parametrize("seed", range(3))
def test_two_gaussians_are_those_of_scikit_learn(seed):
    score, _ = mixed(np.random.default_rng(seed), 3000, 0.3, 3.5)
    points, counts = condense(score)
    groups = fit_groups(points[None], counts[None], 6, 500, 1e-7)
    start = int(groups.likelihood[0].argmax())
    column = score.numpy()[:, None]
    theirs = GaussianMixture(2, tol=1e-10, max_iter=3000, n_init=3, reg_covar=2.5e-3 * column.var(), random_state=0).fit(column)
    low, high = theirs.means_.ravel().argsort()
    spread, centre = float(groups.spread[0]), float(groups.centre[0])
    assert float(groups.share[0, start]) == pytest.approx(theirs.weights_[high], abs=2e-3)
    assert float(groups.low[0, start]) * spread + centre == pytest.approx(theirs.means_[low, 0], abs=5e-3)
    assert float(groups.high_variance[0, start]) * spread**2 == pytest.approx(theirs.covariances_[high].item(), rel=1e-2)
    assert float(groups.likelihood[0, start]) == pytest.approx(theirs.score(column) * 3000, abs=0.5)
    np.testing.assert_allclose(log_density(points[None], groups)[0, start], theirs.score_samples(points.numpy()[:, None]), atol=0.02)
    inner = column[(column > theirs.means_.min()) & (column < theirs.means_.max())]
    ours = torch.sigmoid(log_odds(tensor(inner), groups, 0, start))
    np.testing.assert_allclose(ours, theirs.predict_proba(inner[:, None])[:, high], atol=0.01)


def test_sets_are_fitted_apart_from_one_another():
    draw = np.random.default_rng(0)
    sets = [mixed(draw, 300, share, 5)[0].sort().values for share in (0.1, 0.3, 0.5)]
    ones = torch.ones(1, 300, dtype=torch.float64)
    together = fit_groups(torch.stack(sets), ones.expand(3, 300), 4, 100, 1e-6)
    for row, score in enumerate(sets):
        for both, alone in zip(together, fit_groups(score[None], ones, 4, 100, 1e-6), strict=True):
            torch.testing.assert_close(both[row], alone[0])


@settings(max_examples=20)
@given(st.integers(1, 4000), st.sampled_from([16, 160]), st.integers(0, 5))
def test_condensed_scores_keep_their_sum_and_their_ends(count, most, seed):
    score = tensor(np.random.default_rng(seed).standard_t(2, count))
    points, counts = condense(score, most)
    assert len(points) <= most and int(counts.sum()) == count and (counts > 0).all() and (points.diff() >= 0).all()
    assert float((points * counts).sum()) == pytest.approx(float(score.sum()), abs=1e-6 * count)
    if count > 1000 and most == 160:
        assert points[0] == score.min() and points[-1] == score.max() and counts.max() < count * 0.9


def test_no_point_bridges_a_gap():
    score = torch.cat([torch.linspace(0, 1, 5000), torch.linspace(9, 10, 5000)])
    points, _ = condense(score, 160)
    assert not ((points > 1.2) & (points < 8.8)).any()


@settings(max_examples=20)
@given(st.integers(0, 9), st.sampled_from(sorted({*ONE, *TWO})))
def test_bent_axes_rise_and_know_their_slope(seed, bend):
    points = tensor(np.random.default_rng(seed).gumbel(size=400)).sort().values[None]
    scale = _scale_of(points, torch.ones_like(points))
    inside = points[:, 20:-20].clone().requires_grad_(True)
    axis, slope = bent(inside, scale, bend)
    assert (axis.diff() > 0).all()
    (gradient,) = torch.autograd.grad(axis.sum(), inside)
    torch.testing.assert_close(gradient.log(), slope)


ONE_GROUP = {
    "normal": lambda draw, n: draw.normal(size=n),
    "logistic": lambda draw, n: draw.logistic(size=n),
    "laplace": lambda draw, n: draw.laplace(size=n),
    "student": lambda draw, n: draw.standard_t(4, n),
    "gumbel": lambda draw, n: draw.gumbel(size=n),
    "gumbel to the left": lambda draw, n: -draw.gumbel(size=n),
    "exponential": lambda draw, n: draw.exponential(size=n),
    "gamma": lambda draw, n: draw.gamma(2, size=n),
    "gamma to the left": lambda draw, n: -draw.gamma(2, size=n),
    "gamma with a pole": lambda draw, n: draw.gamma(0.5, size=n),
    "lognormal": lambda draw, n: draw.lognormal(0, 1, n),
    "lognormal with a long tail": lambda draw, n: draw.lognormal(0, 2, n),
    "loss": lambda draw, n: np.log1p(np.exp(draw.normal(-4, 2, n))),
    "uniform": lambda draw, n: draw.random(n),
    "zeros": lambda draw, n: np.where(draw.random(n) < 0.6, 0, draw.exponential(size=n)),
    "many at the top": lambda draw, n: np.where(draw.random(n) < 0.3, 3, 3 - draw.exponential(size=n)),
    "counts": lambda draw, n: draw.binomial(40, 0.2, n) / 40,
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) if place % 2 else kind for place, kind in enumerate(ONE_GROUP)])
def test_one_group_however_skewed_is_left_alone(kind):
    draw = np.random.default_rng(3)
    sizes = torch.tensor([40, 60, 500, 3000])
    score, labels = torch.cat([tensor(ONE_GROUP[kind](draw, int(count))) for count in sizes]), torch.repeat_interleave(torch.arange(4), sizes)
    flagged = (cut("per-class", score, labels) <= 0.5).double()
    assert max(float(flagged[labels == k].mean()) for k in range(4)) < 0.05


@pytest.mark.parametrize(
    ("kind", "share", "distance", "least"),
    [
        ("normal", 0.02, 6.5, 0.85),
        ("normal", 0.1, 4.5, 0.85),
        ("normal", 0.3, 4, 0.93),
        ("normal", 0.5, 3, 0.9),
        ("logistic", 0.1, 5, 0.85),
        ("logistic", 0.5, 4, 0.93),
        ("skewed", 0.1, 6, 0.85),
        ("skewed", 0.5, 4, 0.9),
        ("mirrored", 0.02, 6, 0.85),
        ("mirrored", 0.1, 4, 0.9),
        ("mirrored", 0.5, 2.5, 0.95),
    ],
)
def test_two_groups_are_found(kind, share, distance, least):
    draw = np.random.default_rng(5)
    found = [mixed(draw, 1500, share, distance, kind)]
    for (score, wrong), reading in zip(found, read_groups([score for score, _ in found], **READ), strict=True):
        assert reading is not None
        assert f1_score(wrong, reading.log_odds(score) > 0) > least and abs(reading.share - wrong.mean()) < 0.05


def test_a_value_that_many_share_is_spread_outwards():
    score = torch.cat([torch.zeros(60), torch.linspace(0.1, 4, 40)])
    loose = loosened(score)
    assert len(loose) == 100 and (loose.diff() >= 0).all() and torch.equal(loose[60:], score[60:].double())
    assert (loose[:60] < 0).all() and loose[0] == pytest.approx(-0.3 * 4)
    few_steps = loosened(torch.tensor([0.0, 1.0, 3.0]).repeat_interleave(30))
    assert few_steps[[0, 29]].tolist() == [-0.5, 0.5] and few_steps[[30, 59]].tolist() == [0.5, 2] and few_steps[[60, 89]].tolist() == [2, 4]
    for as_it_is in (torch.arange(50.0), torch.full((6,), 2.0)):
        assert torch.equal(loosened(as_it_is), as_it_is.double())


def test_a_class_without_wrong_labels_keeps_its_samples():
    """Its scores lie where those of wrong labels lie in other classes."""
    draw = np.random.default_rng(0)
    parts = [mixed(draw, 400, share, 6) for share in (0.3, 0.3, 0.4, 0.0, 0.02)]
    parts[3] = parts[3][0] + 5, parts[3][1]
    score, wrong = torch.cat([part for part, _ in parts]), np.concatenate([part for _, part in parts])
    labels = torch.repeat_interleave(torch.arange(5), 400)
    flagged = (cut("per-class", score, labels) <= 0.5).numpy()
    assert flagged[1200:1600].mean() < 0.02
    assert f1_score(wrong[:1200], flagged[:1200]) > 0.97 and f1_score(wrong[1600:], flagged[1600:]) > 0.8
    assert (cut("mixture", score, labels) <= 0.5)[1200:1600].double().mean() > 0.9, "one mixture for all takes it for wrong"


def test_small_classes_are_judged_by_the_others():
    draw = np.random.default_rng(1)
    large, small = mixed(draw, 2000, 0.3, 6), [mixed(draw, size, share, 6) for size, share in ((3, 0.4), (1, 0), (30, 0.5), (40, 0))]
    score, wrong = torch.cat([large[0], *(part for part, _ in small)]), np.concatenate([large[1], *(part for _, part in small)])
    labels = torch.repeat_interleave(torch.tensor([9, 1, 4, 0, 6]), torch.tensor([2000, 3, 1, 30, 40]))
    flagged = (cut("per-class", score, labels) <= 0.5).numpy()
    assert (flagged[2000:] == wrong[2000:]).mean() > 0.95
    many = torch.arange(3000) % 100  # no class is large enough to say anything by itself
    score, wrong = mixed(draw, 3000, 0.2, 6)
    assert f1_score(wrong, (cut("per-class", score, many) <= 0.5).numpy()) > 0.95


def test_classes_are_cut_alike_whatever_they_are_called_and_however_ordered():
    draw = np.random.default_rng(2)
    score, labels = mixed(draw, 1200, 0.3, 5)[0], torch.arange(1200) % 3
    clean = cut("per-class", score, labels)
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cut("per-class", score[order], torch.tensor([7, 2, 11])[labels][order]), clean[order])


def em_by_scipy(values, start, rounds):
    """Return w, a0, b0, a1, b1 by expectation and moments, written once more with scipy's own density."""
    high = start.astype(float)
    for _ in range(rounds):
        found = [high.mean()]
        for weight in (1 - high, high):
            mean = np.average(values, weights=weight)
            k = mean * (1 - mean) / np.average((values - mean) ** 2, weights=weight) - 1
            found += [mean * k, (1 - mean) * k]
        below, above = (1 - found[0]) * stats.beta.pdf(values, *found[1:3]), found[0] * stats.beta.pdf(values, *found[3:])
        high = above / (below + above)
    return found, high


@pytest.mark.parametrize("shapes", [(2, 8, 7, 3), (1, 12, 4, 4), (5, 9, 12, 2)])
def test_betas_are_those_of_scipy(shapes):
    draw = np.random.default_rng(0)
    wrong = draw.random(1200) < 0.35
    values = np.clip(np.where(wrong, draw.beta(*shapes[2:], 1200), draw.beta(*shapes[:2], 1200)), 1e-3, 1 - 1e-3)
    found = beta.fit_betas(*condense(tensor(values)), beta.Settings(starts=3, tolerance=1e-9, max_iterations=600))
    expected, high = em_by_scipy(values, values > np.quantile(values, 0.65), 400)
    np.testing.assert_allclose(found, expected, rtol=0.02)
    between = (values > shapes[0] / sum(shapes[:2])) & (values < shapes[2] / sum(shapes[2:]))
    np.testing.assert_allclose(torch.sigmoid(beta.log_odds(tensor(values), found))[between], high[between], atol=0.01)


@pytest.mark.parametrize("found", [(0.3, 2, 9, 1, 1), (0.3, 9, 30, 6, 2), (0.3, 1.1, 9, 40, 20), (0.3, 2, 8, 8, 2)])
def test_beta_odds_are_held_beyond_their_turning_point(found):
    unit = torch.linspace(0.01, 0.99, 500, dtype=torch.float64)
    shapes = torch.tensor(found, dtype=torch.float64)
    ours = beta.log_odds(unit, shapes).numpy()
    raw = np.log(found[0]) + stats.beta.logpdf(unit, *found[3:]) - np.log(1 - found[0]) - stats.beta.logpdf(unit, *found[1:3])
    assert (np.diff(ours) >= 0).all()
    held = ~np.isclose(ours, raw)
    assert held.any() == (np.diff(raw) < 0).any()
    assert np.allclose(ours[held], raw.min() if held[0] else raw.max(), atol=0.01), "held at the turning point"


def test_linear_betas_find_few_wrong_labels_among_losses():
    draw = np.random.default_rng(0)
    wrong = draw.random(6000) < 0.1
    score = tensor(np.where(wrong, draw.gamma(6, 0.7, 6000), np.log1p(np.exp(draw.normal(-3, 1.8, 6000)))))
    assert f1_score(wrong, cut("beta", score, scale="linear") <= 0.5) > 0.7 > f1_score(wrong, cut("beta", score) <= 0.5)


def test_a_few_huge_scores_do_not_spoil_a_bounded_mixture():
    draw = np.random.default_rng(0)
    score, wrong = mixed(draw, 4000, 0.2, 5)
    score[wrong.nonzero()[0][:4]] = 1e4
    assert f1_score(wrong, cut("bounded-mixture", score) <= 0.5) > 0.97
    assert f1_score(wrong, cut("mixture", score) <= 0.5) < 0.5
    with pytest.warns(DetectionWarning, match="bounded scores do not form two groups"):
        bounded.cut(tensor(draw.normal(size=2000)), torch.zeros(2000, dtype=torch.int64), bounded.Settings(), torch.Generator())


def test_squashed_by_hand():
    score = torch.tensor([-3.0, -1.0, 0.0, 1.0, 100.0])  # median 0, median absolute deviation 1
    expected = 1 / (1 + np.exp(-score.numpy() / (2 * 1.4826)))
    np.testing.assert_allclose(squashed(score, 2.0), expected, rtol=1e-6)
    mostly_equal = squashed(torch.tensor([1.0] * 9 + [3.0]), 1.0)
    assert mostly_equal[0] == 0.5 and 0.5 < mostly_equal[-1] < 1
