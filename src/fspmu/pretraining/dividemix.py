"""DivideMix: two networks, each told by the other which labels to trust; the labels of the rest are guessed.

main epoch    w_k = P(clean) from a mixture over the losses of net k; each net then trains one MixMatch pass in which the samples with w > tau of
              its PEER are labelled, and all others unlabelled
loss          L_x + lambda(t) L_u + L_reg on mixed rows (mixmatch.py)
Source: Li et al., DivideMix: Learning with Noisy Labels as Semi-supervised Learning, ICLR 2020; docs/nll_methods.md, "DivideMix".
"""

from dataclasses import dataclass

from fspmu.data.images import Images
from fspmu.engine.inference import predict
from fspmu.engine.run import Run
from fspmu.engine.training import step_decay
from fspmu.pretraining.trained import NewModel, Situation, Trained
from fspmu.pretraining.two_networks import (
    Pair,
    check_alone,
    clean_probabilities,
    filled,
    mixing_epoch,
    order_of,
    rules_for,
    test_figures,
    training_mask,
    warm_up_pass,
)


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
    suited: Settings = filled(settings, rules_for(situation) | {"tau": 0.6 if situation.noise_rate >= 0.9 else 0.5})
    return suited


def pretrain(images: Images, new_model: NewModel, settings: Settings, run: Run) -> Trained:
    """Return two networks trained on the labels that they come to trust.

    Raises InputError when several processes share the run.
    """
    check_alone(run, "dividemix")
    assert settings.warm_up is not None and settings.loss_epochs is not None and settings.tau is not None
    trained_on = training_mask(images, settings.keep, settings.held_out, run)
    pair = Pair.fresh(new_model, len(images), settings.loss_epochs, run, momentum=settings.momentum, weight_decay=settings.weight_decay)
    for epoch in run.epochs(settings.epochs, **pair.state):
        pair.set_lr(settings.lr * step_decay(epoch, (settings.lr_step,)))
        if epoch <= settings.warm_up:
            figures = warm_up_pass(pair, images, trained_on, settings, epoch, run)
            logits = predict(pair.nets[0], images, run).logits
        else:
            clean, logits = clean_probabilities(pair, images, trained_on, epoch, run)
            figures = mixing_epoch(pair, images, trained_on, [w > settings.tau for w in clean], clean, settings, epoch, run)
        pair.record(logits, images)
        run.log(epoch, **figures, **test_figures(pair.nets, run))
    models, kept = order_of(pair.nets, images, trained_on, settings.keep, run)
    return Trained(models, pair.history, kept)
