"""torch.compile around a network, where it works."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fspmu.engine.device import is_out_of_memory
from fspmu.models.classifier import Classifier, Output


class Compiled:
    """A network that is compiled for batch sizes which come twice in a row: the short last batch of a pass does not compile it again.

    `failed` is told why when it cannot be compiled; the network itself does the work then, and from there on.
    """

    def __init__(self, model: Classifier, device: torch.device, failed: Callable[[Exception], None]) -> None:
        self._model, self._failed = model, failed
        mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
        self._network: Callable[[Tensor], Any] | None = torch.compile(model, dynamic=False, mode=mode)
        self._sizes: set[int] = set()
        self._last = -1

    @property
    def used(self) -> bool:
        """Whether anything went through the compiled form, and may again."""
        return self._network is not None and bool(self._sizes)

    def give_up(self) -> None:
        """Do without the compiler from now on."""
        self._network = None

    def __call__(self, images: Tensor) -> Output:
        """Return what the network says of `images` (B, C, H, W), compiled where it can be."""
        if len(images) == self._last:
            self._sizes.add(len(images))
        self._last = len(images)
        if self._network is not None and len(images) in self._sizes:
            try:
                return Output(*self._network(images))
            except Exception as error:  # whatever a compiler may raise: without it everything still works
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise
                self.give_up()
                self._failed(error)
        output: Output = self._model(images)
        return output
