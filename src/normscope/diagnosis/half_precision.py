"""Numbers in half precision: how large they are where they are made, and the same program in a wider format.

Every floating-point output of a function of torch is looked at where it is made, for the module that makes it:

    share = max |y| / max(format),    max(float16) = 65,504,  max(bfloat16) = 3.4e38.

What masks are made of, −inf and the format's lowest number, is left out.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscope.model.batch import Batch, map_tensors
from normscope.model.layers import running
from normscope.runtime.torch_state import Args, Function, Kwargs

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Range:
    """The largest number in half precision; "" and NaN where there is none."""

    layer: str = ""
    format: str = ""
    largest: float = math.nan
    share: float = math.nan
    """Of the format's largest number; inf where one is not finite."""


NOWHERE = Range()


class Watch(TorchFunctionMode):
    """Looks at every output in half precision while the model runs; see `watching`."""

    def __init__(self, inside: list[str]) -> None:
        super().__init__()
        self.inside = inside
        self.largest = Range()
        self.first_overflow = Range()

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.dtype in HALF and output.numel():
            self._look(output.detach())
        return output

    def _look(self, output: Tensor) -> None:
        top = torch.finfo(output.dtype).max
        size = output.float()
        size = torch.where(size <= -0.99 * top, 0.0, size.abs())
        largest = float(torch.nan_to_num(size, nan=math.inf, posinf=math.inf).max())
        here = Range(self.inside[-1] if self.inside else "", str(output.dtype)[6:], largest, largest / top)
        if not largest < math.inf:
            here = Range(here.layer, here.format, math.inf, math.inf)
            self.first_overflow = self.first_overflow if self.first_overflow.format else here
        if not here.share <= self.largest.share:
            self.largest = here


@contextmanager
def watching(model: nn.Module) -> Iterator[Watch]:
    """A watch that knows which module is running."""
    with running(model) as inside, Watch(inside) as watch:
        yield watch


@contextmanager
def wider() -> Iterator[None]:
    """While it lasts, whatever is autocast to float16 is autocast to bfloat16, which has float32's range."""
    enter = torch.autocast.__enter__

    def entered(self: Any) -> Any:
        result = enter(self)
        if torch.get_autocast_dtype(self.device) == torch.float16:
            torch.set_autocast_dtype(self.device, torch.bfloat16)
        return result

    torch.autocast.__enter__ = entered
    try:
        yield
    finally:
        torch.autocast.__enter__ = enter


def in_float32(model: nn.Module, batch: Batch) -> tuple[nn.Module, Batch]:
    """The two in float32 where the model's own weights are float16; else as they are."""
    if not any(p.dtype == torch.float16 for p in model.parameters()):
        return model, batch
    return copy.deepcopy(model).float(), map_tensors(batch, lambda t: t.float() if t.dtype == torch.float16 else t)
