"""Which epoch's network is handed back, chosen without any true label.

last     that of the last epoch: as published
chance   the last one in which the forgotten labels are predicted no oftener than they should be

A label that was forgotten and is not learned again is predicted, by a network that knows nothing of it, where it is right after all, and by chance elsewhere:
mean_i P_i + (1 - P_i) / K over these samples, P_i = P(clean). More than that means that wrong labels come back, as they do through those that are still in
the retain set. Where no epoch reaches the level, the one that comes nearest is taken. Epochs before the last forget pass do not count.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fspmu.data.split import Split


def expected_agreement(split: Split, chosen: Tensor, num_classes: int) -> float:
    """Return mean_i P_i + (1 - P_i) / K over the samples where `chosen` (N,) is set; a P(clean) of NaN counts as 0."""
    clean = split.clean_probability[chosen].double().nan_to_num(0.0)
    return float((clean + (1 - clean) / num_classes).mean())


@dataclass
class Kept:
    """The weights of the epoch to go back to, as far as epochs were seen; a checkpoint holds it."""

    level: float
    """Agreement up to which an epoch is as good as it should be."""
    epoch: int = 0
    agreement: float = 2.0
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def look(self, model: nn.Module, epoch: int, agreement: float) -> None:
        """Keep the weights of this epoch where it reaches the level, or comes as near to it as any before."""
        if agreement <= max(self.level, self.agreement):
            self.epoch, self.agreement = epoch, agreement
            self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return epoch, agreement and weights."""
        return {"epoch": self.epoch, "agreement": self.agreement, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take them back."""
        self.epoch, self.agreement, self.weights = state_dict["epoch"], state_dict["agreement"], state_dict["weights"]
