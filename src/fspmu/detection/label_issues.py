"""The table of label issues: one row per sample in dataset order, classes by name."""

import csv
import io
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from fspmu.data.images import Images
from fspmu.data.split import Split
from fspmu.results.store import write_text

COLUMNS = (
    "is_label_issue",
    "label_score",
    "given_label",
    "predicted_label",
    "suggested_label",
    "suggested_confidence",
    "noise_probability",
    "retain",
    "forget",
    "action",
    "path",
    "id",
)


def label_issues(images: Images, split: Split, probabilities: Tensor) -> pd.DataFrame:
    """Return the issues of `images` under `split`, given class probabilities (N, K) of the best model at hand.

    is_label_issue: the sample is not retained, or is to be forgotten.
    label_score = P(clean), in [0, 1], LOW = bad; noise_probability = 1 - P(clean), HIGH = bad.
    suggested_label: for an issue the likeliest class other than the given one, with its probability as confidence; else the given label.
    action: forget, else retain, else review.
    """
    given = images.given_labels.cpu()
    rows = torch.arange(len(images))
    issue = split.forget | ~split.retain
    others = probabilities.clone()
    others[rows, given] = -1
    suggested = torch.where(issue, others.argmax(dim=1), given)
    score = split.clean_probability.double()
    names = pd.Series(images.class_names)
    action = torch.where(split.forget, 0, torch.where(split.retain, 1, 2))
    return pd.DataFrame(
        {
            "is_label_issue": issue.numpy(),
            "label_score": score.numpy(),
            "given_label": names.take(given.numpy()).to_numpy(),
            "predicted_label": names.take(probabilities.argmax(dim=1).numpy()).to_numpy(),
            "suggested_label": names.take(suggested.numpy()).to_numpy(),
            "suggested_confidence": probabilities[rows, suggested].double().numpy(),
            "noise_probability": (1 - score).numpy(),
            "retain": split.retain.numpy(),
            "forget": split.forget.numpy(),
            "action": pd.Series(["forget", "retain", "review"]).take(action.numpy()).to_numpy(),
            "path": list(images.paths) if images.paths is not None else [""] * len(images),
            "id": list(images.ids),
        },
        columns=list(COLUMNS),
    )


def write_issues(issues: pd.DataFrame, path: Path) -> None:
    """Write the table as CSV, numbers with six significant digits, whole or not at all."""
    buffer = io.StringIO()
    issues.to_csv(buffer, index=False, float_format="%.6g", quoting=csv.QUOTE_MINIMAL)
    write_text(path, buffer.getvalue())
