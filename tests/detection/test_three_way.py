"""Two thresholds: what is learned from, what is forgotten, and what is neither."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.detection.splitting import SplitSettings, forget_memorised, split_at
from fspmu.errors import InputError

CLASSES = 3

shares = st.floats(0, 1, width=32)
samples = st.lists(st.tuples(shares, st.integers(0, CLASSES - 1)), min_size=1, max_size=40)


def split_of(clean, labels, **changes):
    clean = torch.tensor(clean)
    return split_at(clean, 1 - clean, torch.tensor(labels), CLASSES, SplitSettings(**{"class_floor": 0, **changes}))


@given(samples, shares, st.floats(0, 0.5, exclude_max=True))
@settings(max_examples=60)
def test_every_label_is_in_one_of_three_parts(drawn, threshold, margin):
    clean, labels = map(list, zip(*drawn, strict=True))
    split = split_of(clean, labels, threshold=threshold, margin=margin)
    assert not bool((split.retain & split.forget).any())
    values = torch.tensor(clean).double()
    high, low = (torch.tensor(threshold + sign * margin).float().double() for sign in (1, -1))
    assert bool((values[split.retain] >= high).all()) and bool((values[split.forget] <= low).all())
    neither = ~split.retain & ~split.forget
    assert bool(((values[neither] >= low) & (values[neither] <= high)).all())
    assert split.counts["retain"] + split.counts["forget"] + int(neither.sum()) == len(clean)


@given(samples, shares, st.integers(0, 3))
@settings(max_examples=40)
def test_no_margin_is_the_one_threshold(drawn, threshold, floor):
    clean, labels = map(list, zip(*drawn, strict=True))
    split = split_of(clean, labels, threshold=threshold, class_floor=floor)
    assert torch.equal(split.forget, ~split.retain)
    if not floor:
        assert torch.equal(split.retain, torch.tensor(clean) > threshold)


@given(samples, shares, st.floats(0, 0.25), st.floats(0, 0.24))
@settings(max_examples=40)
def test_a_wider_margin_takes_from_both(drawn, threshold, margin, more):
    clean, labels = map(list, zip(*drawn, strict=True))
    narrow, wide = (split_of(clean, labels, threshold=threshold, margin=value) for value in (margin, margin + more))
    assert bool((wide.retain <= narrow.retain).all()) and bool((wide.forget <= narrow.forget).all())


def test_a_class_below_the_margin_keeps_its_surest():
    split = split_of([0.9, 0.55, 0.5, 0.45, 0.1], [0, 1, 1, 1, 2], margin=0.2, class_floor=2)
    assert split.retain.tolist() == [True, True, True, False, True] and not bool(split.forget.any())
    assert split_of([0.9, 0.55, 0.5, 0.45, 0.1], [0, 1, 1, 1, 2], margin=0.2).forget.tolist() == [False, False, False, False, True]


def test_what_was_memorised_is_forgotten_below_the_margin_alone():
    early = torch.tensor([0.9, 0.5, 0.25, 0.1])
    split = split_of([1.0] * 4, [0, 1, 2, 2], margin=0.2)
    assert forget_memorised(split, early, SplitSettings(margin=0.2)).forget.tolist() == [False, False, True, True]
    assert forget_memorised(split, early, SplitSettings()).forget.tolist() == [False, True, True, True]


@pytest.mark.parametrize("margin", [-0.1, 0.5, 1.5, float("nan")])
def test_a_margin_leaves_something_on_both_sides(margin):
    with pytest.raises(InputError, match=f"--margin is {margin}, but it must be (from 0 to below 0.5|a finite number)"):
        split_of([0.5, 0.6], [0, 1], margin=margin)
