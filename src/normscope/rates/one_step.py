"""What at most ten passes see of a network's rates: where, along the optimizer's own first update, the loss stops
falling, and where one step diverges. `predicted` foretells rates from it."""

import math
from dataclasses import dataclass

import numpy as np
from torch import nn

from normscope.descent.first_update import Growth, first_update_line
from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.descent.recipe import Recipe
from normscope.descent.step_line import StepLine
from normscope.model.batch import Batch

PASSES = 10
"""Forward and backward passes at most: one each for the gradient, the others forward along the update."""

FOR_THE_EDGE = 4
"""Of them, those that look for the edge."""

DIVERGED = math.log10(DIVERGENCE_FACTOR)

STRIDE = 0.5
"""Decades jumped while the edge is open on one side: at first, then twice as far each time."""

LEAST_POWER, LONGEST_STRIDE = 1.0, 2.0
"""Beyond the edge the loss is taken to rise with this power of the rate or more; and no jump is longer, in decades."""

NOTHING = 1e-6
"""Decades of the relative loss that are rounding."""

MOST_RISE = 8.0
"""Decades; what overflows counts as so much."""


@dataclass(frozen=True)
class OneStep:
    """What one mini-batch tells; rates as log10, NaN where they were not found."""

    edge: float
    """The rate at which one step no longer lowers the loss."""
    top: float
    """The rate at which one step already diverges."""
    gradient_norm: float
    growth: Growth
    passes: int

    @property
    def features(self) -> np.ndarray:
        """What rates are foretold from, see `FEATURES`."""
        return np.asarray([self.edge, self.top, math.log10(self.gradient_norm), math.log10(self.growth.amplification)])


FEATURES = ("the edge of one step", "where one step diverges", "the gradient's norm", "how updates grow")


def one_step(model: nn.Module, batch: Batch, recipe: Recipe, *, seed: int = 0) -> OneStep:
    """Probe the first update of this recipe's optimizer; the model comes back untouched. Raises as
    `first_update_line` does."""
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with first_update_line(model, batch, recipe, seed=seed) as (line, growth):
        walk = Walk(line)
        edge = walk.edge(_polyak_rate(line, growth, parameters))
        top = walk.top(edge, PASSES - 2) if math.isfinite(edge) else math.nan
        norm = float(line.gradient_norm)
    return OneStep(edge, top, norm, growth, 2 + len(walk.rises))


def _polyak_rate(line: StepLine, growth: Growth, parameters: int) -> float:
    """log10 of the rate at which the loss would reach zero if it fell linearly; for updates that do not grow with the
    gradient, as if they were its signs. NaN for a loss that starts at zero or below."""
    slope = float(line.gradient_norm) ** 2 if growth.with_gradient else float(line.gradient_norm) * parameters**0.5 / 2
    loss = float(line.loss)
    return math.log10(loss / slope) if 0 < loss < math.inf and 0 < slope < math.inf else math.nan


class Walk:
    """Passes along the update."""

    def __init__(self, line: StepLine) -> None:
        self._line = line
        self.rises: dict[float, float] = {}
        """log10 of the relative loss at the rates 10^x, by x."""

    def rise(self, x: float) -> float:
        """The same at one more."""
        relative = float(self._line.relative_loss([10.0**x])[0])
        known = math.log10(max(relative, 1e-9)) if math.isfinite(relative) else MOST_RISE
        self.rises[x] = min(known, MOST_RISE)
        return self.rises[x]

    def edge(self, start: float) -> float:
        """Where the relative loss passes 1 going up."""
        if math.isnan(start):
            return math.nan
        low = high = None
        x, stride = start, STRIDE
        for _ in range(FOR_THE_EDGE):
            if self.rise(x) <= NOTHING:
                low = x
            else:
                high = x
            if low is not None and high is not None:
                x = (low + high) / 2
            else:
                x += stride if high is None else -stride
                stride = min(2 * stride, LONGEST_STRIDE)
        return math.nan if low is None or high is None else self._between(low, high, 0.0)

    def top(self, edge: float, passes: int) -> float:
        """Where it passes the threshold of divergence, with so many passes in all; where they do not get there, as if
        it rose on as it did last."""
        low, high = edge, min((x for x, r in self.rises.items() if r > DIVERGED), default=None)
        for _ in range(passes - len(self.rises)):
            x = self._onward(low) if high is None else self._between(low, high, DIVERGED)
            if self.rise(x) <= DIVERGED:
                low = x
            else:
                high = x
        return self._onward(low) if high is None else self._between(low, high, DIVERGED)

    def _onward(self, low: float) -> float:
        """By the power of the rate with which the loss rose last."""
        points = sorted((x, r) for x, r in self.rises.items() if x <= low)
        power = LEAST_POWER
        if len(points) > 1 and points[-1][1] > 0:
            (x, rise), (y, higher) = points[-2:]
            power = max(power, (higher - rise) / (y - x))
        return low + min(max((DIVERGED - self.rises.get(low, 0.0)) / power, STRIDE / 2), LONGEST_STRIDE)

    def _between(self, low: float, high: float, level: float) -> float:
        """On a straight line, if that is not too near to an end."""
        share = (level - self.rises.get(low, 0.0)) / (self.rises[high] - self.rises.get(low, 0.0))
        return low + min(max(share, 0.2), 0.8) * (high - low)
