"""Which numbers a forward pass computes with, and how gradients are kept in float16's range."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from normscope.errors import unknown

Autocast = Callable[[], AbstractContextManager[Any]]

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What the forward pass computes with; weights, gradients and sums over a mini-batch's losses stay in fp32."""


def autocast(precision: str, device: str) -> Autocast:
    """Makes the context of a forward pass.

    Raises:
        InvalidConfig: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    dtype = PRECISIONS[precision]
    return nullcontext if dtype is None else partial(torch.autocast, torch.device(device).type, dtype=dtype)


def grad_scaler(precision: str, device: str) -> torch.amp.GradScaler | None:
    """Scales the loss of an fp16 pass and skips steps whose gradients overflow, as torch's recipe has it; else None."""
    return torch.amp.GradScaler(torch.device(device).type) if precision == "fp16" else None
