"""Made-up evidence of every kind, for tests: what a network that is sure of the truth says of labels of which a share is wrong."""

import dataclasses

import torch

from fspmu.detection.evidence import Evidence
from fspmu.losses import margins

CLASSES = 4
FIELDS = {field.name for field in dataclasses.fields(Evidence)} - {"given_labels", "num_classes"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_evidence(count=400, wrong=0.3, seed=0):
    """Return all evidence there is on a model that is sure of the truth, with a share of wrong labels."""
    draw = seeded(seed)
    truth = torch.randint(CLASSES, (count,), generator=draw)
    flip = torch.rand(count, generator=draw) < wrong
    given = torch.where(flip, (truth + 1) % CLASSES, truth)
    logits = torch.randn(count, CLASSES, generator=draw)
    logits[torch.arange(count), truth] += 6
    losses = torch.nn.functional.cross_entropy(logits, given, reduction="none")
    around = torch.eye(CLASSES, 6)[truth] * 4 + torch.randn(count, 6, generator=draw) * 0.3
    epochs = torch.stack([margins(logits + torch.randn(count, CLASSES, generator=draw), given) for _ in range(5)]).half()
    return Evidence(
        given,
        CLASSES,
        logits=logits,
        features=around,
        block=around.half(),
        view_probabilities=logits.softmax(1),
        view_margins=margins(logits, given),
        history=epochs,
        probe_history=epochs.flip(0),
        cross_fitted=logits.softmax(1),
        reference_losses=losses,
        probe_losses=losses + 0.1,
        reference_probe_losses=losses + 0.2,
        truth=truth,
    )


def only(evidence, needs):
    """Return `evidence` with nothing but what is declared."""
    return dataclasses.replace(evidence, **dict.fromkeys(FIELDS - needs))
