"""The line that an optimizer's own first update walks along: θ + lr · u(θ), for one mini-batch.

For SGD u = −∇ℓ_B, so that this is the line of figure 3; for Adam u is nearly −sign ∇ℓ_B. Updates are taken as
proportional to the rate, and warmup is left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.descent.loop import check_start
from normscope.descent.optimizers import make_optimizer
from normscope.descent.recipe import Recipe, preparation
from normscope.errors import InvalidConfig, InvalidModel, NormscopeError, raised
from normscope.model.loss import checked_loss, default_loss, readable_errors
from normscope.model.state import untouched

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
    grows_with_gradient: bool
    """Whether a larger gradient makes a larger update: for SGD, but not for Adam, nor where gradients are clipped."""
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
        InvalidBatch, InvalidModel, DeviceError: see `loss.checked_loss`; also where the loss is not finite
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
        recipe = replace(recipe, warmup=0)
        with readable_step():
            several = updates(model, recipe, gradients)
            update = next(several)
            settled = next(islice(several, REPEATS - 2, None))
            reset(parameters, origin)
            doubled = next(updates(model, recipe, [g if g is None else 2 * g for g in gradients]))
        first = norm_of(update)
        grows = norm_of(doubled) > 1.5 * first
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

        yield UpdateLine(before, ratio if np.isfinite(ratio) and ratio > 0 else 1.0, grows, loss_at)


def updates(model: nn.Module, recipe: Recipe, gradients: Sequence[Tensor | None]) -> Iterator[list[Tensor]]:
    """The updates at rate 1 that a fresh optimizer makes, one after the other, of one and the same gradient."""
    optimizer = make_optimizer(recipe.optimizer, model, 1.0)
    prepare = preparation(optimizer, recipe)
    parameters = [p for p in model.parameters() if p.requires_grad]
    while True:
        before = [p.detach().clone() for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        prepare(0)
        optimizer.step()
        yield [p.detach() - q for p, q in zip(parameters, before, strict=True)]


def reset(parameters: Sequence[nn.Parameter], origin: Mapping[Tensor, Tensor]) -> None:
    """Put every parameter back to its value before the first step."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(origin[parameter])


def norm_of(update: Sequence[Tensor]) -> float:
    """Euclidean length of an update over all parameters."""
    return float(torch.stack([part.double().norm() for part in update]).norm())


@contextmanager
def readable_step() -> Iterator[None]:
    """Say in one line what the optimizer's step raised."""
    try:
        yield
    except NormscopeError:
        raise
    except Exception as error:
        raise InvalidConfig(f"the optimizer's step raised {raised(error)}") from error
