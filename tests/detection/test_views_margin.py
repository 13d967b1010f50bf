import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.detection import views_margin
from fspmu.detection.evidence import Evidence
from fspmu.detection.views_margin import Settings


def evidence(labels, probabilities=None, margins=None, classes=3):
    return Evidence(labels, classes, view_probabilities=probabilities, view_margins=margins)


def test_it_is_minus_the_margin_of_either_kind():
    labels = torch.tensor([0, 2, 1])
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    found = views_margin.score(evidence(labels, probabilities), Settings("probability"), torch.Generator())
    assert found.tolist() == [-0.25, 0.25, 0.25]
    found = views_margin.score(evidence(labels, margins=torch.tensor([2.0, -1.0, 0.5]).half()), Settings(), torch.Generator())
    assert found.tolist() == [-2.0, 1.0, -0.5] and found.dtype == torch.float32


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 20), st.integers(2, 6))
def test_above_zero_is_where_another_label_has_more(seed, samples, classes):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(samples, classes, generator=generator).softmax(1)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    before = probabilities.clone()
    found = views_margin.score(evidence(labels, probabilities, classes=classes), Settings("probability"), torch.Generator())
    assert torch.equal(found > 0, probabilities.argmax(1) != labels) and torch.equal(probabilities, before)
    names = torch.randperm(classes, generator=generator)
    renamed = torch.empty_like(probabilities)
    renamed[:, names] = probabilities
    assert torch.equal(views_margin.score(evidence(names[labels], renamed, classes=classes), Settings("probability"), torch.Generator()), found)


def test_it_asks_for_what_it_reads():
    for margin in ("probability", "logit"):
        asked = Settings(margin)
        (name,) = views_margin.needs_of(asked)
        with pytest.raises(LookupError, match=name):
            views_margin.score(evidence(torch.tensor([0])), asked, torch.Generator())
    one_class = evidence(torch.tensor([0, 0]), torch.ones(2, 1), classes=1)
    assert views_margin.score(one_class, Settings("probability"), torch.Generator()).tolist() == [0.0, 0.0]
