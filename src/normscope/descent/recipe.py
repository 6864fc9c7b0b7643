"""How a descent is made, whatever its rate and seed: optimizer, steps, loss, schedule, clipping and precision."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from normscope.descent.optimizers import OptimizerFactory, make_optimizer
from normscope.descent.precision import autocast
from normscope.errors import InvalidConfig, raised
from normscope.model.batch import Batch
from normscope.model.loss import LossFn, default_loss
from normscope.model.state import untouched

SchedulerFactory = Callable[[torch.optim.Optimizer], Any]
"""`scheduler(optimizer)` gives an `LRScheduler`, which is stepped once after every step of the optimizer."""


@dataclass(frozen=True)
class Recipe:
    """What all trials have in common, whatever their rate and seed."""

    optimizer: OptimizerFactory
    steps: int
    loss_fn: LossFn | None = None
    warmup: int = 0
    """Steps over which the rate rises linearly to its full value."""
    clip_norm: float | None = None
    """The gradient's Euclidean norm is clipped to this."""
    scheduler: SchedulerFactory | None = None
    """In place of a warmup."""
    accumulate: int = 1
    """Mini-batches whose mean gradient is one step's."""
    precision: str = "fp32"
    """See `precision.PRECISIONS`."""
    state: Mapping[str, Any] | None = None
    """A state_dict of the optimizer, with whose state every trial starts."""
    cooldown: range = range(0)
    """Steps over which the rate falls linearly to 0."""


def preparation(optimizer: torch.optim.Optimizer, recipe: Recipe) -> Callable[[int], None]:
    """What happens between gradient and step: the norm is clipped, warmup and cooldown set the rate."""
    full = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def before_step(index: int) -> None:
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        share = None
        if index in recipe.cooldown:
            share = (recipe.cooldown.stop - index) / len(recipe.cooldown)
        elif index <= recipe.warmup and recipe.warmup:
            share = min(1.0, (index + 1) / recipe.warmup)
        if share is not None:
            for group, lr in zip(optimizer.param_groups, full, strict=True):
                group["lr"] = lr * share

    return before_step


def scheduled_rates(recipe: Recipe, model: nn.Module) -> tuple[float, ...]:
    """The rate of every step over that of the first, by the recipe's scheduler; none where there is no scheduler."""
    if recipe.scheduler is None:
        return ()
    with warnings.catch_warnings(), untouched(model):
        warnings.simplefilter("ignore")  # that no step is taken
        optimizer = make_optimizer(recipe.optimizer, model, 1.0)
        made, rates = schedule(optimizer, recipe), []
        for _ in range(recipe.steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            if made is not None:
                made.step()
    return tuple(rate / rates[0] if rates[0] else rate for rate in rates)


def loss_in_precision(recipe: Recipe, device: str) -> LossFn | None:
    """The recipe's loss with its forward pass in the recipe's precision; the loss itself where that is fp32."""
    if recipe.precision == "fp32":
        return recipe.loss_fn
    cast = autocast(recipe.precision, device)

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        with cast():
            return (recipe.loss_fn or default_loss)(model, batch)

    return loss_fn


def schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> LRScheduler | None:
    """The recipe's scheduler of this optimizer; None where it has none.

    Raises:
        InvalidConfig: what it gives is none, or what it raised.
    """
    if recipe.scheduler is None:
        return None
    try:
        made = recipe.scheduler(optimizer)
    except Exception as error:
        raise InvalidConfig(f"scheduler(optimizer) raised {raised(error)}") from error
    if not isinstance(made, LRScheduler):
        raise InvalidConfig(f"scheduler(optimizer) gave a {type(made).__name__}, not a torch LRScheduler")
    return made
