"""The cuts mixture and mixture-reference against scikit-learn's own mixture, and what they remark."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from fspmu.detection.cuts import CUTS, mixture
from fspmu.errors import DetectionWarning

MIXTURES = ("mixture", "mixture-reference")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def two_groups(seed=0, high=6.0):
    draw = np.random.default_rng(seed)
    return np.concatenate([draw.normal(0.5, 0.2, 300), draw.normal(high, 0.8, 150)])


def cut(name, values, seed=0, **changes):
    rule = CUTS[name]
    return rule.cut(values, torch.zeros(len(values), dtype=torch.int64), dataclasses.replace(rule.settings, **changes), seeded(seed)).clean


@pytest.mark.parametrize("seed", range(3))
def test_two_clear_groups_are_found(seed):
    values = two_groups(seed)
    scaled = ((values - values.min()) / np.ptp(values))[:, None]
    theirs = GaussianMixture(2, reg_covar=5e-4, max_iter=500, tol=1e-8, n_init=5, random_state=0).fit(scaled)
    expected = theirs.predict_proba(scaled)[:, theirs.means_.argmin()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DetectionWarning)  # ten rounds may fall short of convergence; not the point here
        clean = cut("mixture", torch.tensor(values), seed)
    np.testing.assert_allclose(clean, expected, atol=0.02)
    assert ((clean > 0.5).numpy() == (np.arange(450) < 300)).all()


def test_mixture_reference_is_the_published_fit():
    values = two_groups()
    theirs = GaussianMixture(n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(values[:, None])
    expected = theirs.predict_proba(values[:, None])[:, theirs.means_.argmin()]
    for seed in (0, 1):  # the generator has no say
        clean = cut("mixture-reference", torch.tensor(values), seed)
        np.testing.assert_allclose(clean, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("value", [0.0, 3.7, 1e6])
def test_equal_losses_say_nothing(name, value):
    with pytest.warns(DetectionWarning, match="equal"):
        clean = cut(name, torch.full((20,), value))
    assert torch.equal(clean, torch.ones(20))


@pytest.mark.parametrize("name", MIXTURES)
def test_one_group_is_said_to_be_one(name):
    values = torch.tensor(np.random.default_rng(0).normal(2, 0.3, 500))
    with pytest.warns(DetectionWarning, match="do not form two groups"):
        cut(name, values)


def test_two_clear_groups_need_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut("mixture", torch.tensor(two_groups()))


def test_a_fit_cut_short_is_said():
    with pytest.warns(DetectionWarning, match="not converged after 1 rounds"):
        cut("mixture", torch.tensor(two_groups(high=1.5)), max_iterations=1, tolerance=1e-12, starts=1)


def test_separation_by_hand():
    # two unit Gaussians two apart: sqrt(2) * 2 / sqrt(1 + 1) = 2, the line between one group and two
    assert mixture.separation(np.array([0.0, 2.0]), np.array([1.0, 1.0])) == pytest.approx(2)
    assert mixture.separation(np.array([5.0, 2.0]), np.array([4.0, 0.5])) == pytest.approx(math.sqrt(2) * 3 / math.sqrt(4.5))
