"""trajectory: a wrong label is learned late and lost again, so that over the epochs of training its margin is low.

margin         m_t = z_y - max_{c != y} z_c in epoch t of training
mean-margin    score = - mean_t tanh(m_t / 3): above 0 where the network mostly disagreed with the label
wrong-events   score = share of the epochs with m_t < 0, in [0, 1]
Margins are squashed, because a few epochs with huge ones, at the end of the memorising or after a bad step, would drown the others.
`probe_score` is the same over the short training of a fresh network, for a model whose own training nobody recorded.
Source: docs/detection.md, "Scores".
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fspmu.detection.evidence import Evidence
from fspmu.errors import InputError, check_share

SOFTNESS = 3.0
"""Logits at which a margin stops counting for more."""


@dataclass(frozen=True)
class Settings:
    """What is read off the margins."""

    kind: Literal["mean-margin", "wrong-events"] = "mean-margin"
    """The mean of the squashed margins, or how often another class was ahead."""
    skipped: float = 0.1
    """Share of the epochs, from the first on, that do not count."""


def score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return how much the model disagreed with each label while it was trained, (N,); HIGH = looks wrong; of mean-margin 0 divides."""
    return disagreement(evidence.need("history"), settings)


def probe_score(evidence: Evidence, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return how much a fresh network disagreed with each label in its short training, (N,); as `score`."""
    return disagreement(evidence.need("probe_history"), settings)


def disagreement(history: Tensor, settings: Settings) -> Tensor:
    """Return the score (N,) of margins (E, N), float32; epochs in which a sample has none (NaN) do not count for it.

    Raises InputError when there is no epoch, or a sample has no margin in any that counts.
    """
    check_share(settings.skipped, "--skipped")
    epochs = len(history)
    if not epochs:
        raise InputError("the history of the training has no epoch: choose another --detector, or train again with fspmu")
    first = min(int(settings.skipped * epochs), epochs - 1)
    total, counted = torch.zeros(history.shape[1]), torch.zeros(history.shape[1])
    for margins in history[first:]:  # epoch by epoch: a float32 copy of them all may not fit
        present = ~margins.isnan()
        wide = margins.float()
        each = -torch.tanh(wide / SOFTNESS) if settings.kind == "mean-margin" else (wide < 0).float()
        total += torch.where(present, each, 0.0)
        counted += present
    if bool((counted == 0).any()):
        missing = int((counted == 0).nonzero()[0])
        raise InputError(f"the history of the training has no margin of sample {missing}: choose another --detector, or train again with fspmu")
    return total / counted
