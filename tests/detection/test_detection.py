"""Detectors: what each of them promises, the split with its floor, and the quality figures."""

import math
import warnings

import numpy as np
import pytest
import torch
from made_up_evidence import make_evidence, only, seeded
from scipy.special import log_softmax
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.detection import DETECTORS, at_random, known, loss_mixture
from fspmu.detection.cuts import CUTS
from fspmu.detection.evidence import Evidence
from fspmu.detection.label_issues import COLUMNS, label_issues, opinions_of, write_issues
from fspmu.detection.quality import detection_quality
from fspmu.detection.splitting import SplitSettings, split_at
from fspmu.errors import InputError


def test_gmm_scores_by_cross_entropy_on_the_given_label():
    evidence = make_evidence(50)
    expected = -log_softmax(evidence.logits.double().numpy(), axis=1)[np.arange(50), evidence.given_labels]
    score = loss_mixture.score(only(evidence, {"logits"}), loss_mixture.Settings(), seeded())
    np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("quality", [0.0, 0.25, 0.9, 1.0])
def test_known_finds_the_share_it_is_asked_for(quality):
    evidence = make_evidence(1000)
    wrong = evidence.given_labels != evidence.truth
    score = known.score(evidence, known.Settings(quality), seeded())
    for group, share in ((wrong, quality), (~wrong, 1 - quality)):
        assert abs(int(score[group].sum()) - share * int(group.sum())) <= 0.5
    clean = CUTS["as-is"].cut(score, evidence.given_labels, CUTS["as-is"].settings, seeded()).clean
    assert torch.equal(clean == 0, score == 1) and torch.equal(clean == 1, score == 0)
    if quality in (0.0, 1.0):
        assert torch.equal(score == 1, wrong if quality else ~wrong)
    else:
        assert not torch.equal(score, known.score(evidence, known.Settings(quality), seeded(1)))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_random_is_a_coin_with_the_share_it_is_asked_for(share):
    count = 20_000
    evidence = Evidence(torch.zeros(count, dtype=torch.int64), 1)
    score = at_random.score(evidence, at_random.Settings(share), seeded())
    clean = CUTS["as-is"].cut(score, evidence.given_labels, CUTS["as-is"].settings, seeded()).clean
    assert abs(float((clean == 0).float().mean()) - share) <= 5 * math.sqrt(share * (1 - share) / count)
    assert torch.equal((clean == 0) | (clean == 1), torch.ones(count, dtype=torch.bool))


@pytest.mark.parametrize(
    ("score", "settings", "flag"), [(known.score, known.Settings(1.5), "--quality"), (at_random.score, at_random.Settings(-0.1), "--share")]
)
def test_a_share_that_is_none_is_refused(score, settings, flag):
    with pytest.raises(InputError, match=f"{flag} is .*from 0 to 1"):
        score(make_evidence(), settings, seeded())


def test_the_cut_is_strict_and_remembers_the_probabilities():
    clean = torch.tensor([0.9, 0.5, 0.51, 0.1])
    split = split_at(clean, 1 - clean, torch.tensor([0, 0, 1, 1]), 2, SplitSettings())
    assert split.retain.tolist() == [True, False, True, False] and split.forget.tolist() == [False, True, False, True]
    assert torch.equal(split.clean_probability, clean)
    assert split_at(clean, 1 - clean, torch.tensor([0, 0, 1, 1]), 2, SplitSettings(threshold=0.05)).retain.all()


def test_a_class_that_would_lose_everything_keeps_its_surest():
    given = torch.tensor([0, 1, 1, 1, 1, 1, 2, 2, 3])
    clean = torch.tensor([0.9, 0.1, 0.4, 0.0, 0.3, 0.2, 0.8, 0.2, 0.0])
    split = split_at(clean, 1 - clean, given, 5, SplitSettings(class_floor=2))
    assert split.retain.tolist() == [True, False, True, False, True, False, True, False, True]
    assert torch.equal(split.forget, ~split.retain)
    generous = split_at(clean, 1 - clean, given, 5, SplitSettings(class_floor=10))
    assert generous.retain[given == 1].all() and generous.retain[given == 2].tolist() == [True, False]
    assert split_at(clean, 1 - clean, given, 5, SplitSettings(class_floor=0)).retain[given == 1].tolist() == [False] * 5


def test_a_threshold_that_is_none_is_refused():
    with pytest.raises(InputError, match="--threshold"):
        split_at(torch.ones(2), torch.zeros(2), torch.zeros(2, dtype=torch.int64), 1, SplitSettings(threshold=2))


@pytest.mark.parametrize("seed", range(4))
def test_quality_counts_wrong_labels_as_positive(seed):
    draw = seeded(seed)
    truth, given = torch.randint(3, (2, 200), generator=draw)
    score = torch.rand(200, generator=draw)
    retain = score < 0.6
    result = detection_quality(score, Split(retain, ~retain, 1 - score), given, truth)
    wrong, found = (given != truth).numpy(), (~retain).numpy()
    expected = {
        "precision": precision_score(wrong, found),
        "recall": recall_score(wrong, found),
        "f1": f1_score(wrong, found),
        "auc": roc_auc_score(wrong, score.numpy()),
        "average_precision": average_precision_score(wrong, score.numpy()),
        "retain_purity": precision_score(~wrong, ~found),
        "clean_recall": recall_score(~wrong, ~found),
        "wrong_share": wrong.mean(),
    }
    assert result == pytest.approx(expected, rel=1e-6)


def test_a_ratio_over_nothing_is_none():
    labels, keep = torch.tensor([0, 1]), torch.tensor([True, True])
    result = detection_quality(torch.zeros(2), Split(keep, ~keep, torch.ones(2)), labels, labels)
    assert result["precision"] is result["recall"] is result["f1"] is result["auc"] is result["average_precision"] is None
    assert result["retain_purity"] == result["clean_recall"] == 1 and result["wrong_share"] == 0


def test_the_table_of_issues_by_hand(tmp_path):
    pixels = torch.zeros(4, 3, 1, 1, dtype=torch.uint8)
    images = Images(pixels, torch.tensor([0, 1, 1, 0]), ("cat", "dog, small", "owl"), ["a", "b", "c", "d"], ["1.png", "2.png", "3.png", "4.png"])
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.1, 0.2, 0.7], [0.5, 0.2, 0.3]])
    retain, forget = torch.tensor([True, False, False, True]), torch.tensor([False, False, True, True])
    table = label_issues(images, Split(retain, forget, torch.tensor([0.75, 0.5, 0.25, 1.0])), opinions_of(probabilities, images.given_labels))
    assert tuple(table.columns) == COLUMNS
    assert table["is_label_issue"].tolist() == [False, True, True, True]
    assert table["label_score"].tolist() == [0.75, 0.5, 0.25, 1.0] and table["noise_probability"].tolist() == [0.25, 0.5, 0.75, 0.0]
    assert table["given_label"].tolist() == ["cat", "dog, small", "dog, small", "cat"]
    assert table["predicted_label"].tolist() == ["cat", "dog, small", "owl", "cat"]
    assert table["suggested_label"].tolist() == ["cat", "cat", "owl", "owl"]
    assert table["suggested_confidence"].tolist() == pytest.approx([0.7, 0.25, 0.7, 0.3])
    assert table["action"].tolist() == ["retain", "review", "forget", "forget"]
    assert table["id"].tolist() == ["a", "b", "c", "d"] and table["path"].tolist() == ["1.png", "2.png", "3.png", "4.png"]
    write_issues(table, tmp_path / "label_issues.csv")
    lines = (tmp_path / "label_issues.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[2] == 'True,0.5,"dog, small","dog, small",cat,0.25,0.5,False,False,review,2.png,b'


def test_a_class_whose_posteriors_are_all_zero_keeps_its_surest():
    score = torch.cat([torch.linspace(0, 0.1, 90), torch.linspace(5.9, 6.1, 30)])
    given = torch.cat([torch.arange(90) % 9, torch.full((30,), 9)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clean = CUTS["mixture"].cut(score, given, CUTS["mixture"].settings, torch.Generator().manual_seed(0)).clean
    assert (clean[given == 9] == 0).all()
    split = split_at(clean, score, given, 10, SplitSettings())
    assert split.retain[given == 9].nonzero().flatten().tolist() == list(range(10))
    assert not DETECTORS["known"].floor and not DETECTORS["random"].floor
