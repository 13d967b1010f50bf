"""What a pretraining method is told, what it hands over, and the per-sample history it keeps on the way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fspmu.engine.run import Run
from fspmu.errors import InputError
from fspmu.losses import margins
from fspmu.models.classifier import Classifier

NewModel = Callable[[torch.Generator], Classifier]
"""Returns a fresh network, its weights drawn from the generator."""


@dataclass(frozen=True)
class Situation:
    """What is known of the labels before training; some published settings depend on it."""

    num_classes: int
    noise_mode: str
    """sym or asym, or another mode of the noise that was injected."""
    noise_rate: float
    """Share of noise slots, a fraction."""


def held_out_mask(samples: int, share: float, run: Run) -> Tensor:
    """Return which samples are set aside before training, (N,) bool: a drawn `share` of them, and at least one unless the share is 0.

    Raises InputError when that leaves none to train on.
    """
    mask = torch.zeros(samples, dtype=torch.bool)
    if not share:
        return mask
    held = max(1, round(share * samples))
    if held >= samples:
        raise InputError(f"--held-out is {share}, which leaves none of {samples} samples to train on; give a smaller share")
    mask[torch.randperm(samples, generator=run.generator("validation"))[:held]] = True
    return mask


class SampleHistory:
    """The margin of the given label, z_y - max_{c != y} z_c, of every sample in every epoch: (E, N) float16.

    Recorded from a forward that the method makes anyway: that of training, so on an augmented view and under the weights of that step, or
    that which divides clean labels from wrong ones. Samples that are left out of training have no margin: NaN.
    """

    def __init__(self, samples: int, run: Run, left_out: Tensor | None = None) -> None:
        nobody = torch.zeros(samples, dtype=torch.bool, device=run.device)
        left_out = nobody if left_out is None else left_out.to(run.device)
        self._run = run
        self._rows: list[Tensor] = []
        self._row = torch.zeros(samples, dtype=torch.float16, device=run.device).masked_fill_(left_out, torch.nan)
        self._not_awaited = left_out if run.processes.main else nobody  # one process accounts for them
        self._recorded = self._not_awaited.clone()

    def record(self, index: Tensor, logits: Tensor, given_labels: Tensor) -> None:
        """Keep the margins of one batch: index, given_labels (B,), logits (B, K)."""
        largest = torch.finfo(torch.float16).max
        self._row[index] = margins(logits.detach(), given_labels).clamp(-largest, largest).to(torch.float16)
        self._recorded[index] = True  # a batch that did not fit into memory comes again

    def end_epoch(self) -> None:
        """Close the row of this epoch, with what all processes recorded.

        Raises RuntimeError unless every sample was recorded exactly once.
        """
        self._rows.append(self._run.processes.complete(self._row, self._recorded.nonzero().squeeze(1)).cpu().clone())
        self._recorded.copy_(self._not_awaited)

    @property
    def margins(self) -> Tensor:
        """The history so far, (E, N) float16."""
        return torch.stack(self._rows) if self._rows else torch.empty(0, len(self._row), dtype=torch.float16)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows for a checkpoint."""
        return {"margins": self.margins}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take the rows back."""
        self._rows = list(state_dict["margins"])


@dataclass(frozen=True)
class Trained:
    """Networks with their final weights, best suited for unlearning first, and the history of the samples.

    `kept` says which network stands first, where there were two; `sets` are masks (N,) bool of samples that the method trusts, by name. `held_out` (N,) bool
    are samples that were set aside for whoever looks at the network later; None: there are none.
    """

    models: tuple[Classifier, ...]
    history: SampleHistory
    kept: str = "net1"
    sets: Mapping[str, Tensor] = field(default_factory=dict)
    held_out: Tensor | None = None
