import builtins

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fspmu.detection import confident
from fspmu.detection.confident import Settings
from fspmu.detection.evidence import Evidence
from fspmu.errors import InputError


def draw(samples=400, classes=4, seed=0):
    """Return logits (N, K) of a network that is mostly right, given labels of which a quarter is wrong, and which are."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(0, classes, (samples,), generator=generator)
    logits = 2.5 * torch.eye(classes)[true] + torch.randn(samples, classes, generator=generator)
    wrong = torch.rand(samples, generator=generator) < 0.25
    return logits, torch.where(wrong, (true + 1) % classes, true), wrong


def score(logits, labels, asked=None, classes=4, **more):
    pytest.importorskip("cleanlab")
    return confident.score(Evidence(labels, classes, logits=logits, **more), asked or Settings(), torch.Generator())


@pytest.mark.parametrize("prune", ["confident_learning", "prune_by_class", "prune_by_noise_rate", "both"])
@pytest.mark.parametrize("quality", ["self_confidence", "normalized_margin"])
def test_above_zero_is_what_cleanlab_finds_and_the_order_is_its_own(prune, quality):
    logits, labels, wrong = draw()
    found = score(logits, labels, Settings(prune, quality))
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_normalized_margin_for_each_label, get_self_confidence_for_each_label

    probabilities = logits.double().softmax(1).numpy()
    issues = find_label_issues(labels.numpy(), probabilities, filter_by=prune, n_jobs=1)
    assert 30 < issues.sum() < 200 and np.array_equal((found > 0).numpy(), issues)
    rank = {"self_confidence": get_self_confidence_for_each_label, "normalized_margin": get_normalized_margin_for_each_label}[quality]
    ranked = rank(labels.numpy(), probabilities)
    for side in (issues, ~issues):
        assert (np.diff(found.numpy()[side][ranked[side].argsort()]) <= 1e-6).all()
    assert roc_auc_score(wrong, found) > 0.85


def test_it_reads_the_probabilities_it_asks_for():
    logits, labels, _ = draw()
    held_out = draw(seed=3)[0].softmax(1)
    assert confident.needs_of(Settings(cross_fit=True)) == {"cross_fitted"} and confident.needs_of(Settings()) == {"logits"}
    crossed = score(None, labels, Settings(cross_fit=True), cross_fitted=held_out)
    torch.testing.assert_close(crossed, score(held_out.log(), labels))
    assert not torch.equal(crossed, score(logits, labels))
    with pytest.raises(LookupError, match="cross_fitted"):
        score(logits, labels, Settings(cross_fit=True))


def test_order_and_names_do_not_matter():
    logits, labels, _ = draw(100)
    found, order, names = score(logits, labels), torch.randperm(100, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(score(logits[order], labels[order]), found[order])
    renamed = torch.empty_like(logits)
    renamed[:, names] = logits
    torch.testing.assert_close(score(renamed, names[labels]), found)


def test_classes_without_labels_and_sure_networks_do_no_harm():
    logits, labels, _ = draw(200, 3)
    wide = torch.cat([logits, torch.full((200, 3), -5.0)], dim=1)
    found = score(wide, labels, classes=6)
    torch.testing.assert_close(found, score(logits, labels, classes=3), rtol=1e-4, atol=1e-4)
    assert score(logits, torch.zeros(200, dtype=torch.int64)).tolist() == [-1.0] * 200
    sure = score(1000 * torch.eye(3)[labels], labels, classes=3)
    assert bool(sure.isfinite().all()) and bool((sure < 0).all())


def test_without_cleanlab_it_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name.startswith("cleanlab"):
            raise ImportError(name)
        return real(name, *rest, **more)

    logits, labels, _ = draw(20)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"needs cleanlab: pip install -e '\.\[cleanlab\]'"):
        confident.score(Evidence(labels, 4, logits=logits), Settings(), torch.Generator())
