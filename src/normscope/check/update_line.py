"""The line that an optimizer's own first update walks along: θ + lr · u(θ), for one mini-batch.

For SGD u = −∇ℓ_B, so that this is the line of figure 3; for Adam u is nearly −sign ∇ℓ_B. Updates are taken as
proportional to the rate, and warmup is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.check.first_step import REPEATS, norm_of, readable_step, reset, updates
from normscope.check.tries import Recipe, check_start
from normscope.errors import InvalidModel
from normscope.objective import checked_loss, default_loss, readable_errors
from normscope.untouched import untouched


@dataclass(frozen=True)
class UpdateLine:
    """A mini-batch's loss along the optimizer's first update."""

    loss: float
    """ℓ_B(θ)."""
    amplification: float
    """Length of the update once it has settled on a constant gradient, over that of the first: about
    1/(1 − momentum) for SGD, 1 for Adam."""
    loss_at: Callable[[float], Tensor]
    """Moves the model to θ + lr · u, leaves it there and gives the loss: a float64 scalar on the device."""

    def relative_loss(self, lrs: Sequence[float]) -> np.ndarray:
        """ℓ_B(θ + lr · u) / ℓ_B(θ) at every rate: (lr,) float64. A loss that starts at zero or below has no ratio: then
        only overflow tells, as inf."""
        losses = torch.stack([self.loss_at(float(lr)) for lr in lrs]).cpu().numpy()
        return losses / self.loss if self.loss > 0 else np.where(np.isfinite(losses), 1.0, np.inf)


@contextmanager
def update_line(model: nn.Module, batch: Any, recipe: Recipe, *, seed: int = 0) -> Iterator[UpdateLine]:
    """The first update of the recipe's optimizer in training mode, and a way to walk along it; the model comes back
    untouched. Every point sees the same buffers and random numbers.

    Raises:
        InvalidBatch, InvalidModel, DeviceError: see `objective.checked_loss`; also where the loss is not finite
            before any step, or its gradient is zero.
        InvalidConfig: where the optimizer cannot be made or stepped.
    """
    with untouched(model) as origin, readable_errors():
        model.train()
        torch.manual_seed(seed)
        with torch.enable_grad():
            loss = checked_loss(model, batch, recipe.loss_fn)
            before = float(loss.detach().double())
            check_start(before)
            parameters = [p for p in model.parameters() if p.requires_grad]
            for parameter in parameters:
                parameter.grad = None
            loss.backward()
        if not any(bool(p.grad.any()) for p in parameters if p.grad is not None):
            raise InvalidModel("the gradient of the first batch is zero everywhere: no rate moves this model")
        gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
        with readable_step():
            several = updates(model, replace(recipe, warmup=0), gradients)
            update = next(several)
            settled = next(islice(several, REPEATS - 2, None))
        first = norm_of(update)
        ratio = norm_of(settled) / first if first > 0 else 1.0
        buffers = list(dict.fromkeys(model.buffers()))

        def loss_at(lr: float) -> Tensor:
            with torch.no_grad(), readable_errors():
                reset(parameters, origin)
                for parameter, direction in zip(parameters, update, strict=True):
                    parameter.add_(direction, alpha=lr)
                for buffer in buffers:
                    buffer.copy_(origin[buffer])
                torch.manual_seed(seed)
                return (recipe.loss_fn or default_loss)(model, batch).double().reshape(())

        yield UpdateLine(before, ratio if np.isfinite(ratio) and ratio > 0 else 1.0, loss_at)
