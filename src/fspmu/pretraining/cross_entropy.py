"""Plain training: cross-entropy on the given labels, wrong ones included.

SGD with momentum, one random view per sample and epoch, learning rate / 10 after `lr_step` epochs.
The published settings train for 201 epochs, by which time the network has memorised the noise: the model to be repaired.
Source: docs/method.md, "The model that memorised the noise".
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fspmu.data.batches import Batch
from fspmu.data.images import Images
from fspmu.engine.inference import evaluate
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import set_lr, sgd, step_decay, train_epoch
from fspmu.pretraining.trained import NewModel, SampleHistory, Trained, held_out_mask


@dataclass(frozen=True)
class Settings:
    """Published values."""

    epochs: int = 201
    """Passes over the training set."""
    batch_size: int = 128
    """Samples per step."""
    lr: float = 0.01
    """Learning rate of SGD."""
    lr_step: int = 100
    """Epochs after which the learning rate falls to a tenth."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay on every parameter."""
    held_out: float = 0.0
    """Share of the samples that is not trained on: under their given labels they tell later at which depth of the network to look. They are neither judged
    nor unlearned."""


def pretrain(images: Images, new_model: NewModel, settings: Settings, run: Run) -> Trained:
    """Return a network trained on the given labels, and the margins of every sample in every epoch."""
    model = run.place(new_model(run.generator("weights")))
    optimizer = sgd(model, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    held_out = held_out_mask(len(images), settings.held_out, run)
    history = SampleHistory(len(images), run, held_out)

    def cross_entropy(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        output = model(batch.images)
        history.record(batch.index, output.logits, batch.given_labels)
        right = (output.logits.argmax(dim=1) == batch.given_labels).float().mean()
        return F.cross_entropy(output.logits, batch.given_labels), {"train_accuracy": right}

    for epoch in run.epochs(settings.epochs, model=model, optimizer=optimizer, history=history):
        set_lr(optimizer, settings.lr * step_decay(epoch, (settings.lr_step,)))
        losses = train_epoch(model, run.batches(images, ~held_out, settings.batch_size, "train", epoch), cross_entropy, optimizer, run)
        history.end_epoch()
        run.log(epoch, **losses, test_accuracy=evaluate(model, run))
    return Trained((model,), history, held_out=held_out if bool(held_out.any()) else None)
