"""The line that an optimizer's own first update walks along: θ + lr · u(θ), for one mini-batch.

For SGD u = −∇ℓ_B, so that this is the line of figure 3; for Adam u is nearly −sign ∇ℓ_B. Updates are taken as
proportional to the rate, and warmup is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.check.tries import Recipe, check_start, make_optimizer, preparation
from normscope.errors import InvalidConfig, InvalidModel, NormscopeError, one_line
from normscope.objective import checked_loss, default_loss, readable_errors
from normscope.untouched import untouched

REPEATS = 30
"""Steps along one and the same gradient until momentum is taken for settled (0.9^30 = 0.04)."""


@dataclass(frozen=True)
class UpdateLine:
    """A mini-batch's loss along the optimizer's first update."""

    loss: float
    """ℓ_B(θ)."""
    amplification: float
    """Length of the update once it has settled on a constant gradient, over that of the first: about
    1/(1 − momentum) for SGD, 1 for Adam."""
    changes: dict[nn.Parameter, float]
    """‖u‖ / ‖θ‖ of every parameter that moves, at rate 1; inf where the parameter is zero."""
    loss_at: Callable[[float], Tensor]
    """Moves the model to θ + lr · u, leaves it there and gives the loss: a float64 scalar on the device."""

    def relative_loss(self, lrs: Sequence[float]) -> np.ndarray:
        """ℓ_B(θ + lr · u) / ℓ_B(θ) at every rate: (lr,) float64."""
        return torch.stack([self.loss_at(float(lr)) for lr in lrs]).cpu().numpy() / self.loss


@contextmanager
def update_line(model: nn.Module, batch: Any, recipe: Recipe, *, seed: int = 0) -> Iterator[UpdateLine]:
    """The first update of the recipe's optimizer in training mode, and a way to walk along it; the model comes back
    untouched. Every point sees the same buffers and random numbers.

    Raises:
        InvalidBatch, InvalidModel, DeviceError: see `objective.checked_loss`; also where the loss is not finite and
            positive before any step, or its gradient is zero or not finite.
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
        starts = [origin[p] for p in parameters]
        update, settled = _updates(model, recipe, parameters)
        first = _norm(update)
        ratio = _norm(settled) / first if first > 0 else 1.0
        buffers = list(dict.fromkeys(model.buffers()))
        buffer_starts = [origin[b] for b in buffers]

        def loss_at(lr: float) -> Tensor:
            with torch.no_grad(), readable_errors():
                for parameter, start, moved in zip(parameters, starts, update, strict=True):
                    parameter.copy_(start).add_(moved, alpha=lr)
                for buffer, start in zip(buffers, buffer_starts, strict=True):
                    buffer.copy_(start)
                torch.manual_seed(seed)
                return (recipe.loss_fn or default_loss)(model, batch).double().reshape(())

        changes = {
            p: _norm([u]) / size if (size := _norm([start])) > 0 else float("inf")
            for p, start, u in zip(parameters, starts, update, strict=True)
            if bool(u.any())
        }
        yield UpdateLine(before, ratio if np.isfinite(ratio) and ratio > 0 else 1.0, changes, loss_at)


def _updates(model: nn.Module, recipe: Recipe, parameters: list[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """The optimizer's first update at rate 1 on the gradients in `.grad`, and the one it settles on."""
    optimizer = make_optimizer(recipe.optimizer, model, 1.0)
    prepare = preparation(optimizer, replace(recipe, warmup=0))
    updates: list[list[Tensor]] = []
    with _readable_step():
        prepare(0)
        for repeat in range(REPEATS):
            before = [p.detach().clone() for p in parameters] if repeat in (0, REPEATS - 1) else None
            optimizer.step()
            if before is not None:
                updates.append([p.detach() - q for p, q in zip(parameters, before, strict=True)])
    return updates[0], updates[1]


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.double().norm() for t in tensors]).norm())


@contextmanager
def _readable_step() -> Iterator[None]:
    try:
        yield
    except NormscopeError:
        raise
    except Exception as error:
        raise InvalidConfig(f"the optimizer's step raised {type(error).__name__}: {one_line(error)}") from error
