"""Images whose labels were forgotten, used without their labels: two views of one image should be predicted alike.

L = mean over the retain batch + weight * mean_j [max q_j > confidence] (KL(q_j || p_j) + KL(q_j || p'_j)) / 2
p and p' are the predictions of two random views, q their mean, sharpened, without gradient. Each retain batch takes its share of the images along, so that an
epoch sees each once; where there are more of them than retained samples, some wait for a later epoch.
Cost: two more rows through the network, forward and backward, for each image taken along. Where images have no random view both are the same, and what is
left is training on one's own sharpened predictions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fspmu.data.batches import Batch, Batches, bounds_of
from fspmu.data.images import Images
from fspmu.data.split import indices_of
from fspmu.engine.run import Run
from fspmu.unlearning.schedules import Steps


@dataclass(frozen=True)
class JointBatch(Batch):
    """A batch whose first rows are `labelled` ones; of the others the first half holds one view of each image, the second half another.

    `weight` (B,) is what each row counts for in a mean over all rows of all processes.
    """

    labelled: int = 0

    @property
    def pairs(self) -> int:
        """How many images have two views here."""
        return (len(self) - self.labelled) // 2

    def parts(self, count: int) -> list[Batch]:
        """Return the rows in at most `count` parts; both views of an image are in one."""
        own, beside = bounds_of(self.labelled, count), bounds_of(self.pairs, count)
        number = max(len(own), len(beside)) - 1
        if number == 1:
            return [self]
        own, beside = (bounds + bounds[-1:] * (number + 1 - len(bounds)) for bounds in (own, beside))
        return [self._of(range(*own[i : i + 2]), range(*beside[i : i + 2])) for i in range(number)]

    def _of(self, labelled: range, pairs: range) -> "JointBatch":
        rows = [*labelled, *(self.labelled + row for row in pairs), *(self.labelled + self.pairs + row for row in pairs)]
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.images.device)
        assert self.weight is not None
        return JointBatch(self.images[chosen], self.given_labels[chosen], self.index[chosen], self.weight[chosen], self.size, len(labelled))


def put_beside(batch: Batch, first: Batch, second: Batch, weight: float) -> JointBatch:
    """Return one batch of all: its weighted mean over all rows is mean(batch) + weight * the mean of both views of an image, over the images."""
    count = batch.total + 2 * first.total
    weights = torch.empty(len(batch) + 2 * len(first), device=batch.images.device)
    weights[: len(batch)] = count / max(1, batch.total)
    weights[len(batch) :] = weight * count / max(1, 2 * first.total)
    joined = (batch, first, second)
    return JointBatch(
        torch.cat([part.images for part in joined]),
        torch.cat([part.given_labels for part in joined]),
        torch.cat([part.index for part in joined]),
        weights,
        count,
        len(batch),
    )


@dataclass(frozen=True)
class WithUnlabelled:
    """Every retain batch once, with some images beside it as long as there are any."""

    retain: Steps
    first: Batches
    second: Batches
    weight: float

    def __len__(self) -> int:
        return len(self.retain)

    def __iter__(self) -> Iterator[Batch]:
        first, second = iter(self.first), iter(self.second)
        for batch in self.retain:
            one, other = next(first, None), next(second, None)
            yield batch if one is None or other is None else put_beside(batch, one, other, self.weight)


def with_unlabelled(retain: Steps, images: Images, chosen: Tensor, weight: float, most: int, run: Run, epoch: int) -> Steps:
    """Return the retain batches of this process with its share of the images where `chosen` (N,) is set, at most `most` to a batch."""
    places = indices_of(chosen)
    if len(places) < 2 or not len(retain):
        return retain
    order = places[torch.randperm(len(places), generator=run.generator(run.stage, "unlabelled", epoch))]
    size = min(most, max(2, -(-len(order) // len(retain))))
    views = [
        Batches(images, order, size, run.generator(run.stage, "unlabelled view", epoch, view), shuffle=False).share(run.processes.rank, run.processes.count)
        for view in (1, 2)
    ]
    return WithUnlabelled(retain, views[0], views[1], weight)
