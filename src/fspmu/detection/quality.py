"""How good a detection is, where the truth is known. Positive = WRONG label, everywhere."""

from torch import Tensor

from fspmu.data.split import Split


def detection_quality(score: Tensor, split: Split, given_labels: Tensor, true_labels: Tensor) -> dict[str, float | None]:
    """Return precision, recall, F1, AUC and average precision of finding wrong labels, the purity of the retain set and the recall of clean samples.

    All (N,); score HIGH = looks wrong. A sample is found when it is forgotten or not retained. AUC and average precision are of the score alone, and of no
    cut. A ratio over nothing is None.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # two seconds of import, which no --help should cost

    wrong, found = given_labels != true_labels, split.forget | ~split.retain
    hits = int((wrong & found).sum())
    precision, recall = _ratio(hits, int(found.sum())), _ratio(hits, int(wrong.sum()))
    one_kind = bool(wrong.all()) or not bool(wrong.any())
    clean_kept = int((~wrong & split.retain).sum())
    return {
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * hits, int(found.sum()) + int(wrong.sum())),
        "auc": None if one_kind else float(roc_auc_score(wrong.numpy(), score.numpy())),
        "average_precision": None if one_kind else float(average_precision_score(wrong.numpy(), score.numpy())),
        "retain_purity": _ratio(clean_kept, int(split.retain.sum())),
        "clean_recall": _ratio(clean_kept, int((~wrong).sum())),
        "wrong_share": float(wrong.float().mean()),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
