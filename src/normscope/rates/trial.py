"""One try of one learning rate: a short descent from the start, stopped at once when it diverges."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from normscope.descent.loop import check_start, descend
from normscope.descent.optimizers import make_optimizer
from normscope.descent.outcome import Outcome, has_diverged, outcome
from normscope.descent.recipe import Recipe, preparation
from normscope.model.batch import on_device
from normscope.model.loss import output_spread, readable_errors
from normscope.model.state import untouched


@dataclass(frozen=True)
class Trial:
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


def run_trial(
    model: nn.Module,
    batches: Iterable[Any],
    lr: float,
    *,
    seed: int,
    recipe: Recipe,
    constant_loss: float,
    start: float | None = None,
) -> Trial:
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
                return Trial(lr, seed, Outcome.DIVERGED, np.asarray(losses))
        judged = losses if start is None else [start, *losses[1:]]
        tuning = start is not None
        found = outcome(
            judged,
            constant_loss=constant_loss,
            output_spread=lambda: spread_or_nan(model, last),
            fine_tuning=tuning,
        )
    return Trial(lr, seed, found, np.asarray(losses))


def spread_or_nan(model: nn.Module, batch: Any) -> float:
    """How much the outputs depend on the input; NaN for a model whose call only the caller's loss_fn knows."""
    try:
        return output_spread(model, batch)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException:
        return float("nan")
