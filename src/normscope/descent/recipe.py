"""How a descent is made, whatever its rate and seed: optimizer, steps, loss, warmup and clipping."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from normscope.descent.optimizers import OptimizerFactory
from normscope.model.loss import LossFn


@dataclass(frozen=True)
class Recipe:
    """What all tries have in common, whatever their rate and seed."""

    optimizer: OptimizerFactory
    steps: int
    loss_fn: LossFn | None = None
    warmup: int = 0
    """Steps over which the rate rises linearly to its full value."""
    clip_norm: float | None = None
    """The gradient's Euclidean norm is clipped to this."""


def preparation(optimizer: torch.optim.Optimizer, recipe: Recipe) -> Callable[[int], None]:
    """What happens between gradient and step: the norm is clipped, and warmup sets the rate."""
    full = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def before_step(index: int) -> None:
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        if index < recipe.warmup:
            for group, lr in zip(optimizer.param_groups, full, strict=True):
                group["lr"] = lr * (index + 1) / recipe.warmup
        elif index == recipe.warmup:
            for group, lr in zip(optimizer.param_groups, full, strict=True):
                group["lr"] = lr

    return before_step
