"""The moments that batch norm takes anyway: where a layer's output goes straight into one, it need not be read again.

Batch norm in training mode blends the mean and the unbiased variance of its input into its running statistics; with a
momentum of 1 those are what is left there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Found = Callable[[str, Tensor, Tensor], None]
"""Called with a layer's name, and the mean and biased variance of each channel: (channels,), in float64."""


class BatchNormMoments:
    """Takes outputs that the batch norm registered behind their layer is expected to be called with next."""

    def __init__(self, model: nn.Module, found: Found) -> None:
        modules = list(model.modules())
        self._behind = {
            module: norm
            for module, norm in pairwise(modules)
            if type(norm) in BATCH_NORMS and norm.training and norm.track_running_stats
        }
        self._found = found
        self._waiting: tuple[str, nn.Module, Tensor, int] | None = None

    def expect(self, name: str, module: nn.Module, output: Tensor, dim: int) -> bool:
        """Whether the moments of this output may come from a batch norm: then either `found` is called with them, or
        `left_over` gives the output back."""
        norm = self._behind.get(module)
        if norm is None or dim != 1 or output.device.type != "cpu" or output.dtype != torch.float32:
            return False
        if output.is_inference():  # its versions are not counted
            return False
        self._waiting = name, norm, output, output._version
        return True

    def left_over(self) -> tuple[str, Tensor | None] | None:
        """A name that was expected in vain and its output, None where that has been written to since; None if there is
        no such name. To be asked before the next output is taken, and at the end."""
        if self._waiting is None:
            return None
        name, _, output, version = self._waiting
        self._waiting = None
        return name, output if output._version == version else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While inside, batch norms hand on their moments; their running statistics are lost."""
        norms: set[Any] = set(self._behind.values())
        momenta = {norm: norm.momentum for norm in norms}
        handles = [norm.register_forward_hook(self._called) for norm in norms]
        try:
            for norm in norms:
                norm.momentum = 1.0
            yield
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
            for handle in handles:
                handle.remove()

    def _called(self, norm: Any, inputs: tuple[Any, ...], _output: object) -> None:
        if self._waiting is None or not inputs:
            return
        name, expected, output, version = self._waiting
        if norm is expected and norm.training and inputs[0] is output and output._version == version:
            self._waiting = None
            count = output.numel() // output.shape[1]
            self._found(name, norm.running_mean.double(), norm.running_var.double() * ((count - 1) / count))
