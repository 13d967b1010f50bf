import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fspmu.detection import fine
from fspmu.detection.evidence import Evidence
from fspmu.errors import InputError


def score(features, labels, classes):
    return fine.score(Evidence(labels, classes, features=features), fine.Settings(), torch.Generator())


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 4), st.integers(1, 12))
def test_it_is_the_first_singular_vector_of_every_class(seed, samples, classes, width):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, width, generator=generator) + 2
    labels = torch.randint(0, classes, (samples,), generator=generator)
    wanted = np.empty(samples)
    for label in range(classes):
        rows = features[labels == label].double().numpy()
        if len(rows):
            direction = np.linalg.svd(rows, full_matrices=False)[2][0]
            wanted[labels.numpy() == label] = 1 - (rows @ direction) ** 2 / (rows**2).sum(axis=1)
    found = score(features, labels, classes)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)
    order, names = torch.randperm(samples, generator=generator), torch.randperm(classes, generator=generator)
    torch.testing.assert_close(score(features[order], names[labels][order], classes), found[order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(score(features.half(), labels, classes), found, rtol=1e-2, atol=1e-2)


def test_a_label_away_from_its_class_scores_high():
    along = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 3.0]] + [[0.0, 1.0]] * 5)
    labels = torch.tensor([0] * 10 + [1] * 5)
    found = score(torch.cat([along[:9], torch.tensor([[0.0, 2.0]]), along[10:]]), labels, 2)
    assert found.tolist() == pytest.approx([0.0] * 9 + [1.0] + [0.0] * 5, abs=1e-6)


def test_it_finds_wrong_labels():
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(0, 4, (800,), generator=generator)
    features = (3 * torch.eye(4)[true] + torch.randn(800, 4, generator=generator)).relu()
    wrong = torch.rand(800, generator=generator) < 0.3
    assert roc_auc_score(wrong, score(features, torch.where(wrong, (true + 1) % 4, true), 4)) > 0.9


def test_what_is_odd():
    assert score(torch.randn(1, 600, generator=torch.Generator().manual_seed(0)), torch.tensor([2]), 4).tolist() == pytest.approx([0.0], abs=1e-6)
    assert bool(score(torch.zeros(3, 2), torch.tensor([0, 0, 1]), 2).isfinite().all())
    with pytest.raises(InputError, match="not finite"):
        score(torch.tensor([[1.0], [torch.inf]]), torch.tensor([0, 1]), 2)
