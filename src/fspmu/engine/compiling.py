"""torch.compile around a network, where it works; one line of notice where it does not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fspmu.engine.device import is_out_of_memory
from fspmu.models.classifier import Classifier, Output


class Compiled:
    """A network compiled for the sizes of the first batches of its passes, so that the short last ones do not compile it again."""

    def __init__(self, model: Classifier, device: torch.device, notice: Callable[[str], None]) -> None:
        self._model, self._notice = model, notice
        mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
        self._network: Callable[[Tensor], Any] = torch.compile(model, dynamic=False, mode=mode)
        self._sizes: set[int] = set()
        self._first = True
        self._failed = False

    def for_a_pass(self) -> "Compiled":
        """Return the same network, ready to take the size of the next batch for that of a whole pass."""
        self._first = True
        return self

    def __call__(self, images: Tensor) -> Output:
        """Return what the network says of `images` (B, C, H, W), compiled where it can be."""
        if self._first:
            self._sizes.add(len(images))
            self._first = False
        if self._failed or len(images) not in self._sizes:
            return self._plain(images)
        try:
            return Output(*self._network(images))
        except Exception as error:  # whatever a compiler may raise: without it everything still works
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            self._failed = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._notice(f"--compile does not work here ({type(error).__name__}: {reason[:120]}); going on without it")
            return self._plain(images)

    def _plain(self, images: Tensor) -> Output:
        output: Output = self._model(images)
        return output
