import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fspmu.detection import trajectory
from fspmu.detection.evidence import Evidence
from fspmu.detection.trajectory import Settings, disagreement
from fspmu.errors import InputError


def simulated(seed, memorised, heavy=False, samples=1500, epochs=60):
    """Return margins (E, N) of training on labels of which 40% are wrong, all learned by heart from epoch `memorised` on, and which are wrong."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(samples, generator=generator) < 0.4
    time, hardness = torch.arange(epochs)[:, None].float(), torch.randn(samples, generator=generator)
    learned = 2 * (1 - torch.exp(-time / 5))
    margins = learned * (torch.where(wrong, -1.0, 1.0) + 0.7 * hardness) + ((time - memorised) / 20).clamp(0, 1) * 8
    margins += 2 * torch.randn(epochs, samples, generator=generator)
    return margins * (torch.randn(epochs, samples, generator=generator).exp() if heavy else 1), wrong


def test_it_is_the_mean_disagreement():
    history = torch.tensor([[3.0, -3.0, 0.0], [9.0, -1.0, -2.0]]).half()
    found = disagreement(history, Settings(skipped=0.0))
    wanted = -torch.tensor([[1.0, -1.0, 0.0], [3.0, -1 / 3, -2 / 3]]).tanh().mean(dim=0)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert disagreement(history, Settings("wrong-events", skipped=0.0)).tolist() == [0.0, 1.0, 0.5]


def test_first_epochs_do_not_count():
    history = torch.cat([torch.full((2, 3), 50.0), torch.full((8, 3), -1.0)])
    for skipped, rate in ((0.0, 0.8), (0.1, 8 / 9), (0.2, 1.0), (1.0, 1.0)):
        assert disagreement(history, Settings("wrong-events", skipped)).tolist() == pytest.approx([rate] * 3)


def test_own_and_probe_history_are_told_apart():
    evidence = Evidence(torch.tensor([0]), 2, history=torch.full((4, 1), 3.0), probe_history=torch.full((4, 1), -3.0))
    own, probe = (score(evidence, Settings(), torch.Generator()) for score in (trajectory.score, trajectory.probe_score))
    assert own < 0 < probe
    with pytest.raises(LookupError, match="probe_history"):
        trajectory.probe_score(Evidence(torch.tensor([0]), 2), Settings(), torch.Generator())


@pytest.mark.parametrize("memorised", [20, 1000])
def test_what_was_learned_by_heart_at_the_end_is_found_all_the_same(memorised):
    history, wrong = simulated(0, memorised)
    last = roc_auc_score(wrong, -history[-1])
    for kind in ("mean-margin", "wrong-events"):
        assert roc_auc_score(wrong, disagreement(history, Settings(kind))) > max(0.93, last + 0.08)


def test_squashing_helps_where_some_margins_are_huge():
    history, wrong = simulated(1, 20, heavy=True)
    assert roc_auc_score(wrong, disagreement(history, Settings())) > roc_auc_score(wrong, -history.mean(dim=0)) + 0.01


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 20), st.sampled_from(["mean-margin", "wrong-events"]))
def test_each_sample_counts_for_itself(seed, epochs, samples, kind):
    generator = torch.Generator().manual_seed(seed)
    history = (5 * torch.randn(epochs, samples, generator=generator)).half()
    found, order = disagreement(history, Settings(kind)), torch.randperm(samples, generator=generator)
    assert torch.equal(disagreement(history[:, order], Settings(kind)), found[order])
    assert bool((found.abs() <= 1).all())
    gaps = history.clone()
    gaps[-1, 0] = torch.nan  # a sample that was left out of an epoch
    if epochs > 2:
        assert torch.equal(disagreement(gaps, Settings(kind))[1:], found[1:]) and bool(disagreement(gaps, Settings(kind)).isfinite().all())


def test_a_history_that_says_nothing_is_refused():
    with pytest.raises(InputError, match="no epoch"):
        disagreement(torch.empty(0, 3), Settings())
    with pytest.raises(InputError, match="no margin of sample 1"):
        disagreement(torch.tensor([[0.0, torch.nan]]), Settings())
    with pytest.raises(InputError, match="--skipped is 2"):
        disagreement(torch.zeros(2, 2), Settings(skipped=2.0))
