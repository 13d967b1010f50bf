"""The table of label issues: one row per sample in dataset order, classes by name."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from fspmu.data.images import Images
from fspmu.data.listing import some
from fspmu.data.split import Split
from fspmu.errors import InputError
from fspmu.results.cells import prefixed
from fspmu.results.store import replacing

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


class Opinions(NamedTuple):
    """What a model says of each sample beside its given label, as far as the table needs it: all (N,), classes int64, probabilities float."""

    predicted: Tensor
    """The likeliest class."""
    alternative: Tensor
    """The likeliest class other than the given one; of equally likely ones the first, here as above."""
    alternative_probability: Tensor
    given_probability: Tensor


def opinions_of(probabilities: Tensor, given_labels: Tensor) -> Opinions:
    """Return the opinions behind class probabilities (B, K) on samples with the given labels (B,): a batch of them, or all."""
    given = given_labels.to(probabilities.device)[:, None]
    alternative = probabilities.scatter(1, given, -1).argmax(dim=1, keepdim=True)
    return Opinions(
        probabilities.argmax(dim=1), alternative.squeeze(1), probabilities.gather(1, alternative).squeeze(1), probabilities.gather(1, given).squeeze(1)
    )


def join_opinions(batches: Iterable[Opinions], samples: int) -> Opinions:
    """Return the opinions (N,) of a stream of batches that hold `samples` together, in their order, on the CPU.

    Each batch is copied to its place as it comes: kept one by one between large tensors that come and go, small ones would scatter the heap.
    Raises ValueError when the batches hold more or fewer samples, or none.
    """
    whole: Opinions | None = None
    filled = 0
    for batch in batches:
        whole = whole or Opinions(*(torch.empty(samples, dtype=part.dtype) for part in batch))
        rows = slice(filled, filled := filled + len(batch.predicted))
        if filled <= samples:
            for place, part in zip(whole, batch, strict=True):
                place[rows] = part
    if whole is None or filled != samples:
        raise ValueError(f"the batches hold {filled} samples, not {samples}")
    return whole


def label_issues(images: Images, split: Split, opinions: Opinions) -> pd.DataFrame:
    """Return the issues of `images` under `split`, given what the best model at hand says of all N samples, in dataset order.

    is_label_issue: the sample is not retained, or is to be forgotten; not where nobody judged it, and P(clean) is NaN.
    label_score = P(clean), in [0, 1], LOW = bad; noise_probability = 1 - P(clean), HIGH = bad.
    suggested_label: for an issue the likeliest class other than the given one, with its probability as confidence; else the given label.
    action: forget, else retain, else review.
    """
    given, opinions = images.given_labels.cpu(), Opinions(*(part.cpu() for part in opinions))
    issue = (split.forget | ~split.retain) & ~split.clean_probability.isnan()
    suggested = torch.where(issue, opinions.alternative, given)
    confidence = torch.where(issue, opinions.alternative_probability, opinions.given_probability)
    score = split.clean_probability.double()
    names = pd.Series(images.class_names)
    action = torch.where(split.forget, 0, torch.where(split.retain, 1, 2))
    return pd.DataFrame(
        {
            "is_label_issue": issue.numpy(),
            "label_score": score.numpy(),
            "given_label": names.take(given.numpy()).array,
            "predicted_label": names.take(opinions.predicted.numpy()).array,
            "suggested_label": names.take(suggested.numpy()).array,
            "suggested_confidence": confidence.double().numpy(),
            "noise_probability": (1 - score).numpy(),
            "retain": split.retain.numpy(),
            "forget": split.forget.numpy(),
            "action": pd.Series(["forget", "retain", "review"]).take(action.numpy()).array,
            "path": list(images.paths) if images.paths is not None else [""] * len(images),
            "id": list(images.ids),
        },
        columns=list(COLUMNS),
    )


def to_cleanlab(issues: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Return a table of issues (N rows) as cleanlab's CleanLearning has it: is_label_issue, label_quality in [0, 1], LOW = bad, and labels as class ids.

    `class_names` (K,) are in the order of the ids. Raises InputError for a label that is none of them.
    """
    columns = {"is_label_issue": issues["is_label_issue"].to_numpy(dtype=bool), "label_quality": issues["label_score"].to_numpy(dtype=float).clip(0, 1)}
    places = {name: place for place, name in enumerate(class_names)}
    for column in ("given_label", "predicted_label"):
        labels = issues[column].map(places)
        if labels.isna().any():
            odd = issues[column][labels.isna()].iloc[0]
            raise InputError(f"{column} has {odd!r:.60}, which is no class; known: {some(class_names)} (read a table of issues with every label as text)")
        columns[column] = labels.to_numpy(dtype="int64")
    return pd.DataFrame(columns)


def write_issues(issues: pd.DataFrame, path: Path) -> None:
    """Write the table as CSV, numbers with six significant digits and no cell that a spreadsheet would compute, whole or not at all."""
    text = issues.select_dtypes(exclude=["number", "bool"]).astype(str)
    shielded = issues.assign(**{str(name): [prefixed(cell) for cell in cells] for name, cells in text.items()})
    with replacing(path) as temporary:
        odd = any(cells.str.contains("\r", regex=False).any() for _, cells in text.items())  # Python 3.11 does not quote a lone one
        shielded.to_csv(temporary, index=False, float_format="%.6g", quoting=csv.QUOTE_NONNUMERIC if odd else csv.QUOTE_MINIMAL)
