"""The line along the first update of a recipe's fresh optimizer, and how much larger its later updates get."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from normscope.descent.loop import check_start
from normscope.descent.optimizers import make_optimizer
from normscope.descent.recipe import Recipe, preparation
from normscope.descent.step_line import StepLine, step_line
from normscope.descent.update import readable_step, set_gradients
from normscope.errors import InvalidModel
from normscope.model.batch import Batch
from normscope.model.vector_norm import norm_of_all
from normscope.runtime.interrupts import restoring

REPEATS = 30
"""Steps along one and the same gradient until momentum is taken for settled (0.9^30 = 0.04)."""


@dataclass(frozen=True)
class Growth:
    """How an optimizer's updates grow."""

    amplification: float
    """Length of the update once it has settled on a constant gradient, over that of the first: about
    1/(1 − momentum) for SGD, 1 for Adam."""
    with_gradient: bool
    """Whether a larger gradient makes a larger update: for SGD, but not for Adam, nor where gradients are clipped."""


@restoring
def first_update_line(
    model: nn.Module, batch: Batch, recipe: Recipe, *, seed: int = 0
) -> Iterator[tuple[StepLine, Growth]]:
    """The first update of the recipe's optimizer in training mode, clipped as the recipe says and without warmup, as a
    line to walk along; the model comes back untouched.

    Raises:
        InvalidBatch, InvalidModel, DeviceError: see `loss.checked_loss`; also where the loss is not finite
            before any step, or its gradient is zero.
        InvalidConfig: where the optimizer cannot be made or stepped.
    """
    found: list[Growth] = []

    def direction(parameters: list[nn.Parameter], starts: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        with readable_step():
            settled = norm_of_all(next(islice(_updates(model, recipe, parameters, gradients), REPEATS - 1, None)))
            torch._foreach_copy_(parameters, starts)  # pyright: ignore
            doubled = norm_of_all(next(_updates(model, recipe, parameters, gradients, scale=2)))
            torch._foreach_copy_(parameters, starts)  # pyright: ignore
            update = next(_updates(model, recipe, parameters, gradients))  # last: each is as large as the model
        gradients.clear()
        first, settled = float(norm_of_all(update)), float(settled)
        ratio = settled / first if first > 0 else 1.0
        found.append(Growth(ratio if np.isfinite(ratio) and ratio > 0 else 1.0, float(doubled) > 1.5 * first))
        return update

    with step_line(model, batch, recipe.loss_fn, direction=direction, seed=seed) as line:
        check_start(float(line.loss))
        if line.gradient_norm == 0:
            raise InvalidModel("the gradient of the first batch is zero everywhere: no rate moves this model")
        yield line, found[0]


def _updates(
    model: nn.Module, recipe: Recipe, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor], scale: float = 1
) -> Iterator[list[Tensor]]:
    """The updates at rate 1 that a fresh optimizer makes, one after the other, of one and the same gradient, scaled."""
    optimizer = make_optimizer(recipe.optimizer, model, 1.0)
    prepare = preparation(optimizer, replace(recipe, warmup=0))
    while True:
        moves = [p.detach().neg() for p in parameters]
        set_gradients(optimizer, parameters, list(gradients))
        for p in parameters:
            if p.grad is not None and scale != 1:
                p.grad *= scale
        prepare(0)
        optimizer.step()
        for move, p in zip(moves, parameters, strict=True):
            move.add_(p.detach())
        yield moves
        del moves  # as large as the model
