"""What one step tells: the relative loss along the optimizer's own first update, where the search for rates starts.

With u(θ) the optimizer's first update at rate 1 (for SGD −∇ℓ_B, for Adam nearly −sign ∇ℓ_B),

    relative loss(lr) = ℓ_B(θ + lr · u(θ)) / ℓ_B(θ).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.check.tries import Recipe, check_start, make_optimizer, preparation
from normscope.errors import InvalidConfig, InvalidModel, NormscopeError, raised
from normscope.objective import checked_loss, default_loss, readable_errors
from normscope.outcome import DIVERGENCE_FACTOR
from normscope.probes.relative_loss import crossing, lowest_step_size
from normscope.untouched import untouched

DOUBLED = 2.0
"""The relative loss of one step above which several diverge. Measured on small networks: where one step doubles the
loss lies within about half a decade of the first divergence in 100 steps of SGD."""

HALF_A_DECADE = 10**0.5
"""Measured on the same networks: many steps need a smaller rate than the first one, by about this much."""

REPEATS = 30
"""Steps along one and the same gradient until momentum is taken for settled (0.9^30 = 0.04)."""


@dataclass(frozen=True)
class FirstStep:
    """The relative loss after one step, and how much larger later steps along the same gradient get."""

    lrs: np.ndarray
    relative_loss: np.ndarray
    """(lr,): as the probe of the same name, along the optimizer's update."""
    grows_with_gradient: bool
    """Whether a larger gradient makes a larger update: for SGD, but not for Adam, nor where gradients are clipped."""
    amplification: float
    """Length of the optimizer's update once it has settled on a constant gradient, over that of its first: about
    1/(1 − momentum) for SGD, 1 for Adam."""

    @property
    def diverging_lr(self) -> float:
        """Where the search for divergence starts; inf where that does not lie within the rates.

        Updates that grow with the gradient feed on themselves: when one step already doubles the loss, the following
        ones blow it up. Those that do not have to pass the threshold of divergence in a single step.
        """
        level = DOUBLED if self.grows_with_gradient else DIVERGENCE_FACTOR
        return crossing(self.lrs, self.relative_loss, level) / self.amplification

    @property
    def useful_lr(self) -> float:
        """Where the search for learning starts: half a decade below the middle, in logarithms, between the lowest loss
        of one settled step and where it is no longer below the start. NaN where no loss is finite."""
        lowest = lowest_step_size(self.lrs, self.relative_loss)
        useless = crossing(self.lrs, self.relative_loss, 1.0)
        middle = math.sqrt(lowest * useless if math.isfinite(useless) else lowest**2)
        return middle / self.amplification / HALF_A_DECADE


def first_step(model: nn.Module, batch: Any, recipe: Recipe, lrs: Sequence[float], *, seed: int) -> FirstStep:
    """Relative loss at θ + lr · u for every rate, in training mode; the model comes back untouched.

    Updates are taken as proportional to the rate, and warmup is left out: this starts a search, and judges nothing.

    Raises:
        InvalidBatch, InvalidModel, DeviceError: see `objective.checked_loss`; also where the loss is not finite
            before any step, or its gradient is zero.
        InvalidConfig: where the optimizer cannot be made or stepped.
    """
    with untouched(model) as origin, readable_errors():
        model.train()
        torch.manual_seed(seed)
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
            doubled = next(updates(model, recipe, [g if g is None else 2 * g for g in gradients]))
            reset(parameters, origin)
            several = updates(model, recipe, gradients)
            update = next(several)
            settled = next(islice(several, REPEATS - 2, None))
        first, large, late = (norm_of(u) for u in (update, doubled, settled))
        after: list[Tensor] = []
        with torch.no_grad():
            for lr in lrs:
                reset(parameters, origin)
                for parameter, direction in zip(parameters, update, strict=True):
                    parameter.add_(direction, alpha=float(lr))
                torch.manual_seed(seed)
                after.append((recipe.loss_fn or default_loss)(model, batch).double().reshape(()))
        losses = torch.stack(after).cpu().numpy()
    # A loss that is zero or negative has no ratio: then only overflow tells.
    relative = losses / before if before > 0 else np.where(np.isfinite(losses), 1.0, np.inf)
    ratio = late / first if first > 0 and math.isfinite(late) else 1.0
    return FirstStep(np.asarray(lrs), relative, large > 1.5 * first, ratio or 1.0)


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
