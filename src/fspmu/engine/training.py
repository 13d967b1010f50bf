"""The step, owned once: zero_grad, forward, backward, clip, update; and the optimisers that methods share."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fspmu.data.batches import Batch
from fspmu.engine.device import is_out_of_memory
from fspmu.engine.run import Forward, Run
from fspmu.errors import NonFiniteLoss
from fspmu.models.classifier import Classifier

Loss = Callable[[Forward, Batch], tuple[Tensor, dict[str, Tensor]]]
"""loss(model, batch) -> (scalar to minimise, scalars to log); `model` is a function of images."""

_CHECK_EVERY = 64
"""Steps between two looks at the loss: each look makes the host wait for the device."""


def sgd(model: Classifier, lr: float, *, momentum: float = 0.9, weight_decay: float = 5e-4) -> torch.optim.SGD:
    """Return SGD on every parameter that takes a gradient, fused where the device has it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def step_decay(epoch: int, milestones: tuple[int, ...], factor: float = 0.1) -> float:
    """Return factor to the power of how many milestones lie before `epoch` (counted from 1)."""
    return float(factor ** sum(epoch > milestone for milestone in milestones))


def train_epoch(
    model: Classifier, batches: Iterable[Batch], loss: Loss, optimizer: torch.optim.Optimizer, run: Run, *, clip: float | None = None, label: str = "loss"
) -> dict[str, float]:
    """Take one optimiser step for each batch; return the means of what `loss` reports, under its own names and `label`.

    clip bounds each gradient entry by its absolute value. With several processes each has a share of every batch's rows: gradients are summed over them,
    weighted by the rows, so that a step is that of the whole batch; the running statistics of batch norm are averaged by the same weights when the epoch ends.
    Raises NonFiniteLoss when a loss is NaN or infinite.
    """
    model.train()
    forward = run.forward(model)
    totals: dict[str, Tensor] = {}
    first_bad = torch.full((), torch.iinfo(torch.int64).max, device=run.device)
    steps = parts = rows = samples = 0
    for batch in run.bar(batches, label):
        lone = batch.total == 1  # one sample has no batch statistics: its norms use the running ones
        if lone:
            _norms_to(model, training=False)
        parts, value, values = _step(forward, batch, loss, optimizer, run, parts or 1)
        rows += len(batch)
        run.processes.sum_gradients(model)
        if lone:
            _norms_to(model, training=True)
        if clip is not None:
            torch.nn.utils.clip_grad_value_(model.parameters(), clip)
        optimizer.step()
        steps += 1
        samples += batch.total
        first_bad = torch.where(torch.isfinite(value), first_bad, first_bad.clamp(max=steps))
        for name, number in (values | {label: value}).items():
            share = number * batch.total
            totals[name] = totals[name] + share if name in totals else share
        if steps % _CHECK_EVERY == 0:
            _refuse_non_finite(first_bad, run)
    _refuse_non_finite(first_bad, run)
    run.count_passes()
    if not run.sync_bn:
        run.processes.average_statistics(model, rows)
    shares = run.processes.gather({name: float(total) for name, total in totals.items()})
    return {name: sum(share.get(name, 0.0) for share in shares) / samples for name in {name: None for share in shares for name in share}}


def _norms_to(model: Classifier, *, training: bool) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(training)


def _step(forward: Forward, batch: Batch, loss: Loss, optimizer: torch.optim.Optimizer, run: Run, parts: int) -> tuple[int, Tensor, dict[str, Tensor]]:
    """Leave this process's share of the gradient of the batch mean in the parameters; return how many parts that took, the loss and what it reports."""
    while True:
        run.begin_step()
        try:
            optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), device=run.device)
            reported: dict[str, Tensor] = {}
            for part in batch.parts(parts):
                if not len(part) and not run.sync_bn:
                    continue
                share = len(part) / batch.total
                value, values = loss(forward, part)
                (value * share).backward()  # type: ignore[no-untyped-call]
                if not len(part):  # synchronised norms wait for every process: this one took part, its mean over no rows says nothing
                    continue
                total = total + value.detach() * share
                reported = {name: reported.get(name, torch.zeros_like(total)) + number.detach() * share for name, number in values.items()}
            return parts, total, reported
        except Exception as error:
            full = isinstance(error, RuntimeError) and is_out_of_memory(error)
            if not full and run.stop_compiling(error):
                continue  # the backward pass of a compiled network comes here; the same batch again, without
            if not full or len(batch) < 4 * parts or run.sync_bn:
                raise
        parts *= 2
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
        run.notice(f"out of memory in {run.stage}: each batch goes through the network in parts, their gradients summed")


def _refuse_non_finite(first_bad: Tensor, run: Run) -> None:
    step = min(run.processes.gather(int(first_bad)))
    if step < torch.iinfo(torch.int64).max:
        epoch = sum(line["stage"] == run.stage for line in run.lines) + 1
        kept = f"the last saved epoch is kept in {run.folder.state}" if run.folder is not None and epoch > 1 else "nothing was changed"
        raise NonFiniteLoss(f"the loss became NaN or infinite in {run.stage}, epoch {epoch}, step {step}; {kept}; try a smaller --lr or --precision fp32")
