import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fspmu.detection import combined, noise_transition
from fspmu.detection.combined import Settings, join
from fspmu.detection.evidence import Evidence


def draw(samples=1500, classes=4, seed=0, by_class=False):
    """Return evidence of which each part knows something else, and which labels are wrong: with `by_class` only the labels of some classes are.

    Views and history take half of the classes for hard; features do not.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    true = torch.randint(0, classes, (samples,), generator=generator)
    moved = torch.rand(samples, generator=generator) < (torch.where(true % 2 == 0, 0.5, 0.0) if by_class else 0.3)
    labels = torch.where(moved, (true + 1) % classes, true)
    agrees, hard = torch.where(moved, -1.0, 1.0), 1.5 * (labels % 2 == 0)
    block = 3 * torch.eye(classes)[true] + 1.5 * noise(samples, classes)
    views = agrees - hard + 1.2 * noise(samples)
    history = agrees - hard + noise(samples) + noise(20, samples)
    return Evidence(labels, classes, block=block, view_margins=views, history=history), moved


def score(evidence, asked=None):
    return combined.score(evidence, asked or Settings(), torch.Generator())


def without(evidence, **parts):
    return Evidence(evidence.given_labels, evidence.num_classes, **{"block": evidence.block, "view_margins": evidence.view_margins} | parts)


@pytest.mark.parametrize("by_class", [False, True])
def test_together_they_find_more_than_features_alone(by_class):
    for seed in range(3):
        evidence, wrong = draw(seed=seed, by_class=by_class)
        alone = roc_auc_score(wrong, noise_transition.score(evidence, Settings(), torch.Generator()))
        by_views, by_history = (roc_auc_score(wrong, score(parts)) for parts in (without(evidence), evidence))
        assert by_history > by_views > alone + 0.005


def test_views_count_where_there_is_no_history():
    evidence, _ = draw()
    other = without(evidence, view_margins=-evidence.view_margins)
    assert not torch.equal(score(other), score(without(evidence)))
    assert torch.equal(score(without(other, view_margins=other.view_margins, history=evidence.history)), score(evidence))


def test_hard_classes_are_not_taken_for_mislabelled_ones():
    evidence, wrong = draw(by_class=True)
    raw = -evidence.view_margins
    plain = noise_transition.score(evidence, Settings(), torch.Generator()) + 4 * raw / raw.std()
    assert roc_auc_score(wrong, score(without(evidence), Settings(views_count=4.0))) > roc_auc_score(wrong, plain) + 0.01


def test_zero_divides():
    evidence, wrong = draw()
    for parts in (evidence, without(evidence)):
        assert ((score(parts) > 0) == wrong).float().mean() > 0.85


def test_what_is_required_suffices_and_is_required():
    evidence, _ = draw(50)
    assert combined.NEEDS == {"block", "view_margins"} and combined.OPTIONAL == {"history"}
    assert not torch.equal(score(without(evidence)), score(evidence))
    for name in combined.NEEDS:
        with pytest.raises(LookupError, match=name):
            score(without(evidence, **{name: None}))


def test_a_part_of_outliers_does_not_rule():
    evidence, wrong = draw()
    views = evidence.view_margins.clone()
    views[::50] *= 1000
    honest, upset = (roc_auc_score(wrong, score(without(evidence, view_margins=margins))) for margins in (evidence.view_margins, views))
    assert upset > honest - 0.03


def test_a_deviation_counts_for_three_at_most():
    labels = torch.zeros(101, dtype=torch.int64)
    other = torch.zeros(101)
    other[0] = 1e6  # ten standard deviations of this part
    squashed = join(torch.zeros(101), other, labels, 1, 2.0)
    assert float(squashed[0]) == pytest.approx(2 * 3 * math.tanh(10 / 3), abs=0.05)


def test_the_features_set_the_level_of_a_class_and_the_others_only_the_order_within():
    leading, labels = torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([0, 0, 1, 1])
    other = torch.tensor([5.0, 4.0, -3.0, -3.0])
    found = join(leading, other, labels, 2, 2.0)
    torch.testing.assert_close(combined.class_means(found, labels, 2), combined.class_means(leading, labels, 2))
    assert found[0] > found[1]  # the other part is the clearer one here
    torch.testing.assert_close(join(leading, other + 7 * labels, labels, 2, 2.0), found)  # a class as a whole says nothing


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 5))
def test_order_and_names_do_not_matter_and_few_samples_do_no_harm(seed, samples, classes):
    generator = torch.Generator().manual_seed(seed)
    leading, other = torch.randn(2, samples, generator=generator)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    found = join(leading, other, labels, classes, 2.0)
    order, names = torch.randperm(samples, generator=generator), torch.randperm(classes, generator=generator)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(join(leading[order], other[order], labels[order], classes, 2.0), found[order])
    torch.testing.assert_close(join(leading, other, names[labels], classes, 2.0), found)
    torch.testing.assert_close(join(leading, other / 10, labels, classes, 2.0), found, rtol=1e-4, atol=1e-4)  # units are no matter


def test_what_says_nothing_is_left_out():
    leading, labels = torch.randn(30, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    for same in (torch.full((30,), 4.0), 2.0 * labels):
        assert torch.equal(join(leading, same, labels, 3, 2.0), leading)
