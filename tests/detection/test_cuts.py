"""What every cut promises: for any scores, whatever their unit, few or many, equal or not a number."""

import dataclasses
import math
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from fspmu.detection.cuts import CUTS, noise_rate, otsu, sign
from fspmu.detection.cuts.rule import check_signed, members_of_classes
from fspmu.errors import DetectionWarning, InputError, check_settings

pytestmark = pytest.mark.filterwarnings("ignore::fspmu.errors.DetectionWarning")

MONOTONE = [name for name in CUTS if name not in ("mixture", "mixture-reference")]
WITHIN_A_CLASS = ("per-class",)
MOVED = [name for name in CUTS if name not in ("mixture", "mixture-reference", "sign", "log-odds", "as-is")]
"""Cuts that do not mind where 0 is; noise-rate does where it goes by the mirror, and mixture is tried by itself, being slower."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cut(name, score, labels=None, seed=0, **changes):
    rule = CUTS[name]
    labels = torch.zeros(len(score), dtype=torch.int64) if labels is None else labels
    return rule.cut(score, labels, dataclasses.replace(rule.settings, **changes), seeded(seed)).clean


def margins(count=2000, rate=0.2, distance=8.0, seed=0):
    """Return margins of logistic shape, those of wrong labels mirrored, and which these are."""
    draw = np.random.default_rng(seed)
    wrong = draw.random(count) < rate
    score = draw.logistic(-distance / 2, 1, count)
    return torch.from_numpy(np.where(wrong, -score, score)), wrong


def losses(count=2000, rate=0.2, seed=0):
    draw = np.random.default_rng(seed)
    wrong = draw.random(count) < rate
    return torch.from_numpy(np.where(wrong, draw.gamma(6, 0.7, count), np.log1p(np.exp(draw.normal(-3, 1.8, count))))), wrong


def as_shares(name, score):
    return torch.sigmoid(score) if name == "as-is" else score


def flags(clean):
    return (clean <= 0.5).numpy()


@pytest.mark.parametrize("name", CUTS)
def test_contract(name):
    score, wrong = margins()
    score, labels = as_shares(name, score), torch.arange(len(score)) % 7
    kept = score.clone(), labels.clone()
    rule = CUTS[name]
    check_settings(rule.settings)
    found = [rule.cut(score, labels, rule.settings, seeded(4)) for _ in range(2)]
    assert torch.equal(score, kept[0]) and torch.equal(labels, kept[1])
    clean, parts = found[0]
    assert clean.shape == score.shape and clean.is_floating_point() and clean.min() >= 0 and clean.max() <= 1
    assert torch.equal(clean, found[1].clean) and parts == found[1].components
    assert parts == () or [part.label for part in parts] == ["clean", "wrong"]
    assert f1_score(wrong, flags(clean)) > 0.95
    half = rule.cut(score.half(), labels, rule.settings, seeded(4)).clean
    assert (flags(half) == flags(clean)).mean() > 0.98


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_cannot_be_ranked_is_refused(name, bad):
    with pytest.raises(InputError, match=f"score of sample 3 is {bad}.* another --detector"):
        cut(name, torch.tensor([0.1, 0.5, 0.9, bad, 0.2]))
    with pytest.raises(InputError, match="at least one sample"):
        cut(name, torch.zeros(0))


@pytest.mark.parametrize("name", [name for name in CUTS if name != "as-is"])
@pytest.mark.parametrize("value", [0.0, -3.7, 1e6])
@pytest.mark.parametrize("count", [1, 2, 60])
def test_equal_scores_say_nothing(name, value, count):
    with pytest.warns(DetectionWarning, match="equal"):
        assert torch.equal(cut(name, torch.full((count,), value)), torch.ones(count))


@settings(max_examples=40)
@given(
    st.sampled_from(list(CUTS)),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=6) | st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), min_size=1, max_size=60),
    st.integers(0, 3),
)
def test_any_few_scores_give_probabilities_that_never_rise(name, scores, classes):
    score = as_shares(name, torch.tensor(scores))
    labels = torch.arange(len(score)) * 7 % 5 * classes  # classes of 0 to 3 samples, with gaps between
    clean = cut(name, score, labels)
    assert clean.shape == score.shape and bool(torch.isfinite(clean).all()) and clean.min() >= 0 and clean.max() <= 1
    if name in MONOTONE:
        groups = members_of_classes(labels) if name in WITHIN_A_CLASS else [torch.arange(len(score))]
        for members in groups:
            ordered = clean[members][score[members].argsort(stable=True)]
            assert (ordered.diff() <= 0).all()


@settings(max_examples=20)
@given(
    st.sampled_from(MONOTONE),
    st.integers(2, 400),
    st.sampled_from([0.0, 0.02, 0.3, 0.5, 1.0]),
    st.sampled_from([2.0, 5.0, 9.0]),
    st.booleans(),
    st.integers(0, 9),
)
def test_a_higher_score_never_looks_cleaner(name, count, rate, distance, loss_like, seed):
    score, _ = losses(count, rate, seed) if loss_like else margins(count, rate, distance, seed)
    score, labels = as_shares(name, score), torch.arange(count) % 3
    clean = cut(name, score, labels)
    groups = members_of_classes(labels) if name in WITHIN_A_CLASS else [torch.arange(count)]
    for members in groups:
        assert (clean[members][score[members].argsort(stable=True)].diff() <= 0).all()


@settings(max_examples=14)
@given(
    st.sampled_from([*MOVED, "sign"]),
    st.floats(1e-3, 1e3),
    st.floats(-100, 100),
    st.booleans(),
    st.integers(0, 9),
)
def test_neither_unit_nor_zero_matters(name, scale, shift, loss_like, seed):
    score, _ = losses(240, 0.25, seed) if loss_like else margins(240, 0.25, 8, seed)
    changes = {"estimate": "mixture"} if name == "noise-rate" else {}
    shift = 0 if name == "sign" else shift * scale
    labels = torch.arange(240) % 3
    before, after = (cut(name, values, labels, **changes) for values in (score, score * scale + shift))
    np.testing.assert_allclose(after, before, atol=2e-3)


def test_neither_unit_nor_zero_matters_to_the_mixture():
    score, _ = losses(600, 0.25)
    np.testing.assert_allclose(cut("mixture", score * 37 - 5), cut("mixture", score), atol=2e-3)


def test_sign_by_hand():
    score = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])
    expected = 1 / (1 + np.exp(2 * score.numpy() / 2))  # the median distance from 0 is 2
    np.testing.assert_allclose(cut("sign", score), expected, rtol=1e-6)
    assert flags(cut("sign", score)).tolist() == [False, False, False, True, True]
    mostly_zero = torch.tensor([0.0] * 9 + [-1e-3, 5.0])
    assert (
        cut("sign", mostly_zero)[:9].tolist() == pytest.approx([0.5] * 9)
        and not flags(cut("sign", mostly_zero))[:9].any()
        and cut("sign", mostly_zero)[-1] < 0.5
    )


def test_log_odds_are_taken_at_their_word():
    score = torch.tensor([-1e-9, 0.0, 1e-9, math.log(3), -math.log(3), 30.0])
    clean = cut("log-odds", score)
    torch.testing.assert_close(clean, torch.tensor([0.5, 0.5, 0.5, 0.25, 0.75, 0.0]))
    assert (clean > 0.5).tolist() == [True, True, False, False, True, False], "what is at 0 does not look wrong"


def test_sign_is_refused_where_0_does_not_divide():
    with pytest.raises(InputError, match="--cut sign asks on which side of 0 .* detector 'gmm'; choose another --cut"):
        check_signed("sign", CUTS["sign"], "gmm", signed=False)
    check_signed("sign", CUTS["sign"], "feature-margin", signed=True)
    check_signed("otsu", CUTS["otsu"], "gmm", signed=False)
    assert [name for name, rule in CUTS.items() if rule.signed_only] == ["sign", "log-odds"] and sign.Settings() == CUTS["sign"].settings


def test_as_is_means_what_it_says():
    assert cut("as-is", torch.tensor([0.0, 0.25, 1.0])).tolist() == [1.0, 0.75, 0.0]
    assert cut("as-is", torch.ones(4)).tolist() == [0.0] * 4, "that all are wrong is no lack of words"
    for score in (torch.tensor([0.2, 3.25]), torch.tensor([0.2, -3.25])):
        with pytest.raises(InputError, match="as-is takes scores that are probabilities, but one is -?3.25; choose another --cut"):
            cut("as-is", score)


def textbook_otsu(values):
    """Return the best of all thresholds between two neighbouring values, tried one by one."""
    levels = np.unique(values)
    found = []
    for low, high in zip(levels, levels[1:], strict=False):
        below, above = values[values <= low], values[values >= high]
        found.append((len(below) * len(above) * (below.mean() - above.mean()) ** 2, (low + high) / 2))
    return max(found)[1]


@settings(max_examples=40)
@given(st.lists(st.floats(-50, 50).map(lambda x: round(x, 2)), min_size=2, max_size=40))
def test_otsu_is_the_textbook_threshold(scores):
    values = np.array(scores)
    if values.min() == values.max():
        return
    best, ours = textbook_otsu(values), otsu.otsu_threshold(torch.tensor(values))

    def variance(threshold):
        below = values < threshold
        return below.sum() * (~below).sum() * (values[below].mean() - values[~below].mean()) ** 2

    assert variance(ours) == pytest.approx(variance(best), rel=1e-9)
    clean = cut("otsu", torch.tensor(values))
    assert flags(clean).tolist() == (values >= ours).tolist()


def test_otsu_is_one_half_at_its_threshold_and_as_steep_as_its_groups_are_wide():
    score = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0], dtype=torch.float64)
    clean = cut("otsu", score)
    width = (2 / 3) / 10  # the variance within over the distance of the means
    np.testing.assert_allclose(clean, 1 / (1 + np.exp((score.numpy() - 6) / width)), rtol=1e-5)
    wider = torch.tensor([0.0, 2.0, 4.0, 5.5, 6.5, 8.0, 10.0, 12.0], dtype=torch.float64)
    assert flags(cut("otsu", wider)).tolist() == [False] * 4 + [True] * 4
    assert 0.3 < float(cut("otsu", wider)[4]) < 0.5 < float(cut("otsu", wider)[3]) < 0.7


def test_otsu_for_every_class():
    labels = torch.arange(400) % 2
    score = torch.cat([margins(200, 0.4, 12, 1)[0], margins(200, 0.4, 12, 2)[0]])
    labels = torch.cat([torch.zeros(200), torch.ones(200)]).long()
    moved = score + 40 * labels
    each, together = cut("otsu", moved, labels, per_class=True), cut("otsu", moved, labels)
    assert flags(each).tolist() == [*flags(cut("otsu", score[:200])), *flags(cut("otsu", score[200:]))]
    assert flags(together).tolist() == (labels == 1).tolist()
    few = torch.cat([torch.zeros(360), torch.ones(40)]).long()
    assert torch.equal(cut("otsu", moved, few, per_class=True, smallest=50)[360:], cut("otsu", moved)[360:]), "a class of 40 has the threshold of all"


@pytest.mark.parametrize("rate", [0.0, 0.013, 0.25, 0.5, 1.0])
def test_as_many_as_the_rate_says(rate):
    score, _ = margins(997)
    clean = cut("noise-rate", score, rate=rate)
    worst = round(rate * 997)
    assert flags(clean).sum() == worst
    assert set(score.argsort(descending=True)[:worst].tolist()) == set(flags(clean).nonzero()[0].tolist())


def test_equal_scores_stay_together_at_the_rate():
    score = torch.tensor([0.0] * 50 + [1.0] * 30 + [2.0] * 20)
    assert [int(flags(cut("noise-rate", score, rate=rate)).sum()) for rate in (0.01, 0.2, 0.3, 0.4, 0.5)] == [20, 20, 20, 50, 50]


def test_a_rate_that_is_none_is_refused():
    score, _ = margins(100)
    with pytest.raises(InputError, match="--rate is 1.5.*from 0 to 1"):
        cut("noise-rate", score, rate=1.5)
    with pytest.raises(InputError, match="--estimate mirror compares scores on both sides of 0, and these lie on one"):
        cut("noise-rate", score.abs() + 0.1, estimate="mirror")
    for name, changes, sentence in (
        ("noise-rate", {"estimate": "guess"}, "unknown --estimate 'guess'; known: auto, mirror, mixture"),
        ("beta", {"scale": "log"}, "unknown --scale 'log'; did you mean 'logistic'"),
        ("noise-rate", {"rate": -0.1}, "--rate is -0.1, but it must be a fraction"),
        ("per-class", {"separation": -1.0}, "--separation is -1.0, but it must be at least 0"),
    ):
        with pytest.raises(InputError, match=sentence):
            check_settings(dataclasses.replace(CUTS[name].settings, **changes))


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.1, 0.2, 0.45])
def test_the_rate_is_estimated(rate):
    score, wrong = margins(8000, rate, 5)
    assert abs(noise_rate.estimate_rate(score) - wrong.mean()) < 0.025
    if rate >= 0.1:
        score, wrong = losses(8000, rate)
        assert (score >= 0).all() and abs(noise_rate.estimate_rate(score) - wrong.mean()) < 0.03, "losses have one sign"
    apart, wrong = margins(8000, rate, 12)
    assert abs(noise_rate.estimate_rate(apart - 30, "mixture") - wrong.mean()) < 0.01
    if rate == 0:
        with pytest.warns(DetectionWarning, match="estimated as 0.* give --rate"):
            assert cut("noise-rate", losses(3000, 0)[0]).min() == 1


@pytest.mark.parametrize("name", [name for name in MONOTONE if name != "as-is"])
def test_a_million_scores_take_seconds(name):
    score, wrong = margins(10**6, 0.1, 8)
    labels = torch.arange(10**6) % 10
    start = time.process_time()
    clean = cut(name, score.float(), labels)
    assert time.process_time() - start < 10 and f1_score(wrong, flags(clean)) > 0.85


def test_the_warning_of_one_group_names_the_way_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DetectionWarning, match="--cut noise-rate --rate, or for margins --cut sign"):
            cut("per-class", margins(500, 0)[0])
