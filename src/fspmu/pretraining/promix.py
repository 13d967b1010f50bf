"""ProMix: trust labels of small loss and labels predicted with confidence, more of them as training goes on, and learn from these alone, in many views.

trusted       D_k = the rho N / K samples of smallest loss of each given class, and in each batch those whose given label has p > tau; late in
              training also samples on whose label both networks agree with confidence
loss          for each network: CE on D_k in a weak and a strong view and under MixUp and FMix, for its head and for a pseudo head, which early in
              training learns guessed labels of the others too; all logits shifted by the class frequencies of what was trusted so far
Source: Wang et al., ProMix: Combating Label Noise via Maximizing Clean Sample Utility, IJCAI 2023; docs/nll_methods.md, "ProMix".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fspmu.data.batches import Batch
from fspmu.data.images import Images
from fspmu.engine.inference import predict
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import Loss, set_lr, sgd, train_epoch
from fspmu.models.classifier import Classifier, Output, drawn_from
from fspmu.pretraining.promix_losses import fit, guessed_fit, mixed_fit
from fspmu.pretraining.promix_views import PairedBatches, PairedViews
from fspmu.pretraining.trained import NewModel, SampleHistory, Situation, Trained
from fspmu.pretraining.two_networks import check_alone, filled, numbered, order_of, test_figures, training_mask


@dataclass(frozen=True)
class Settings:
    """Published values; what depends on the noise or the classes is None here and chosen by `suited_to`."""

    epochs: int = 601
    """Epochs, warm-up included."""
    warm_up: int | None = None
    """Epochs of plain training at the beginning. None: 10 for up to 20 classes, else 30."""
    rho_start: float | None = None
    """Share of a class of mean size whose samples of smallest loss are trusted, at first. None: by the noise."""
    rho_end: float | None = None
    """The same after `ramp_up` epochs. None: as `rho_start`."""
    tau_conf: float | None = None
    """A given label of this probability is trusted, whatever its loss. None: 0.99 for up to 20 classes, else 0.95."""
    debias: float | None = None
    """How far logits are shifted by log class frequencies. None: 0.8 for up to 20 classes, else 0.5."""
    penalty: float | None = None
    """Weight of the confidence penalty during warm-up. None: 1 for asymmetric noise, else 0."""
    ramp_up: int = 50
    """Epochs, from the beginning, in which strong views and mixed rows gain their full weight and rho its last value."""
    pseudo_weight: float = 0.1
    """Weight that guessed labels rise to; always 1 where `debias` is 0."""
    pseudo_epochs: int = 100
    """Epochs in which it rises; after them guessed labels are not used."""
    agreement_after: int = 351
    """Epochs at the beginning in which no label is guessed because both networks agree on it."""
    agreement_share: float = 0.9
    """Share of a batch that is trusted at most, such labels included."""
    prior_memory: float = 0.9999
    """Share of the class frequencies that a step keeps."""
    sharpening: float = 0.5
    """Temperature that sharpens guessed labels."""
    strong_ops: int = 3
    """Operations in a strong view."""
    mixup: float = 4.0
    """Parameter of the Beta distribution of MixUp."""
    fmix: float = 1.0
    """Parameter of the Beta distribution of FMix."""
    fmix_decay: float = 3.0
    """Power with which the frequencies of FMix's random field fade."""
    isotropic_fmix: bool = False
    """Let them fade in all directions alike; as published they fade along one axis alone."""
    shared_mixing: bool = False
    """Mix rows once for both heads: up to a third less work, approximate (four passes for each network and step in place of six)."""
    batch_size: int = 256
    """Samples per step."""
    lr: float = 0.05
    """Learning rate of SGD in the first epoch."""
    lr_end: float = 5e-5
    """Learning rate in the last epoch, reached on a cosine."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay on every parameter."""
    keep: str = "net1"
    """Which network goes on to unlearning: net1, better-on-validation (held-out GIVEN labels), better-on-test (picked on test data)."""
    held_out: float = 0.05
    """Share of the samples held out for better-on-validation."""


def suited_to(settings: Settings, situation: Situation) -> Settings:
    """Return `settings` with every None replaced by the published value, or by our rule where none was published."""
    many, rate, mode = situation.num_classes > 20, situation.noise_rate, situation.noise_mode
    start = settings.rho_start if settings.rho_start is not None else trusted_share(rate, mode)
    rules: dict[str, Any] = {
        "warm_up": 30 if many else 10,
        "rho_start": start,
        "rho_end": start,
        "tau_conf": 0.95 if many else 0.99,
        "debias": 0.5 if many else 0.8,
        "penalty": float(mode == "asym"),
    }
    suited: Settings = filled(settings, rules)
    return suited


def trusted_share(rate: float, mode: str) -> float:
    """Return rho: published for 20 and 50% symmetric and 40% asymmetric noise; our rule for the rest: at or below the clean share."""
    if rate <= 0.3:
        return 0.7
    return 0.5 if rate <= 0.5 or mode == "asym" else round(1 - rate, 6)


@dataclass(frozen=True)
class Schedule:
    """What an epoch fixes: the learning rate, the share rho, the weights of strong views and of guessed labels, and whether agreement counts."""

    lr: float
    rho: float
    ramp: float
    pseudo: float
    agreement: bool


def schedule_of(settings: Settings, epoch: int) -> Schedule:
    """Return the schedule of `epoch`, counted from 1; published epochs count from 0."""
    assert settings.rho_start is not None and settings.rho_end is not None
    index, ramp = epoch - 1, min((epoch - 1) / settings.ramp_up, 1.0)
    cosine = (1 + math.cos(math.pi * index / max(1, settings.epochs - 1))) / 2
    pseudo = settings.pseudo_weight * index / settings.pseudo_epochs if index < settings.pseudo_epochs else 0.0
    return Schedule(
        lr=settings.lr_end + (settings.lr - settings.lr_end) * cosine,
        rho=settings.rho_start + (settings.rho_end - settings.rho_start) * ramp,
        ramp=ramp,
        pseudo=pseudo if settings.debias else 1.0,
        agreement=epoch > settings.agreement_after,
    )


class TwoHeads(Classifier):
    """A classifier and a pseudo head on its features: logits (B, 2K), the classifier's own first. It shares all layers with `classifier`.

    `priors` (2, K) are the class frequencies of the samples it trusted so far, and of the others: uniform at first.
    """

    priors: Tensor

    def __init__(self, classifier: Classifier, generator: torch.Generator) -> None:
        super().__init__(classifier.backbone, classifier.head)
        with drawn_from(generator):
            self.pseudo = nn.Linear(classifier.feature_width, classifier.num_classes)
        self.register_buffer("priors", torch.full((2, classifier.num_classes), 1 / classifier.num_classes))

    def forward(self, images: Tensor) -> Output:
        """Return the logits of both heads, and the features."""
        features = self.backbone(images)
        return Output(torch.cat([self.head(features), self.pseudo(features)], dim=1), features)

    def update_prior(self, which: int, probabilities: Tensor, memory: float) -> None:
        """Let the mean of `probabilities` (M, K) into a prior: 0 of trusted samples, 1 of others; without any it stays."""
        if len(probabilities):
            moved = memory * self.priors[which] + (1 - memory) * probabilities.mean(dim=0)
            self.priors[which] = moved / moved.sum()  # a sum of 1, whatever rounding adds up in a hundred thousand steps


def pretrain(images: Images, new_model: NewModel, settings: Settings, run: Run) -> Trained:
    """Return two networks trained on the labels that they come to trust, without their pseudo heads.

    Raises InputError when several processes share the run.
    """
    check_alone(run, "promix")
    assert settings.warm_up is not None and settings.penalty is not None
    trained_on = training_mask(images, settings.keep, settings.held_out, run)
    nets = [new_model(run.generator("weights", number)) for number in (1, 2)]
    heads = [cast(TwoHeads, run.place(TwoHeads(net, run.generator("pseudo head", number)))) for number, net in enumerate(nets, start=1)]
    both = cast(Classifier, nn.ModuleList(heads))  # one optimiser, one step: nothing but its parameters is asked for
    optimizer, history = sgd(both, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay), SampleHistory(len(images), run)
    for parameter in both.parameters():  # the pseudo heads stand still at first, and fused SGD wants a momentum of every parameter or of none
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    for epoch in run.epochs(settings.epochs, history=history, optimizer=optimizer, **numbered(net=heads)):
        schedule = schedule_of(settings, epoch)
        set_lr(optimizer, schedule.lr)
        if epoch <= settings.warm_up:
            batches = run.batches(images, trained_on, settings.batch_size, "warm-up", epoch)
            figures = train_epoch(both, batches, warm_up_loss([run.forward(net) for net in nets], settings.penalty), optimizer, run)
            logits = [predict(nets[0], images, run).logits]
        else:
            logits = [predict(net, images, run).logits for net in nets]
            per_class = schedule.rho * int(trained_on.sum()) / images.num_classes
            small = torch.stack([smallest_losses(z, images.given_labels.cpu(), trained_on, per_class) for z in logits]).to(run.device)
            paired = PairedBatches(images, trained_on, settings, run, epoch)
            figures = train_epoch(both, paired, promix_loss(heads, small, schedule, settings, run), optimizer, run)
        history.record(torch.arange(len(images), device=run.device), logits[0].to(run.device), images.given_labels)
        history.end_epoch()
        run.log(epoch, **figures, **test_figures(nets, run))
    models, kept = order_of(nets, images, trained_on, settings.keep, run)
    return Trained(models, history, kept)


def warm_up_loss(forwards: Sequence[Forward], penalty: float) -> Loss:
    """Return the sum over both networks of cross-entropy and `penalty` times the mean of sum_c q_c log q_c, q = softmax(max(z, 0)), as published."""

    def loss(_: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        total = torch.zeros((), device=batch.images.device)
        for forward in forwards:
            logits = forward(batch.images).logits
            total = total + F.cross_entropy(logits, batch.given_labels)
            if penalty:
                log_q = F.log_softmax(logits.clamp(min=1e-12), dim=1)
                total = total + penalty * (log_q.exp() * log_q).sum(dim=1).mean()
        return total, {}

    return loss


def smallest_losses(logits: Tensor, given_labels: Tensor, chosen: Tensor, per_class: float) -> Tensor:
    """Return (N,) bool: of each given class, among `chosen` (N,) bool, the `per_class` samples (rounded up, at least 1) of smallest cross-entropy."""
    places = chosen.nonzero().squeeze(1)
    losses, labels = F.cross_entropy(logits, given_labels, reduction="none")[places], given_labels[places]
    order = losses.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # class by class, in each by loss
    counts = torch.bincount(labels, minlength=logits.shape[1])
    rank = torch.arange(len(places)) - (counts.cumsum(0) - counts)[labels[order]]
    mask = torch.zeros_like(chosen)
    mask[places[order[rank < max(1, math.ceil(per_class - 1e-6))]]] = True  # 0.7 * 5000 may be a hair above 3500
    return mask


def agreement(own: Tensor, peer: Tensor, trusted: Tensor, tau: float, most: int) -> Tensor:
    """Return which rows (B,) bool join the `trusted` ones: both networks' probabilities (B, K) above `tau`, on the same class.

    As many as make the trusted `most` rows, those of the highest mean confidence.
    """
    (sure, first), (peer_sure, second) = own.max(dim=1), peer.max(dim=1)
    candidates = ~trusted & (sure > tau) & (peer_sure > tau) & (first == second)
    confidence = torch.where(candidates, (sure + peer_sure) / 2, -1.0)
    rank = confidence.argsort(descending=True, stable=True).argsort()
    return candidates & (rank < most - trusted.sum())


def promix_loss(heads: Sequence[TwoHeads], small: Tensor, schedule: Schedule, settings: Settings, run: Run) -> Loss:
    """Return the loss of the main phase, summed over both networks; `small` (2, N) bool says whose loss each of them found small."""
    forwards = [run.forward(net) for net in heads]
    tau, debias = settings.tau_conf, settings.debias
    assert tau is not None and debias is not None

    def loss(_: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(batch, PairedViews)
        given, total, figures = batch.given_labels, torch.zeros((), device=run.device), {}
        weak = [forward(batch.images).logits.chunk(2, dim=1) for forward in forwards]
        sure = [own.detach().softmax(dim=1) for own, _ in weak]
        for k, net in enumerate(heads):
            strong = forwards[k](batch.strong).logits.chunk(2, dim=1)
            shift = debias * net.priors.log()
            trusted, labels = small[k, batch.index] | (sure[k].gather(1, given[:, None]).squeeze(1) > tau), given
            if schedule.agreement:
                joining = agreement(sure[k], sure[1 - k], trusted, tau, int(settings.agreement_share * len(batch)))
                labels = torch.where(joining, (weak[k][0].detach() - shift[0]).argmax(dim=1), given)
                trusted = trusted | joining
            rows, others = trusted.nonzero().squeeze(1), (~trusted).nonzero().squeeze(1)
            views = [(weak[k], 1.0), (strong, schedule.ramp)]
            total = total + fit(views, rows, labels[rows], shift[0])
            total = total + schedule.ramp * mixed_fit(forwards[k], batch, k, rows, labels[rows], shift[0])
            if schedule.pseudo:
                total = total + schedule.pseudo * guessed_fit(views, others, shift[1], settings.sharpening)
            net.update_prior(0, sure[k][rows], settings.prior_memory)
            net.update_prior(1, sure[k][others], settings.prior_memory)
            figures[f"net{k + 1}_trusted"] = trusted.float().mean()
        return total, figures

    return loss
