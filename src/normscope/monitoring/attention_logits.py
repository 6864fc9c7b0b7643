"""The largest logit in front of a softmax inside the model, whoever calls it and by whatever kernel."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from normscope.runtime.torch_state import Args, Kwargs

EXAMPLES = 2
"""Where a fused kernel never writes its logits down, they are computed for so many of the batch's examples."""


class AttentionLogits(TorchDispatchMode):
    """While it is entered, collects the largest logit of every softmax and of every fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        """One scalar a call, on the device; masked logits of fused attention count too."""

    def __torch_dispatch__(self, func: Any, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        """Run the operation as it is, and look at what went in."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in ("_softmax", "_safe_softmax"):
            self.found.append(args[0].amax().double())
        elif name.startswith("_scaled_dot_product") and "backward" not in name:
            query, key = args[0][:EXAMPLES], args[1][:EXAMPLES]
            if query.ndim == 4 and query.shape[1] != key.shape[1]:
                key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            scale = kwargs.get("scale") or query.shape[-1] ** -0.5
            self.found.append((query @ key.transpose(-2, -1)).amax().double() * scale)
        return func(*args, **kwargs)

    def largest(self) -> Tensor | None:
        """The largest of all, as a float64 scalar on the device; None where there was no softmax."""
        return torch.stack(self.found).amax() if self.found else None
