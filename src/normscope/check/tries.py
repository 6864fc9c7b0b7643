"""One try of one learning rate: a short descent from the start, stopped at once when it diverges."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from normscope.check.mini_batches import on_device
from normscope.descend import descend
from normscope.errors import InvalidBatch, InvalidConfig, NormscopeError, raised, unknown
from normscope.objective import LossFn, output_spread, readable_errors
from normscope.outcome import Outcome, has_diverged, outcome
from normscope.untouched import untouched

OptimizerFactory = Callable[[Any, float], torch.optim.Optimizer]
"""`optimizer(params, lr)` gives a torch optimizer."""

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": lambda params, lr: torch.optim.SGD(params, lr=lr),
    "momentum": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
    "adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr),
}
"""Optimizers by name, with torch's defaults; "momentum" is SGD with momentum 0.9."""


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


@dataclass(frozen=True)
class Try:
    """What became of one rate on one seed."""

    lr: float
    seed: int
    outcome: Outcome
    losses: np.ndarray
    """(steps_taken,): each mini-batch's loss before the step on it; the last may be the diverged one."""

    @property
    def horizon(self) -> np.ndarray:
        """The losses of the last tenth of the steps; empty where it diverged before."""
        return self.losses[:0] if self.outcome is Outcome.DIVERGED else self.losses[-max(1, len(self.losses) // 10) :]

    @property
    def horizon_loss(self) -> float:
        """The mean loss over the last tenth of the steps; NaN where it diverged before."""
        return float(self.horizon.mean()) if len(self.horizon) else float("nan")


def run_try(
    model: nn.Module,
    batches: Iterable[Any],
    lr: float,
    *,
    seed: int,
    recipe: Recipe,
    constant_loss: float,
    start: float | None = None,
) -> Try:
    """Descend from where the model stands for `recipe.steps` steps in training mode; it comes back untouched.

    Torch's generators are set to `seed` first: dropout draws the same numbers at every rate.

    Args:
        constant_loss: L_c, the loss of the best constant output; NaN where it is not known.
        start: the loss of a trained model before the first step, where this is fine-tuning: to learn then means not to
            end above it. None for a fresh model.
    """
    losses: list[float] = []
    best = float("inf")
    with untouched(model), readable_errors():
        model.train()
        torch.manual_seed(seed)
        optimizer = make_optimizer(recipe.optimizer, model, lr)
        device = next(model.parameters()).device
        walked = (on_device(batch, device) for batch in batches)
        before_step = preparation(optimizer, recipe)
        last = None
        for step in descend(
            model, optimizer, walked, loss_fn=recipe.loss_fn, steps=recipe.steps, before_step=before_step
        ):
            losses.append(float(step.loss))
            if step.index == 0:
                check_start(losses[0])
            first = losses[0] if start is None else start
            best = min(best, losses[-1])
            last = step.batch
            if has_diverged(losses[-1], start=first, best=best, constant_loss=constant_loss):
                return Try(lr, seed, Outcome.DIVERGED, np.asarray(losses))
        judged = losses if start is None else [start, *losses[1:]]
        tuning = start is not None
        found = outcome(
            judged,
            constant_loss=constant_loss,
            output_spread=lambda: spread_or_nan(model, last),
            fine_tuning=tuning,
        )
    return Try(lr, seed, found, np.asarray(losses))


def check_start(loss: float) -> None:
    """A loss that is not finite before any step leaves nothing to compare with."""
    if not math.isfinite(loss):
        where = "look for NaN in the batch, or an initialization that overflows"
        raise InvalidBatch(f"the loss is {loss:g} before any step: {where}")


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


def optimizer_factory(optimizer: str | OptimizerFactory) -> OptimizerFactory:
    """The factory of a name, or the one given."""
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise unknown("optimizer", optimizer, OPTIMIZERS)
        return OPTIMIZERS[optimizer]
    if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer):
        raise InvalidConfig(
            f"optimizer is a {type(optimizer).__name__}: give a name ({', '.join(OPTIMIZERS)}) or a function "
            "(params, lr) -> optimizer, since every try starts with a fresh one"
        )
    return optimizer


def make_optimizer(factory: OptimizerFactory, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """A fresh optimizer of all trainable parameters."""
    try:
        made = factory([p for p in model.parameters() if p.requires_grad], lr)
    except NormscopeError:
        raise
    except Exception as error:
        raise InvalidConfig(f"optimizer(params, lr) raised {raised(error)}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise InvalidConfig(f"optimizer(params, lr) gave a {type(made).__name__}, not a torch optimizer")
    return made


def spread_or_nan(model: nn.Module, batch: Any) -> float:
    """How much the outputs depend on the input; NaN for a model whose call only the caller's loss_fn knows."""
    try:
        return output_spread(model, batch)
    except Exception:
        return float("nan")
