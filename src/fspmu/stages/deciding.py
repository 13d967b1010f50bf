"""What a person decided of labels, carried into a repair: a human's word beats the detector's."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fspmu.data.corrections import DECISIONS, read_decisions
from fspmu.data.images import Images
from fspmu.data.issue_tables import Samples, read_table
from fspmu.data.listing import some
from fspmu.data.split import Split
from fspmu.detection.quality import detection_quality
from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.stages.finding import Detection, detection_of
from fspmu.stages.taking_in import Taken

WORDS = tuple(DECISIONS)


@dataclass(frozen=True)
class Decided:
    """Decisions on N samples: said (N,) int64 is a place in WORDS or -1, new_labels (N,) int64 the class that was accepted or -1."""

    said: Tensor
    new_labels: Tensor

    def where(self, *words: str) -> Tensor:
        """Return which samples (N,) were decided in one of these words."""
        return torch.isin(self.said, torch.tensor([WORDS.index(word) for word in words]))

    @property
    def settled(self) -> Tensor:
        """Which samples (N,) a person was sure about."""
        return self.where("accept", "keep", "drop")

    @property
    def counts(self) -> dict[str, int]:
        """How many samples were decided in each word."""
        return {word: int((self.said == place).sum()) for place, word in enumerate(WORDS)}

    def digest(self) -> str:
        """Return 16 hexadecimal digits of all decisions."""
        return hashlib.sha256(torch.stack([self.said, self.new_labels]).numpy().tobytes()).hexdigest()[:16]


def read_decided(path: Path, images: Images, evaluation: Images | None = None) -> Decided:
    """Return what a table of decisions (.csv or .parquet, as a report or its review exports it) says of `images`, matched by id.

    What it says of evaluation images is left aside: they are only measured on.

    Raises InputError for a table of another kind, unknown ids and classes, and given labels that have changed since.
    """
    path = Path(path).expanduser()
    table, name = read_table(path), f"--corrections {path}"
    if missing := {"id", "given_label", "decision"} - set(map(str, table.columns)):
        found = some([str(column) for column in table.columns]) or "no column"
        raise InputError(f"{name} lacks the column {some(sorted(missing))} and has {found}; give the corrections.csv of a review")
    own, others = set(images.ids), set() if evaluation is None else set(evaluation.ids)
    table = table[[identity in own or identity not in others for identity in table["id"]]].reset_index(drop=True)
    samples = Samples(images.ids, images.paths, images.given_labels.cpu(), images.class_names)
    said, new_labels = (torch.full((len(images),), -1, dtype=torch.int64) for _ in range(2))
    places = {label: place for place, label in enumerate(images.class_names)}
    for correction in read_decisions(table, samples, name):
        said[correction.row] = WORDS.index(correction.decision)
        if correction.new_label is not None:
            new_labels[correction.row] = places[correction.new_label]
    return Decided(said, new_labels)


def decide_split(split: Split, decided: Decided) -> Split:
    """Return the split in which wrong labels are forgotten, right ones retained, and what is dropped is neither; `unsure` leaves it to the detector."""
    wrong, right, dropped = (decided.where(word) for word in ("accept", "keep", "drop"))
    clean = split.clean_probability.clone()
    clean[wrong | dropped], clean[right] = 0, 1
    return Split((split.retain | right) & ~wrong & ~dropped, (split.forget | wrong) & ~right & ~dropped, clean)


def decide_found(found: Detection, decided: Decided, images: Images, truth: Tensor | None = None) -> Detection:
    """Return what was found, as far as nobody knew better; the report counts who did, and judges both together where the truth (N,) is known."""
    split, report = decide_split(found.split, decided), found.report | {"corrections": decided.counts}
    if truth is not None and report.get("quality"):
        seen = ~(found.score.isnan() | split.clean_probability.isnan())
        masks = Split(split.retain[seen], split.forget[seen], split.clean_probability[seen])
        report["quality"] = detection_quality(found.score[seen], masks, images.given_labels.cpu()[seen], truth.cpu()[seen])
    return detection_of(images, split, found.predictions, found.score, report)


def mark_decided(issues: pd.DataFrame, decided: Decided, class_names: tuple[str, ...]) -> pd.DataFrame:
    """Return the table with a last column `decided`, empty where nobody decided; what a person chose is what is suggested."""
    words = np.array(["", *WORDS], dtype=object)[decided.said.numpy() + 1]
    accepted, dropped = decided.where("accept").numpy(), decided.where("drop").numpy()
    issues = issues.assign(decided=pd.Series(words.tolist(), index=issues.index, dtype=str))
    names = [class_names[label] for label in decided.new_labels.numpy()[accepted].tolist()]
    issues.loc[accepted, "suggested_label"] = names
    issues.loc[accepted, "suggested_confidence"] = 1.0
    issues.loc[dropped, "suggested_label"] = issues.loc[dropped, "given_label"]
    return issues


def held_apart(taken: Taken, decided: Decided, run: Run) -> Taken:
    """Return what was taken in with none of the images held out of which a person was sure: these belong to the repair."""
    spared = int((taken.held & decided.settled).sum())
    if not spared:
        return taken
    held = taken.held & ~decided.settled
    told = f"{spared:,} of the images that were to be held out were decided by a person: they take part in the repair, and {int(held.sum()):,} are held out"
    run.notice(told)
    left = bool(held.any())
    kept: dict[str, Any] = {"evaluation": taken.images.subset(held.nonzero().squeeze(1)) if left else None, "kind": taken.kind if left else ""}
    return replace(taken, held=held, notes=(*taken.notes, told), **kept)
