"""How the learning rate falls over a repair.

steps    to a tenth after each milestone: as published
cosine   lr * (1 + cos(pi p)) / 2, p the share of all steps that are done, anew before each step: smooth, and 0 where the last epoch ends
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from fspmu.data.batches import Batch
from fspmu.engine.training import set_lr, step_decay


class Steps(Protocol):
    """Batches of a pass that can be counted before they are read."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


def cosine_decay(done: float) -> float:
    """Return (1 + cos(pi * done)) / 2 for a share `done` in [0, 1]: from 1 to 0."""
    return (1 + math.cos(math.pi * done)) / 2


def decay_at(schedule: str, epoch: int, epochs: int, milestones: tuple[int, ...]) -> float:
    """Return the share of the learning rate that is left when `epoch` (from 1) of `epochs` begins."""
    return cosine_decay((epoch - 1) / epochs) if schedule == "cosine" else step_decay(epoch, milestones)


@dataclass(frozen=True)
class Cooled:
    """Batches of a pass, before each of which the learning rate falls along the cosine; one process's share has as many steps as another's."""

    batches: Steps
    optimizer: torch.optim.Optimizer
    lr: float
    """The rate at the beginning of the first epoch."""
    epoch: int
    epochs: int

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for step, batch in enumerate(self.batches):
            set_lr(self.optimizer, self.lr * cosine_decay((self.epoch - 1 + step / len(self)) / self.epochs))
            yield batch
