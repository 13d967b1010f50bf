import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from fspmu.detection import nearest
from fspmu.detection.evidence import Evidence
from fspmu.detection.nearest import Settings
from fspmu.errors import InputError, check_settings


def score(features, labels, classes, asked=None):
    return nearest.score(Evidence(labels, classes, block=features), asked or Settings(), torch.Generator())


def draw(samples, classes, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, width, generator=generator), torch.randint(0, classes, (samples,), generator=generator)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_vote_is_that_of_sklearns_neighbours(weighted):
    features, labels = draw(120, 4, 5, 0)
    centred = (features - features.mean(dim=0)).double().numpy()
    distance, found = NearestNeighbors(metric="cosine", n_neighbors=8).fit(centred).kneighbors()
    weight = np.clip(1 - distance, 0, None) if weighted else np.ones_like(distance)
    shares = np.stack([(weight * (labels.numpy()[found] == k)).sum(axis=1) for k in range(4)], axis=1) / weight.sum(axis=1, keepdims=True)
    own = shares[np.arange(120), labels.numpy()]
    shares[np.arange(120), labels.numpy()] = -1
    np.testing.assert_allclose(score(features, labels, 4, Settings(8, weighted)).numpy(), shares.max(axis=1) - own, atol=1e-5)


def test_a_label_among_others_looks_wrong_and_nobody_votes_for_himself():
    features = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.0], [-1.0, 0.1], [-1.0, 0.0], [-1.0, -0.4]])
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    assert score(features, labels, 2, Settings(2)).tolist() == pytest.approx([0.0, 0.0, 1.0, -1.0, -1.0, -1.0])


def test_it_finds_wrong_labels():
    true = torch.arange(600) % 3
    features = 3 * torch.eye(3)[true] + torch.randn(600, 3, generator=torch.Generator().manual_seed(1))
    wrong = torch.rand(600, generator=torch.Generator().manual_seed(2)) < 0.3
    labels = torch.where(wrong, (true + 1) % 3, true)
    assert roc_auc_score(wrong, score(features, labels, 3)) > 0.93


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 5), st.integers(1, 50), st.booleans())
def test_order_names_and_chunks_do_not_matter(seed, samples, classes, neighbours, weighted):
    features, labels = draw(samples, classes, 3, seed)
    asked = Settings(neighbours, weighted)
    ours = score(features, labels, classes, asked)
    assert ours.shape == (samples,) and bool((ours.abs() <= 1 + 1e-6).all())
    generator = torch.Generator().manual_seed(seed)
    order, names = torch.randperm(samples, generator=generator), torch.randperm(classes, generator=generator)
    torch.testing.assert_close(score(features[order], labels[order], classes, asked), ours[order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(score(features, names[labels], classes, asked), ours, rtol=1e-4, atol=1e-4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "MOST_SIMILARITIES", 3 * samples)
        torch.testing.assert_close(score(features, labels, classes, asked), ours, rtol=1e-4, atol=1e-4)


def test_the_number_of_voters_follows_the_number_of_samples(monkeypatch):
    asked = []
    real = nearest.nearest
    monkeypatch.setattr(nearest, "nearest", lambda directions, rows, count: asked.append(count) or real(directions, rows, count))
    monkeypatch.setattr(nearest, "MOST_NEIGHBOURS", 30)
    for samples in (2, 100, 400):
        score(*draw(samples, 2, 2, 0), 2)
    assert asked == [1, 20, 30]


def test_what_is_odd():
    assert score(torch.ones(1, 3), torch.tensor([0]), 2).tolist() == [0.0]
    assert score(torch.ones(3, 2), torch.tensor([0, 0, 0]), 1).tolist() == [-1.0] * 3
    assert bool(score(torch.ones(4, 2).half(), torch.tensor([0, 0, 1, 1]), 2, Settings(3, weighted=True)).isfinite().all())  # no direction at all
    with pytest.raises(InputError, match="--neighbours is 0, but it must be at least 1"):
        check_settings(Settings(0))
    with pytest.raises(InputError, match="not finite"):
        score(torch.tensor([[1.0], [torch.nan]]), torch.tensor([0, 1]), 2)
