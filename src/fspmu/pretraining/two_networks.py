"""What methods with two networks share: their warm-up, their test, the division of samples by a mixture over losses, and which network is kept."""

import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fspmu.data.batches import Batch, Batches
from fspmu.data.images import Images
from fspmu.data.split import indices_of
from fspmu.detection.cuts import mixture
from fspmu.engine.inference import accuracy, accuracy_of, predict
from fspmu.engine.run import Forward, Run, Stateful
from fspmu.engine.training import Loss, set_lr, sgd, train_epoch
from fspmu.errors import DetectionWarning, InputError, choose
from fspmu.models.classifier import Classifier
from fspmu.pretraining.mixmatch import Mixing, ViewBatches, mixmatch_pass
from fspmu.pretraining.trained import NewModel, SampleHistory, Situation, held_out_mask

KEEP = {
    "net1": "the first network, whichever is better",
    "better-on-validation": "the network that agrees more with held-out GIVEN labels",
    "better-on-test": "the network better on TEST data, as published for ProMix and LongReMix; a tie goes to the second",
}

MIXTURE = mixture.Settings(starts=1)
"""The published mixture: one start, losses scaled to [0, 1]."""


def check_alone(run: Run, method: str) -> None:
    """Raise InputError when several processes share the run: rows of a batch are mixed with each other here."""
    if run.processes.count > 1:
        raise InputError(
            f"{method} mixes the rows of a batch and trains in one process; start it without a launcher, and other runs beside it on the other GPUs"
        )


def training_mask(images: Images, keep: str, share: float, run: Run) -> Tensor:
    """Return which samples are trained on, (N,) bool: all, but for a drawn `share` when the network is kept that agrees with held-out labels.

    Raises InputError for a `keep` that is none, or that wants test images where there are none.
    """
    choose(KEEP, keep, "--keep")
    if keep == "better-on-test" and run.evaluation is None:
        raise InputError("--keep better-on-test needs test images, and there are none; give --keep net1 or --keep better-on-validation")
    if keep == "better-on-validation" and not share:
        raise InputError("--held-out is 0, but --keep better-on-validation judges by samples that are held out; give a share above 0")
    return ~held_out_mask(len(images), share if keep == "better-on-validation" else 0.0, run)


def numbered(**pairs: Sequence[Stateful]) -> dict[str, Stateful]:
    """Return what comes in pairs under numbered names, for a checkpoint: net1, net2."""
    return {f"{name}{number}": thing for name, things in pairs.items() for number, thing in enumerate(things, start=1)}


class Recent:
    """A tensor (N,) from each of the last `length` epochs of one network."""

    def __init__(self, length: int) -> None:
        self._kept: deque[Tensor] = deque(maxlen=length)

    def add(self, values: Tensor) -> Tensor:
        """Take the tensor of an epoch; return those kept, (epochs, N), the newest last."""
        self._kept.append(values)
        return torch.stack(tuple(self._kept))

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept for a checkpoint."""
        return {"kept": list(self._kept)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take it back."""
        self._kept = deque(state_dict["kept"], self._kept.maxlen)


@dataclass(frozen=True)
class Pair:
    """Two networks in training: their optimisers, the losses that their mixtures are fitted to, and the margins under the first."""

    nets: list[Classifier]
    optimizers: list[torch.optim.SGD]
    losses: list[Recent]
    history: SampleHistory

    @classmethod
    def fresh(cls, new_model: NewModel, samples: int, loss_epochs: int, run: Run, *, momentum: float, weight_decay: float) -> "Pair":
        """Return a pair of new networks, of the same weights whenever it is asked for; its learning rate is set later."""
        nets = [run.place(new_model(run.generator("weights", number))) for number in (1, 2)]
        optimizers = [sgd(net, 0.0, momentum=momentum, weight_decay=weight_decay) for net in nets]
        return cls(nets, optimizers, [Recent(loss_epochs) for _ in nets], SampleHistory(samples, run))

    @property
    def state(self) -> dict[str, Stateful]:
        """What a checkpoint must hold, by name."""
        return {"history": self.history, **numbered(net=self.nets, optimizer=self.optimizers, losses=self.losses)}

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of both."""
        for optimizer in self.optimizers:
            set_lr(optimizer, lr)

    def record(self, logits: Tensor, images: Images) -> None:
        """Close an epoch of the history with the margins in `logits` (N, K) of the first network."""
        device = images.given_labels.device
        self.history.record(torch.arange(len(images), device=device), logits.to(device), images.given_labels)
        self.history.end_epoch()


def rules_for(situation: Situation) -> dict[str, Any]:
    """Return the settings of DivideMix and LongReMix that depend on the noise and the classes: as published, or our rule where nothing was."""
    many = situation.num_classes > 20
    return {
        "warm_up": 30 if many else 10,
        "lambda_u": unlabelled_weight_for(situation),
        "penalty": float(situation.noise_mode == "asym"),
        "loss_epochs": 5 if situation.noise_rate >= 0.9 else 1,
    }


def unlabelled_weight_for(situation: Situation) -> float:
    """Return lambda_u: published for 20, 50, 80 and 90% symmetric noise and for 40% asymmetric noise on 10 classes; our rule between these."""
    many, rate = situation.num_classes > 20, situation.noise_rate
    if situation.noise_mode == "asym":
        return 150.0 if many else 0.0
    if many:
        return 25.0 if rate <= 0.4 else 150.0
    return 0.0 if rate <= 0.4 else 25.0 if rate < 0.9 else 50.0


def filled(settings: Any, rules: dict[str, Any]) -> Any:
    """Return `settings` with every None for which there is a rule replaced by it."""
    return replace(settings, **{name: value for name, value in rules.items() if getattr(settings, name) is None})


def warm_up_pass(pair: Pair, images: Images, trained_on: Tensor, settings: Mixing, epoch: int, run: Run) -> dict[str, float]:
    """Train each network for a plain epoch of its own shuffle and views; return their losses. No stage has a part in these draws."""
    assert settings.penalty is not None
    figures: dict[str, float] = {}
    for k, net in enumerate(pair.nets, start=1):
        batches = Batches(images, indices_of(trained_on), settings.warm_up_batch, run.generator("warm-up", k, epoch))
        figures |= train_epoch(net, batches, cautious_cross_entropy(settings.penalty), pair.optimizers[k - 1], run, label=f"net{k}")
    return figures


def cautious_cross_entropy(penalty: float) -> Loss:
    """Return cross-entropy plus `penalty` times the mean of sum_c p_c log p_c: under asymmetric noise networks become sure too soon."""

    def loss(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_p = F.log_softmax(model(batch.images).logits, dim=1)
        value = F.nll_loss(log_p, batch.given_labels)
        return value + penalty * (log_p.exp() * log_p).sum(dim=1).mean() if penalty else value, {}

    return loss


def clean_probability(logits: Tensor, images: Images, chosen: Tensor, losses: Recent, run: Run, *purpose: object) -> Tensor:
    """Return P(clean) (N,) from the mixture over the losses of logits (N, K), zero outside `chosen` (N,) bool.

    The losses are scaled to [0, 1], and the mixture is fitted to their mean over the epochs that `losses` keeps. Losses that are all equal say nothing:
    every label then counts as clean.
    """
    values = F.cross_entropy(logits, images.given_labels.cpu(), reduction="none")[chosen]
    low, high = values.min(), values.max()
    mean = losses.add((values - low) / (high - low) if high > low else torch.zeros_like(values)).mean(dim=0)
    seed = int(torch.randint(0, 2**31 - 1, (), generator=run.generator(run.stage, "mixture", *purpose)))
    clean = torch.zeros(len(images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DetectionWarning)  # early epochs are seldom two clear groups, and that is no news
        clean[chosen] = mixture.posterior(mean, MIXTURE, seed)
    return clean


def clean_probabilities(pair: Pair, images: Images, trained_on: Tensor, epoch: int, run: Run) -> tuple[list[Tensor], Tensor]:
    """Return P(clean) (N,) as each network sees it, neither trained in between, and the logits (N, K) of the first."""
    logits = [predict(net, images, run).logits for net in pair.nets]
    return [clean_probability(logits[k], images, trained_on, pair.losses[k], run, epoch, k + 1) for k in (0, 1)], logits[0]


def mixing_epoch(
    pair: Pair,
    images: Images,
    trained_on: Tensor,
    trusted: Sequence[Tensor],
    clean: Sequence[Tensor],
    settings: Mixing,
    epoch: int,
    run: Run,
    *,
    steps: int | None = None,
) -> dict[str, float]:
    """Train net1, then net2 beside the net1 of now, each labelled where its PEER trusts: masks `trusted` and P(clean) `clean`, both (N,), by network."""
    figures: dict[str, float] = {}
    for own, peer in ((0, 1), (1, 0)):
        label = f"net{own + 1}"
        batches = ViewBatches(images, trusted[peer], trained_on & ~trusted[peer], settings, run, label, epoch, steps=steps)
        figures |= mixmatch_pass(pair.nets[own], pair.nets[peer], pair.optimizers[own], batches, clean[peer], settings, epoch, run, label)
    return figures


def test_figures(networks: Sequence[Classifier], run: Run) -> dict[str, float | None]:
    """Return the accuracies of both networks and of the sum of their logits on the run's evaluation images; none without any, or in epochs not to be tested."""
    if run.tested is None:
        return {}
    with run.timed("evaluation"):
        logits = [predict(network, run.tested, run).logits for network in networks]
    labels = run.tested.given_labels
    first, second, both = (accuracy_of(z, labels) for z in (*logits, torch.stack(logits).sum(dim=0)))
    return {"test_accuracy": first, "test_accuracy_net2": second, "test_accuracy_ensemble": both}


def order_of(networks: Sequence[Classifier], images: Images, trained_on: Tensor, keep: str, run: Run) -> tuple[tuple[Classifier, ...], str]:
    """Return the networks, the one to keep first, and its name."""
    if keep == "net1":
        return tuple(networks), "net1"
    judged = run.evaluation if keep == "better-on-test" else images.subset((~trained_on).nonzero().squeeze(1))
    assert judged is not None
    first, second = (accuracy(network, judged, run) for network in networks)
    what = "TEST data: picked on test data" if keep == "better-on-test" else "held-out given labels"
    better = second >= first
    run.notice(f"net{2 if better else 1} is kept: net1 {first:.2%}, net2 {second:.2%} on {what}")
    return (tuple(networks[::-1]), "net2") if better else (tuple(networks), "net1")
