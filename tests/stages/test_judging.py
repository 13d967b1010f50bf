"""Was it worth it: the comparison with its intervals, and what a repair has to show before it is handed back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.data.images import Images
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.models.adopt import adopt
from fspmu.stages.judging import KINDS, RESAMPLES, Comparison, compare, evaluate, verdict

COUNTS = st.tuples(*[st.integers(0, 120)] * 4).filter(lambda counts: sum(counts) >= 20)


def answers(wrong_twice, gained, lost, right_twice):
    """Return before and after of so many images with each outcome."""
    counts = torch.tensor([wrong_twice, gained, lost, right_twice])
    before, after = (torch.tensor(bits).bool().repeat_interleave(counts) for bits in ([0, 0, 1, 1], [0, 1, 0, 1]))
    order = torch.randperm(len(before), generator=torch.Generator().manual_seed(int(counts.sum())))
    return before[order], after[order]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=15)
@given(COUNTS, st.integers(0, 1000))
def test_intervals_are_those_of_resampled_images(counts, seed):
    before, after = answers(*counts)
    found = compare(before, after, seeded(seed))
    rows = np.random.default_rng(seed).integers(0, len(before), (2000, len(before)))
    first, second = before.numpy()[rows].mean(1), after.numpy()[rows].mean(1)
    for interval, values in ((found.before_interval, first), (found.after_interval, second), (found.difference_interval, second - first)):
        width = float(values.std())
        assert np.allclose(interval, np.percentile(values, [2.5, 97.5]), atol=0.35 * width + 1 / len(before))
    assert (found.before, found.after, found.samples) == (pytest.approx(before.double().mean()), pytest.approx(after.double().mean()), len(before))
    assert found.difference == pytest.approx(found.after - found.before)


@settings(max_examples=25)
@given(st.tuples(*[st.integers(150, 900)] * 4))
def test_intervals_of_many_images_are_nearly_normal(counts):
    before, after = answers(*counts)
    found, total = compare(before, after, seeded()), len(before)
    for share, interval in ((found.before, found.before_interval), (found.after, found.after_interval)):
        width = 1.96 * (share * (1 - share) / total) ** 0.5
        assert interval == pytest.approx((share - width, share + width), abs=0.1 * width + 1 / total)
    apart = after.double() - before.double()
    width = 1.96 * float(apart.std(correction=0)) / total**0.5
    assert found.difference_interval == pytest.approx((found.difference - width, found.difference + width), abs=0.1 * width + 1 / total)


@settings(max_examples=25)
@given(COUNTS, st.integers(0, 1000))
def test_a_comparison_is_the_same_each_time_and_whatever_the_order(counts, seed):
    before, after = answers(*counts)
    found = compare(before, after, seeded(seed))
    assert found == compare(before, after, seeded(seed)) == compare(before.flip(0), after.flip(0), seeded(seed))
    for low, high in (found.before_interval, found.after_interval):
        assert 0 <= low <= high <= 1
    assert found.before_interval[0] <= found.before <= found.before_interval[1]
    mirrored = compare(after, before, seeded(seed))
    assert mirrored.difference == -found.difference


@pytest.mark.parametrize(
    ("counts", "before", "after"),
    [((0, 0, 0, 7), 1, 1), ((7, 0, 0, 0), 0, 0), ((0, 7, 0, 0), 0, 1), ((0, 0, 7, 0), 1, 0), ((0, 0, 0, 1), 1, 1), ((0, 1, 0, 0), 0, 1), ((1, 0, 0, 0), 0, 0)],
)
def test_what_is_the_same_for_all_has_no_width(counts, before, after):
    found = compare(*answers(*counts), seeded())
    assert found == Comparison(sum(counts), before, after, after - before, (before, before), (after, after), (after - before, after - before))


def test_both_models_meet_the_same_resample():
    before, after = answers(100, 0, 0, 100)
    found = compare(before, after, seeded())
    assert found.difference_interval == (0, 0) and found.before_interval == found.after_interval and found.before_interval[1] > 0.55
    assert RESAMPLES >= 1000


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 4)])
def test_other_images_cannot_be_compared(first, second):
    with pytest.raises(ValueError, match=f"not {first} and {second}"):
        compare(torch.ones(first, dtype=torch.bool), torch.ones(second, dtype=torch.bool), seeded())


@settings(max_examples=60)
@given(COUNTS)
def test_trusted_labels_ask_for_more_right_answers(counts):
    found = compare(*answers(*counts), seeded())
    kept, sentence = verdict(found, "given", 0.5)
    assert kept == (counts[1] > counts[2]) and KINDS["given"] in sentence
    assert f"{found.before:.2%} before, {found.after:.2%} after" in sentence and f"{found.samples:,} images" in sentence
    assert ("is handed back" in sentence) == (not kept)
    assert ("within what chance explains" in sentence) == (kept and found.difference_interval[0] <= 0)


@settings(max_examples=60)
@given(COUNTS, st.floats(0.1, 1))
def test_doubtful_labels_can_only_show_harm(counts, clean):
    found = compare(*answers(*counts), seeded())
    kept, sentence = verdict(found, "held out", clean)
    assert KINDS["held out"] in sentence and ("only labels you trust can tell" in sentence) == kept
    assert kept or found.after < found.before * clean, "no fall that forgetting explains is held against a repair"
    ruined = compare(before := torch.ones(sum(counts), dtype=torch.bool), ~before, seeded())
    kept, sentence = verdict(ruined, "held out", clean)
    assert not kept and "fell further than forgetting wrong labels explains" in sentence and "the model you gave is handed back" in sentence


def test_a_memorised_model_that_forgot_its_wrong_labels_has_done_no_harm():
    before = torch.ones(500, dtype=torch.bool)
    wrong = torch.arange(500) < 150
    assert verdict(compare(before, ~wrong, seeded()), "held out", 0.7)[0]
    assert not verdict(compare(before, ~wrong, seeded()), "held out", 0.95)[0]


def test_evaluate_counts_right_answers():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).train()
    pixels = torch.randint(0, 256, (30, 1, 2, 2), dtype=torch.uint8, generator=seeded())
    model = adopt(module, torch.zeros(2, 1, 2, 2), class_names=("a", "b"))
    images = Images(pixels, torch.arange(30) % 2, ("a", "b"), [str(row) for row in range(30)])
    images = images.prepared_as(type(images.preprocessing)((0.0,), (1.0,)))
    with torch.no_grad():
        expected = (module(pixels.float() / 255).argmax(1) == images.given_labels).double().mean()
    assert evaluate(model, images, run=(run := Run())) == pytest.approx(float(expected)) and "evaluation" in run.seconds and module.training
    with pytest.raises(InputError, match=r"the model knows the classes \[a, b\], the images have \[b, a\]"):
        evaluate(model, images.with_labels(images.given_labels, ("b", "a")), run=run)
