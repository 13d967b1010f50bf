"""Evidence -> scores -> P(clean) -> split: what a detector says, what a cut makes of that, and which samples that concerns."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fspmu.data.split import Split
from fspmu.detection.evidence import Component, Evidence
from fspmu.detection.splitting import SplitSettings, forget_memorised, split_at
from fspmu.errors import DetectionWarning
from fspmu.stages.choosing import Choice


class Scored(NamedTuple):
    """Scores (M,) HIGH = looks wrong; the same by the early score, where the detector has one; and what was remarked."""

    score: Tensor
    early: Tensor | None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """What came of the scores (M,): P(clean) (M,), the same by the early score if there is one, the mixture's components, and what was remarked."""

    score: Tensor
    clean: Tensor
    early: Tensor | None
    components: tuple[Component, ...]
    remarks: tuple[str, ...]


def score_evidence(choice: Choice, evidence: Evidence, generator: torch.Generator) -> Scored:
    """Return what the detector says of the evidence."""
    with _remarks() as remarks:
        score = choice.how.score(evidence, choice.settings, generator)
        early = None if choice.how.early is None else choice.how.early(evidence, choice.settings, generator)
    return Scored(score, early, tuple(remarks))


def cut_scores(choice: Choice, scored: Scored, given_labels: Tensor, generator: torch.Generator) -> Judged:
    """Return what the cut makes of the scores of samples with given labels (M,)."""
    with _remarks() as remarks:
        clean, components = choice.rule.cut(scored.score, given_labels, choice.cut_settings, generator)
        early = None if scored.early is None else choice.rule.cut(scored.early, given_labels, choice.cut_settings, generator).clean
    return Judged(scored.score, clean, early, components, (*scored.remarks, *remarks))


def split_judged(judged: Judged, given_labels: Tensor, num_classes: int, choice: Choice, settings: SplitSettings) -> Split:
    """Return the split of the samples that were judged, with the floor under every class where the detector may err."""
    floor = settings if choice.how.floor else replace(settings, class_floor=0)
    split = split_at(judged.clean, judged.score, given_labels, num_classes, floor)
    return split if judged.early is None else forget_memorised(split, judged.early, settings)


def final_score(judged: Judged, split: Split) -> Tensor:
    """Return one score for each sample, (M,) HIGH = looks wrong: that of the detector, or with an early score what both together come to."""
    return judged.score if judged.early is None else 1 - split.clean_probability


@contextmanager
def _remarks() -> Iterator[list[str]]:
    """Yield a list that holds, once the block is left, the warnings of detection within it."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DetectionWarning)
        yield told
    told += [str(warning.message) for warning in caught]
