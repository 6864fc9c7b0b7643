"""The one descent loop. Training, stable rates and the paper's first steps all walk in it."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from normscope.errors import InvalidBatch
from normscope.model.loss import LossFn, default_loss


@dataclass(frozen=True)
class Step:
    """One mini-batch of a descent, before the step on it is taken."""

    index: int
    """How many steps were taken before: 0 for the first mini-batch."""
    batch: Any
    loss: Tensor
    """Scalar on the device, detached: reading it is the reader's synchronization."""


def descend(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    *,
    loss_fn: LossFn | None = None,
    steps: int | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Iterator[Step]:
    """Walk down the loss, mini-batch by mini-batch, in the mode the model is in.

    A `Step` is yielded when the gradient of its mini-batch is known (in `.grad`) and *before* the optimizer moves: the
    reader may probe the model there, and a `break` leaves it where it stands. A diverged loss is passed on as it is.

    Args:
        steps: how many steps at most; None for as many as there are batches.
        autocast: makes the context that the forward pass runs in, for example bf16 autocast.
        before_step: called with the index once the reader goes on, before the optimizer moves: clip gradients, set a
            warmup's rate.
        after_step: called with the index once the optimizer has moved, before the next forward pass changes anything:
            save a checkpoint.
    """
    loss_fn = loss_fn or default_loss
    for index, batch in enumerate(islice(batches, steps)):
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = loss_fn(model, batch)
        loss.backward()
        yield Step(index, batch, loss.detach())
        if before_step is not None:
            before_step(index)
        optimizer.step()
        if after_step is not None:
            after_step(index)


def check_start(loss: float) -> None:
    """A loss that is not finite before any step leaves nothing to compare with."""
    if not math.isfinite(loss):
        where = "look for NaN in the batch, or an initialization that overflows"
        raise InvalidBatch(f"the loss is {loss:g} before any step: {where}")
