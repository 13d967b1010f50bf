"""LongReMix: a first training finds labels that a network trusts for epochs on end; a second one starts afresh and holds to them.

search       DivideMix at a constant learning rate, in which a network is labelled where its peer had w > tau in each of the last n epochs;
             HC = the largest such set of net1 among the last 150 epochs
training     DivideMix from the same fresh networks, with w = 1 on HC for both, and in every pass as many steps as all samples fill
Source: Cordeiro et al., LongReMix: Robust Learning with High Confidence Samples in a Noisy Label Environment, Pattern Recognition 133, 2023;
docs/nll_methods.md, "LongReMix".
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fspmu.data.images import Images
from fspmu.engine.inference import predict
from fspmu.engine.run import Run
from fspmu.engine.training import step_decay
from fspmu.pretraining.trained import NewModel, Situation, Trained
from fspmu.pretraining.two_networks import (
    Pair,
    Recent,
    check_alone,
    clean_probabilities,
    clean_probability,
    filled,
    mixing_epoch,
    numbered,
    order_of,
    rules_for,
    test_figures,
    training_mask,
    warm_up_pass,
)

SEARCH = "high-confidence"
"""The stage of the first training."""


@dataclass(frozen=True)
class Settings:
    """Published values; what depends on the noise is None here and chosen by `suited_to`."""

    epochs: int = 301
    """Epochs of the second training, warm-up included."""
    search_epochs: int = 301
    """Epochs of the first training, warm-up included: it finds the labels that the second one holds to."""
    agreement: int = 5
    """Epochs in a row in which a label must look clean for the first training to use it."""
    last_sets: int = 150
    """The largest set of trusted labels is sought among those of so many last epochs of the first training."""
    warm_up: int | None = None
    """Epochs of plain training at the beginning of both. None: 10 for up to 20 classes, else 30."""
    tau: float = 0.5
    """A label looks clean when its P(clean) is above this."""
    lambda_u: float | None = None
    """Weight of the unlabelled samples. None: by a table of noise and classes."""
    penalty: float | None = None
    """Weight of the confidence penalty during warm-up. None: 1 for asymmetric noise, else 0."""
    loss_epochs: int | None = None
    """Epochs whose losses are averaged before the mixture is fitted. None: 5 at 90% noise, else 1."""
    ramp_up: int = 16
    """Epochs after warm-up in which the weight of unlabelled samples rises from 0."""
    batch_size: int = 64
    """Labelled samples per step, and as many unlabelled ones, each in two views."""
    warm_up_batch: int = 128
    """Samples per step of warm-up."""
    sharpening: float = 0.5
    """Temperature that sharpens guessed labels."""
    mixup: float = 4.0
    """Parameter of the Beta distribution that mixes rows."""
    regulariser: float = 1.0
    """Weight of the term that keeps all classes in use."""
    lr: float = 0.02
    """Learning rate of SGD."""
    lr_step: int = 150
    """Epochs after which the learning rate of the second training falls to a tenth; that of the first is constant."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay on every parameter."""
    keep: str = "net1"
    """Which network goes on to unlearning: net1, better-on-validation (held-out GIVEN labels), better-on-test (picked on test data)."""
    held_out: float = 0.05
    """Share of the samples held out for better-on-validation."""


def suited_to(settings: Settings, situation: Situation) -> Settings:
    """Return `settings` with every None replaced by the published value for the noise, or by our rule where none was published."""
    suited: Settings = filled(settings, rules_for(situation))
    return suited


def pretrain(images: Images, new_model: NewModel, settings: Settings, run: Run) -> Trained:
    """Return two networks that held to the labels which an earlier training found, and these labels as the set "high_confidence".

    Raises InputError when several processes share the run.
    """
    check_alone(run, "longremix")
    assert settings.warm_up is not None
    trained_on = training_mask(images, settings.keep, settings.held_out, run)
    pair = fresh_pair(images, new_model, settings, run)
    with run.timed(SEARCH):
        held_to = search(images, new_model, trained_on, pair, settings, run)
    if not held_to.any():
        run.notice("the first training of longremix found no label to hold to; the second one chooses anew in every epoch, as DivideMix does")
    searched = [line for line in run.lines if line["stage"] == SEARCH][-settings.search_epochs :]
    done = searched[: settings.warm_up] if same_warm_up(settings) else []
    for epoch in run.epochs(settings.epochs, **pair.state):
        if epoch <= len(done):  # the pair came out of the first training's warm-up, which was this one
            run.log(epoch, **{name: value for name, value in done[epoch - 1].items() if name not in ("stage", "epoch")})
            continue
        pair.set_lr(settings.lr * step_decay(epoch, (settings.lr_step,)))
        if epoch <= settings.warm_up:
            figures = warm_up_pass(pair, images, trained_on, settings, epoch, run)
            _, logits = clean_for_both(pair, images, trained_on, epoch, run)
        else:
            clean, logits = clean_probabilities(pair, images, trained_on, epoch, run)
            for w in clean:
                w[held_to] = 1.0
            steps = int(trained_on.sum()) // settings.batch_size + 1
            figures = mixing_epoch(pair, images, trained_on, [w > settings.tau for w in clean], clean, settings, epoch, run, steps=steps)
        pair.record(logits, images)
        run.log(epoch, **figures, **test_figures(pair.nets, run))
    models, kept = order_of(pair.nets, images, trained_on, settings.keep, run)
    return Trained(models, pair.history, kept, {"high_confidence": held_to})


def search(images: Images, new_model: NewModel, trained_on: Tensor, start: Pair, settings: Settings, run: Run) -> Tensor:
    """Return the labels to hold to, (N,) bool; leave in `start` what the pair was after its warm-up, when a second training begins with the same."""
    assert settings.warm_up is not None
    pair, largest = fresh_pair(images, new_model, settings, run), Largest(len(images))
    looked_clean = [Recent(settings.agreement) for _ in pair.nets]
    states = {f"search_{name}": thing for name, thing in pair.state.items()} | numbered(looked_clean=looked_clean)
    pair.set_lr(settings.lr)
    for epoch in run.epochs(settings.search_epochs, largest=largest, **start.state, **states):
        if epoch <= settings.warm_up:
            figures = warm_up_pass(pair, images, trained_on, settings, epoch, run)
            w, logits = clean_for_both(pair, images, trained_on, epoch, run)
            for recent in looked_clean:
                recent.add(w > settings.tau)
            pair.record(logits, images)
            if epoch == settings.warm_up and same_warm_up(settings):
                for name, thing in pair.state.items():
                    start.state[name].load_state_dict(copy.deepcopy(thing.state_dict()))
        else:
            clean, _ = clean_probabilities(pair, images, trained_on, epoch, run)
            trusted = [recent.add(w > settings.tau).all(dim=0) for recent, w in zip(looked_clean, clean, strict=True)]
            figures = mixing_epoch(pair, images, trained_on, trusted, clean, settings, epoch, run)
            if epoch > settings.search_epochs - settings.last_sets:
                largest.offer(trusted[0])
        run.log(epoch, **figures, **test_figures(pair.nets, run))
    return largest.mask


def fresh_pair(images: Images, new_model: NewModel, settings: Settings, run: Run) -> Pair:
    """Return two new networks, the same for both trainings."""
    assert settings.loss_epochs is not None
    return Pair.fresh(new_model, len(images), settings.loss_epochs, run, momentum=settings.momentum, weight_decay=settings.weight_decay)


def same_warm_up(settings: Settings) -> bool:
    """Whether both trainings begin with one and the same warm-up: neither ends within it, nor does the learning rate of the second fall."""
    assert settings.warm_up is not None
    return settings.warm_up <= min(settings.epochs, settings.search_epochs, settings.lr_step)


def clean_for_both(pair: Pair, images: Images, trained_on: Tensor, epoch: int, run: Run) -> tuple[Tensor, Tensor]:
    """Return P(clean) (N,) and logits (N, K) after an epoch of warm-up, as the first network sees it: as published, the second is taken to see the same."""
    logits = predict(pair.nets[0], images, run).logits
    clean = clean_probability(logits, images, trained_on, pair.losses[0], run, epoch, 1)
    pair.losses[1].load_state_dict(pair.losses[0].state_dict())
    return clean, logits


class Largest:
    """The largest of some sets of N samples; of equals the most recent."""

    def __init__(self, samples: int) -> None:
        self.mask = torch.zeros(samples, dtype=torch.bool)

    def offer(self, mask: Tensor) -> None:
        """Take a set (N,) bool."""
        if int(mask.sum()) >= int(self.mask.sum()):
            self.mask = mask

    def state_dict(self) -> dict[str, Any]:
        """Return the set for a checkpoint."""
        return {"mask": self.mask}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take it back."""
        self.mask = state_dict["mask"]
