"""What one step tells: the relative loss along the optimizer's own first update, where the search for rates starts.

With u(θ) the optimizer's first update at rate 1 (for SGD −∇ℓ_B, for Adam nearly −sign ∇ℓ_B),

    relative loss(lr) = ℓ_B(θ + lr · u(θ)) / ℓ_B(θ).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from normscope.descent.first_update import Growth, first_update_line
from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.descent.recipe import Recipe
from normscope.descent.step_line import crossing, lowest_step_size
from normscope.model.batch import Batch

DOUBLED = 2.0
"""The relative loss of one step above which several diverge. Measured on small networks: where one step doubles the
loss lies within about half a decade of the first divergence in 100 steps of SGD."""

HALF_A_DECADE = 10**0.5
"""Measured on the same networks: many steps need a smaller rate than the first one, by about this much."""


@dataclass(frozen=True)
class FirstStep:
    """The relative loss after one step, and how much larger later steps along the same gradient get."""

    lrs: np.ndarray
    relative_loss: np.ndarray
    """(lr,): as the probe of the same name, along the optimizer's update."""
    growth: Growth

    @property
    def diverging_lr(self) -> float:
        """Where the search for divergence starts; inf where that does not lie within the rates.

        Updates that grow with the gradient feed on themselves: when one step already doubles the loss, the following
        ones blow it up. Those that do not have to pass the threshold of divergence in a single step.
        """
        level = DOUBLED if self.growth.with_gradient else DIVERGENCE_FACTOR
        return crossing(self.lrs, self.relative_loss, level) / self.growth.amplification

    @property
    def useful_lr(self) -> float:
        """Where the search for learning starts: half a decade below the middle, in logarithms, between the lowest loss
        of one settled step and where it is no longer below the start. NaN where no loss is finite."""
        lowest = lowest_step_size(self.lrs, self.relative_loss)
        useless = crossing(self.lrs, self.relative_loss, 1.0)
        middle = math.sqrt(lowest * useless if math.isfinite(useless) else lowest**2)
        return middle / self.growth.amplification / HALF_A_DECADE


def first_step(model: nn.Module, batch: Batch, recipe: Recipe, lrs: Sequence[float], *, seed: int) -> FirstStep:
    """Relative loss at θ + lr · u for every rate, in training mode; the model comes back untouched. Raises as
    `first_update_line` does."""
    with first_update_line(model, batch, recipe, seed=seed) as (line, growth):
        return FirstStep(np.asarray(lrs), line.relative_loss(lrs), growth)
