"""Which device and which number format this machine offers."""

import contextlib
import ctypes
import os
import platform
import re

import torch
from torch import nn

from fspmu.errors import InputError, choose

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""What mallopt of the GNU C library calls these settings."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """Return the device called `name`: auto, cpu, cuda, cuda:1, mps.

    Raises InputError when this machine does not have it.
    """
    available = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    number = re.fullmatch(r"cuda:(\d+)", name)
    if not choose(available, "cuda" if number else name, "device"):
        raise InputError(f"device {name!r} is not available on this machine; give --device auto or --device cpu")
    if number and int(number[1]) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not one of the {torch.cuda.device_count()} GPUs of this machine")
    return torch.device(name)


def asked_precision(name: str) -> dict[str, str]:
    """Return what a config says of a precision: nothing of the automatic one, which belongs to the machine, not to the run."""
    return {} if name == "auto" else {"precision": name}


def choose_precision(name: str, device: torch.device) -> str:
    """Return `fp32` or `bf16`; `auto` is bf16 where the device computes it natively."""
    if name != "auto":
        choose(DTYPES, name, "precision")
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if device.type == "cpu" and native() else "fp32"


def is_slow_in(precision: str, device: torch.device) -> bool:
    """Whether the device computes in that precision only by detours."""
    return precision == "bf16" and device.type == "cpu" and choose_precision("auto", device) != "bf16"


def tune(device: torch.device) -> None:
    """Let a GPU try its convolution kernels on the first batch of each shape: shapes repeat thousands of times. Let a CPU keep freed memory for the next batch.

    By itself the GNU C library gives the memory of large tensors back at once, and the system clears it page by page for the next batch, at a cost that
    docs/performance.md measures. Environment variables by which a user sets the allocator are left to rule.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if device.type == "cpu" and not chosen and platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):  # another allocator stands in its place
            allocator = ctypes.CDLL(None)
            allocator.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
            allocator.mallopt(_TRIM_THRESHOLD, 2**30)


def memory_format_for(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Return channels-last, but on a CPU for networks whose convolutions have channels that are no multiple of 8.

    PyTorch 2.14 on a CPU without AVX-512 crashes in the backward pass of such a network in channels-last.
    """
    narrow = any(isinstance(module, nn.Conv2d) and module.out_channels % 8 for module in model.modules())
    return torch.contiguous_format if device.type == "cpu" and narrow else torch.channels_last


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that an allocation failed, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error) or "MPS backend out of memory" in str(error)
