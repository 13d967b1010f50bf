"""Several processes on one job, joined by Accelerate: which one this is, and what they tell each other. Alone, nothing here costs anything.

Each process has all images and the same random draws, and works on its share: a share of the rows of each training batch, every so many-th batch of a pass
without training. What they find is summed, or put back in dataset order; the main process decides and writes.
"""

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fspmu.engine.device import choose_device, is_out_of_memory
from fspmu.errors import InputError, LostProcess, launched

Value = TypeVar("Value")

_ROWS = 65_536
"""Rows that a process sends at a time."""
PATIENCE = timedelta(hours=1)
"""How long processes wait for one that downloads or draws, before they take it for lost."""


@dataclass(frozen=True)
class Processes:
    """The processes of a job, of which this is number `rank`, counted from 0; the first is the main one."""

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")
    """Where this process works, and where tensors lie that travel."""

    @property
    def main(self) -> bool:
        """Whether this process decides, writes and speaks."""
        return self.rank == 0

    def from_main(self, work: Callable[[], Value]) -> Value:
        """Return work(), done by the main process alone.

        Raises what it raised there, and LostProcess in the others.
        """
        if self.count == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        answer: list[Any] = [None, True]
        if self.main:
            try:
                answer = [work(), False]
            except Exception:
                _together(broadcast_object_list, answer)
                raise
        value, failed = _together(broadcast_object_list, answer)
        if failed:
            raise LostProcess("another process of this job ended; its own message says why")
        return value  # type: ignore[no-any-return]

    def gather(self, value: Value) -> list[Value]:
        """Return the value of every process, in their order; any small value that can be pickled."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return _together(gather_object, [value])  # type: ignore[no-any-return]

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over all processes, on its device."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        total: Tensor = _together(reduce, tensor.to(self.device), "sum")
        return total.to(tensor.device)

    def complete(self, rows: Tensor, own: Tensor) -> Tensor:
        """Return `rows` (N, ...) with all places filled: this process filled the places `own` (M,), the others theirs.

        Raises RuntimeError unless every place was filled exactly once.
        """
        self.check_complete(own, len(rows))
        if self.count > 1:
            own = own.to(rows.device)
            for start in range(0, max(self.gather(len(own))), _ROWS):  # not all at once: they would need their memory again, and the device's
                some = own[start : start + _ROWS]
                rows[self._rows_of_all(some)] = self._rows_of_all(rows[some])
        return rows

    def check_complete(self, own: Tensor, total: int) -> None:
        """Raise RuntimeError unless the places `own` (M,) of all processes are 0 to `total` - 1, each once."""
        times = torch.bincount(self._rows_of_all(own), minlength=total)
        if len(times) != total or not bool((times == 1).all()):
            raise RuntimeError(f"{int((times != 1).sum())} of {total} samples were not counted exactly once by {self.count} processes")

    def _rows_of_all(self, rows: Tensor) -> Tensor:
        """Return the rows (M, ...) of all processes, in their order; M may differ from one to another."""
        if self.count == 1:
            return rows
        from accelerate.utils import gather

        lengths = self.gather(len(rows))
        longest = max(lengths)
        padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
        found = _together(gather, padded.to(self.device)).to(rows.device)
        return torch.cat([found[rank * longest :][:length] for rank, length in enumerate(lengths)])

    def sum_gradients(self, model: nn.Module) -> None:
        """Give every process the sum of all gradients; a process without any counts as zeros."""
        if self.count == 1:
            return
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        own = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
        flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in own]))  # one message, not one for each tensor
        for parameter, gradient, piece in zip(parameters, own, torch.split(flat, [gradient.numel() for gradient in own]), strict=True):
            parameter.grad = gradient.copy_(piece.view_as(gradient))

    def average_statistics(self, model: nn.Module, rows: int) -> None:
        """Give every process the mean of all running statistics of batch norm, weighted by the `rows` that moved them in each."""
        if self.count == 1:
            return
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        own = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var) if statistic is not None]
        if own and (total := sum(self.gather(rows))):
            flat = self.sum(torch.cat(own) * (rows / total))
            for statistic, piece in zip(own, torch.split(flat, [len(statistic) for statistic in own]), strict=True):
                statistic.copy_(piece)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.gather(None)


def _together(operation: Callable[..., Any], *arguments: Any) -> Any:
    """Return operation(*arguments), in which every process takes part.

    Raises LostProcess when one does not.
    """
    try:
        return operation(*arguments)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise LostProcess(f"another process of this job ended, and its own message says why, or is out of reach ({str(error).splitlines()[0]})") from error


def join(device: str) -> tuple[Processes, torch.device]:
    """Return the processes that torchrun or `accelerate launch` started with this one, and this one's device; alone without a launcher.

    Raises InputError when the device is not there, or not there for each process.
    """
    place, (rank, count) = choose_device(device), launched()
    if count == 1:
        return Processes(), place
    if ":" in device:
        raise InputError(f"--device {device} names one GPU, but each of the {count} processes has its own; give --device cuda")
    if place.type not in ("cpu", "cuda"):
        raise InputError(f"several processes work on CPUs or NVIDIA GPUs, not on {place.type}; give --device cpu or start one process")
    if place.type == "cuda" and int(os.environ.get("LOCAL_RANK", rank)) >= torch.cuda.device_count():
        raise InputError(f"this host has {torch.cuda.device_count()} GPUs, too few for its processes; start one process for each GPU, or give --device cpu")
    from accelerate import PartialState

    of_others = torch.distributed.is_available() and torch.distributed.is_initialized()
    state = PartialState(cpu=place.type == "cpu", timeout=PATIENCE)
    if state.num_processes != count:
        raise InputError(f"WORLD_SIZE says {count} processes, but they could not be joined; start them by torchrun or accelerate launch")
    if state.device.type == "cpu" and not of_others:
        atexit.register(leave)  # threads of gloo that outlive the interpreter abort the process now and then, after all its work
    return Processes(state.process_index, state.num_processes, state.device), state.device


def leave() -> None:
    """End the connection between the processes, where there is one."""
    if launched()[1] > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
