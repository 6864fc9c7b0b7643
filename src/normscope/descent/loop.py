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
from normscope.model.batch import Batch
from normscope.model.loss import LossFn, default_loss


@dataclass(frozen=True)
class Step:
    """One mini-batch of a descent, before the step on it is taken."""

    index: int
    """How many steps were taken before: 0 for the first mini-batch."""
    batch: Batch
    """The last of them where gradients are accumulated over several."""
    loss: Tensor
    """Scalar on the device, detached: reading it is the reader's synchronization."""


def descend(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    loss_fn: LossFn | None = None,
    steps: int | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    accumulate: int = 1,
    scaler: torch.amp.GradScaler | None = None,
    first: int = 0,
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
        accumulate: mini-batches whose mean gradient is one step's; the step's loss is their mean.
        scaler: of an fp16 pass; gradients are unscaled before the step is yielded, and it skips those that overflowed.
        first: the index of the first step, where a descent goes on.
    """
    loss_fn = loss_fn or default_loss
    walked = iter(batches)
    index = first
    while steps is None or index < first + steps:
        taken = list(islice(walked, accumulate))
        if len(taken) < accumulate:
            return
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for batch in taken:
            with torch.enable_grad():
                with autocast():
                    loss = loss_fn(model, batch)
                share = loss / accumulate if accumulate > 1 else loss
                (share if scaler is None else scaler.scale(share)).backward()
            losses.append(loss.detach())
        if scaler is not None:
            scaler.unscale_(optimizer)
        yield Step(index, taken[-1], losses[0] if accumulate == 1 else torch.stack(losses).mean())
        if before_step is not None:
            before_step(index)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if after_step is not None:
            after_step(index)
        index += 1


def check_start(loss: float) -> None:
    """A loss that is not finite before any step leaves nothing to compare with."""
    if not math.isfinite(loss):
        where = "look for NaN in the batch, or an initialization that overflows"
        raise InvalidBatch(f"the loss is {loss:g} before any step: {where}")
