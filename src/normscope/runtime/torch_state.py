"""What torch keeps for all models: random numbers, and the modes that `with` statements switch on and off."""

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import overrides
from torch.backends import cuda

Function = Callable[..., Any]
"""One of torch's, as a mode that `with` switches on gets to see it ..."""

Args = tuple[Any, ...]
"""... with what it is called with by position ..."""

Kwargs = dict[str, Any]
"""... and by name."""

_KERNELS = {
    cuda.flash_sdp_enabled: cuda.enable_flash_sdp,
    cuda.mem_efficient_sdp_enabled: cuda.enable_mem_efficient_sdp,
    cuda.math_sdp_enabled: cuda.enable_math_sdp,
    cuda.cudnn_sdp_enabled: cuda.enable_cudnn_sdp,
}
"""Which kernels attention may take."""


class Modes:
    """This thread's gradient mode and function modes, and attention's kernels, as they are now: an interrupt in front
    of the `__exit__` of `torch.no_grad()`, say, leaves it switched on."""

    def __init__(self) -> None:
        self._grad_enabled = torch.is_grad_enabled()
        self._function_modes = overrides._get_current_function_mode_stack()
        self._kernels = {enabled: enabled() for enabled in _KERNELS}

    def restore(self) -> None:
        """Switch back what is otherwise."""
        if (now := overrides._get_current_function_mode_stack()) != self._function_modes:
            for _ in now:
                overrides._pop_mode()
            for mode in self._function_modes:
                overrides._push_mode(mode)
        if torch.is_grad_enabled() is not self._grad_enabled:
            torch.set_grad_enabled(self._grad_enabled)
        for enabled, was in self._kernels.items():
            if enabled() is not was:
                _KERNELS[enabled](was)


class FunctionMode(overrides.TorchFunctionMode):
    """A function mode that is left without an error of its own where an interrupt has kept torch from putting it back:
    it takes each mode off for as long as that runs."""

    def __exit__(self, *error: object) -> None:
        if self in overrides._get_current_function_mode_stack():
            super().__exit__(*error)


class RandomNumbers:
    """Where torch's generators stand now, on the CPU and some GPUs, and Python's and numpy's: a model may draw from
    any of them."""

    def __init__(self, gpus: Sequence[int]) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._cpu = torch.get_rng_state()
        self._gpus = {gpu: torch.cuda.get_rng_state(gpu) for gpu in gpus}

    def restore(self) -> None:
        """Set them back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        for gpu, state in self._gpus.items():
            torch.cuda.set_rng_state(state, gpu)


class SharedRandomNumbers:
    """`RandomNumbers` for contexts in several threads, all of which draw from the same generators.

    Of contexts that overlap, one that is left while a later one is still open leaves its state to that one, so that in
    the end the generators stand where they stood before the first.
    """

    _open: ClassVar[list["SharedRandomNumbers"]] = []
    _lock: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self, gpus: Sequence[int]) -> None:
        with self._lock:
            self._found = [RandomNumbers(gpus)]
            self._open.append(self)

    def restore(self) -> None:
        """Set them back, or leave that to a context that is still open."""
        with self._lock:
            place = self._open.index(self)
            self._open.remove(self)
            if place < len(self._open):
                self._open[place]._found += self._found
            else:
                for each in self._found:  # the earliest last: the contexts need not be on the same GPUs
                    each.restore()
