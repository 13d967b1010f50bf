"""DivideMix: two networks, each told by the other which labels to trust; the labels of the rest are guessed.

main epoch    w_k = P(clean) from a mixture over the losses of net k; each net then trains one MixMatch pass in which the samples with w > tau of
              its PEER are labelled, and all others unlabelled
loss          L_x + lambda(t) L_u + L_reg on mixed rows (mixmatch.py)
Source: Li et al., DivideMix: Learning with Noisy Labels as Semi-supervised Learning, ICLR 2020; docs/method.md, "DivideMix".
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.data.batches import Batch
from fspmu.data.images import Images
from fspmu.engine.inference import predict
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import Loss, set_lr, sgd, step_decay, train_epoch
from fspmu.pretraining.mixmatch import ViewBatches, mixmatch_pass
from fspmu.pretraining.trained import NewModel, SampleHistory, Situation, Trained
from fspmu.pretraining.two_networks import Losses, check_alone, clean_probability, numbered, order_of, test_figures, training_mask


@dataclass(frozen=True)
class Settings:
    """Published values; what depends on the noise is None here and chosen by `suited_to`."""

    epochs: int = 301
    """Epochs, warm-up included."""
    warm_up: int | None = None
    """Epochs of plain training at the beginning. None: 10 for up to 20 classes, else 30."""
    tau: float | None = None
    """A sample is labelled when its P(clean) is above this. None: 0.5, at 90% noise 0.6."""
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
    """Epochs after which the learning rate falls to a tenth."""
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
    many, extreme = situation.num_classes > 20, situation.noise_rate >= 0.9
    rule: dict[str, Any] = {
        "warm_up": 30 if many else 10,
        "tau": 0.6 if extreme else 0.5,
        "lambda_u": unlabelled_weight(situation),
        "penalty": float(situation.noise_mode == "asym"),
        "loss_epochs": 5 if extreme else 1,
    }
    return replace(settings, **{name: value for name, value in rule.items() if getattr(settings, name) is None})


def unlabelled_weight(situation: Situation) -> float:
    """Return lambda_u: published for 20, 50, 80 and 90% symmetric noise and for 40% asymmetric noise on 10 classes; our rule between these."""
    many, rate = situation.num_classes > 20, situation.noise_rate
    if situation.noise_mode == "asym":
        return 150.0 if many else 0.0
    if many:
        return 25.0 if rate <= 0.4 else 150.0
    return 0.0 if rate <= 0.4 else 25.0 if rate < 0.9 else 50.0


def pretrain(images: Images, new_model: NewModel, settings: Settings, run: Run) -> Trained:
    """Return two networks trained on the labels that they come to trust.

    Raises InputError when several processes share the run.
    """
    check_alone(run, "dividemix")
    assert settings.warm_up is not None and settings.loss_epochs is not None and settings.penalty is not None and settings.tau is not None
    trained_on = training_mask(images, settings.keep, settings.held_out, run)
    nets = [run.place(new_model(run.generator("weights", number))) for number in (1, 2)]
    optimizers = [sgd(net, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay) for net in nets]
    losses, history = [Losses(settings.loss_epochs) for _ in nets], SampleHistory(len(images), run)
    warm_up_loss = cautious_cross_entropy(settings.penalty)
    for epoch in run.epochs(settings.epochs, history=history, **numbered(net=nets, optimizer=optimizers, losses=losses)):
        for optimizer in optimizers:
            set_lr(optimizer, settings.lr * step_decay(epoch, (settings.lr_step,)))
        figures: dict[str, float] = {}
        if epoch <= settings.warm_up:
            for k, net in enumerate(nets):
                batches = run.batches(images, trained_on, settings.warm_up_batch, f"warm-up {k + 1}", epoch)
                figures |= train_epoch(net, batches, warm_up_loss, optimizers[k], run, label=f"net{k + 1}")
            logits = [predict(nets[0], images, run).logits]
        else:
            logits = [predict(net, images, run).logits for net in nets]  # both before either is trained
            clean = [clean_probability(logits[k], images, trained_on, losses[k], run, epoch, k + 1) for k in (0, 1)]
            for k in (0, 1):
                labelled = trained_on & (clean[1 - k] > settings.tau)
                views = ViewBatches(images, labelled, trained_on & ~labelled, settings, run, f"net{k + 1}", epoch)
                figures |= mixmatch_pass(nets[k], nets[1 - k], optimizers[k], views, clean[1 - k], settings, epoch, run, f"net{k + 1}")
        history.record(torch.arange(len(images), device=run.device), logits[0].to(run.device), images.given_labels)
        history.end_epoch()
        run.log(epoch, **figures, **test_figures(nets, run))
    models, kept = order_of(nets, images, trained_on, settings.keep, run)
    return Trained(models, history, kept)


def cautious_cross_entropy(penalty: float) -> Loss:
    """Return cross-entropy plus `penalty` times the mean of sum_c p_c log p_c: under asymmetric noise networks become sure too soon."""

    def loss(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_p = F.log_softmax(model(batch.images).logits, dim=1)
        value = F.nll_loss(log_p, batch.given_labels)
        return value + penalty * (log_p.exp() * log_p).sum(dim=1).mean() if penalty else value, {}

    return loss
