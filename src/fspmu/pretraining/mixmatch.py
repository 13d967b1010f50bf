"""What DivideMix and LongReMix do in a training pass: draw views, guess labels, sharpen them, mix, and step.

Source: docs/nll_methods.md, "DivideMix".
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from fspmu.data.batches import Batch, Batches, WholeBatch
from fspmu.data.images import Images
from fspmu.data.split import indices_of
from fspmu.engine.run import Forward, Run
from fspmu.engine.training import train_epoch
from fspmu.models.classifier import Classifier


@dataclass(frozen=True)
class Views(WholeBatch):
    """Labelled samples, as in `Batch`, in two random views, beside unlabelled ones in two; and what mixes them.

    `second` (B, C, H, W) is the second view of `images`; `unlabelled` the two views of other samples, or None where there are none.
    `lam` in [0.5, 1] and `order`, a permutation of all rows, say how they are mixed; `progress` counts passes over the labelled ones, a fraction.
    """

    kind: ClassVar[str] = "labelled samples"
    second: Tensor = torch.empty(0)
    unlabelled: tuple[Tensor, Tensor] | None = None
    lam: float = 1.0
    order: Tensor = torch.empty(0, dtype=torch.int64)
    progress: float = 0.0


class Mixing(Protocol):
    """The settings of a pass; see `dividemix.Settings`."""

    @property
    def warm_up_batch(self) -> int:
        """Samples per step of warm-up."""

    @property
    def penalty(self) -> float | None:
        """Weight of the confidence penalty during warm-up."""

    @property
    def batch_size(self) -> int:
        """Labelled samples per step."""

    @property
    def mixup(self) -> float:
        """Parameter of the Beta distribution."""

    @property
    def sharpening(self) -> float:
        """Temperature."""

    @property
    def regulariser(self) -> float:
        """Weight of the term that keeps all classes in use."""

    @property
    def lambda_u(self) -> float | None:
        """Full weight of the unlabelled samples."""

    @property
    def warm_up(self) -> int | None:
        """Epochs before that weight begins to rise."""

    @property
    def ramp_up(self) -> int:
        """Epochs until it is full."""


class ViewBatches:
    """Batches of labelled samples beside as many unlabelled ones, each in two views: one pass over the labelled, or `steps` batches.

    labelled, unlabelled (N,) bool. Either kind starts over, in a new order, when it runs out. One sample alone has no batch statistics: with fewer than
    two unlabelled samples only the labelled are mixed, and with fewer than two labelled ones there is no batch.
    """

    def __init__(self, images: Images, labelled: Tensor, unlabelled: Tensor, settings: Mixing, run: Run, *purpose: object, steps: int | None = None) -> None:
        self._images, self._run, self._purpose = images, run, (run.stage, *purpose)
        self._size, self._mixup = settings.batch_size, settings.mixup
        self._labelled, self._unlabelled = indices_of(labelled), indices_of(unlabelled)
        self._repetition = len(self._labelled) // self._size + 1
        self._steps = len(Batches(images, self._labelled, self._size)) if steps is None else steps
        if len(self._labelled) < 2:
            self._steps = 0
        if len(self._unlabelled) < 2:
            self._unlabelled = self._unlabelled[:0]

    def __len__(self) -> int:
        return self._steps

    @property
    def labelled(self) -> int:
        """How many samples are labelled."""
        return len(self._labelled)

    def __iter__(self) -> Iterator[Views]:
        draws = self._run.generator(*self._purpose, "mix")
        beta = np.random.default_rng(int(torch.randint(0, 2**62, (), generator=draws))).beta(self._mixup, self._mixup, self._steps)
        keys = torch.rand(self._steps, 4 * (self._size + 1), generator=draws).to(self._images.pixels.device)  # sorted they are an order of any number of rows
        labelled = self._pairs(self._labelled, "labelled")
        unlabelled = self._pairs(self._unlabelled, "unlabelled") if len(self._unlabelled) else itertools.repeat(None)
        for step, (place, first, second), other in zip(range(self._steps), labelled, unlabelled, strict=False):  # the range ends first: no batch in vain
            pair = None if other is None else (other[1].images, other[2].images)
            rows = 2 * len(first) + (0 if pair is None else 2 * len(pair[0]))
            lam, order = float(max(beta[step], 1 - beta[step])), keys[step, :rows].argsort(stable=True)
            yield Views(first.images, first.given_labels, first.index, None, None, second.images, pair, lam, order, place / self._repetition)

    def _pairs(self, indices: Tensor, kind: str) -> Iterator[tuple[int, Batch, Batch]]:
        """Yield batches of the samples at `indices`, in two views each, with their number within the repetition, without end."""
        for repetition in itertools.count():
            draws = [self._run.generator(*self._purpose, kind, repetition, part) for part in ("order", "view 1", "view 2")]
            shuffled = indices[torch.randperm(len(indices), generator=draws[0])]
            views = (Batches(self._images, shuffled, self._size, generator, shuffle=False) for generator in draws[1:])
            yield from ((number, first, second) for number, (first, second) in enumerate(zip(*views, strict=True)))


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Return p^(1/T) / sum p^(1/T) over the classes, (B, K)."""
    powers = (probabilities / probabilities.amax(dim=1, keepdim=True)) ** (1 / temperature)  # the largest is 1: at no temperature do all vanish
    return powers / powers.sum(dim=1, keepdim=True)


def guessed_targets(own: tuple[Tensor, Tensor], peer: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """Return the sharpened mean of both networks' probabilities on both views of unlabelled samples, (B, K), from four logits (B, K)."""
    return sharpen(torch.stack([logits.softmax(1) for logits in (*own, *peer)]).mean(dim=0), temperature)


def refined_targets(own: tuple[Tensor, Tensor], given_labels: Tensor, clean: Tensor, temperature: float) -> Tensor:
    """Return sharpen(w y + (1 - w) p), (B, K): the given label as far as it is thought clean (B,), else the network's own mean prediction."""
    prediction = torch.stack([logits.softmax(1) for logits in own]).mean(dim=0)
    given = F.one_hot(given_labels, prediction.shape[1]).to(prediction.dtype)
    return sharpen(clean[:, None] * given + (1 - clean[:, None]) * prediction, temperature)


def mixmatch_loss(logits: Tensor, targets: Tensor, labelled: int, weight: float, regulariser: float) -> Tensor:
    """Return L_x + weight * L_u + regulariser * L_reg for mixed rows, of which the first `labelled` began with a labelled sample.

    L_x: mean cross-entropy with soft targets. L_u: squared error of the probabilities, mean over rows AND classes.
    L_reg = sum_c 1/C log(1/C / pbar_c), pbar the mean prediction over all rows: no class may vanish.
    """
    log_p = F.log_softmax(logits, dim=1)
    fit = -(targets[:labelled] * log_p[:labelled]).sum(dim=1).mean()
    classes = logits.shape[1]
    mean_p = log_p.exp().mean(dim=0)
    spread = -(mean_p.clamp(min=torch.finfo(mean_p.dtype).tiny) * classes).log().mean()
    loss = fit + regulariser * spread
    if len(logits) > labelled:
        loss = loss + weight * ((log_p[labelled:].exp() - targets[labelled:]) ** 2).mean()
    return loss


def unlabelled_weight(settings: Mixing, epoch: int, progress: float) -> float:
    """Return lambda(t): 0 until the warm-up is over, then rising in a line to lambda_u; `epoch` from 1, `progress` within it a fraction."""
    assert settings.lambda_u is not None and settings.warm_up is not None
    return settings.lambda_u * min(max((epoch - 1 + progress - settings.warm_up) / settings.ramp_up, 0.0), 1.0)


def mixmatch_pass(
    net: Classifier, peer: Classifier, optimizer: Optimizer, batches: ViewBatches, clean: Tensor, settings: Mixing, epoch: int, run: Run, label: str
) -> dict[str, float]:
    """Train `net` on `batches`, given P(clean) (N,) and its peer, which stands still; return what to log, under names that begin with `label`.

    The network makes its targets in training mode, as published: each of the four passes moves its running statistics, in the order u1, u2, x1, x2,
    before the mixed one does.
    """
    judge, clean = run.forward(peer.eval()), clean.to(run.device)

    def loss(model: Forward, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(batch, Views)
        inputs, targets = [batch.images, batch.second], []
        with torch.no_grad():
            if batch.unlabelled is not None:
                first, second = batch.unlabelled
                theirs = judge(torch.cat([first, second])).logits.chunk(2)  # in evaluation mode one pass over both views says the same as two
                guessed = guessed_targets((model(first).logits, model(second).logits), (theirs[0], theirs[1]), settings.sharpening)
                inputs, targets = [*inputs, first, second], [guessed, guessed]
            own = model(batch.images).logits, model(batch.second).logits
            refined = refined_targets(own, batch.given_labels, clean[batch.index], settings.sharpening)
        whole, wanted = torch.cat(inputs), torch.cat([refined, refined, *targets])
        mixed = batch.lam * whole + (1 - batch.lam) * whole[batch.order]
        wanted = batch.lam * wanted + (1 - batch.lam) * wanted[batch.order]
        return mixmatch_loss(model(mixed).logits, wanted, 2 * len(batch), unlabelled_weight(settings, epoch, batch.progress), settings.regulariser), {}

    share = {f"{label}_labelled": batches.labelled / len(clean)}
    if not len(batches):
        run.notice(f"{label} was not trained in epochs in which fewer than two labels were trusted: {label}_labelled in metrics.jsonl tells in which")
        return share
    return share | train_epoch(net, batches, loss, optimizer, run, label=label)
