"""How many times longer could this step be before the loss rises? At most six forward passes.

For the optimizer's next update u the critical multiple is the largest s with ℓ_B(θ + s u) ≤ ℓ_B(θ): above 1 the next
step lowers the loss of this mini-batch, below 1 it raises it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

PASSES = 6

AT_ONCE = (1.0, 4.0)
"""Multiples that are always looked at."""

NARROW = 1.3
"""A bracket whose ends are this factor apart is narrow enough."""

WIDTH = 1.14
"""A guess is tried this factor above and below."""

LOWEST, HIGHEST = 1 / 64, 1024.0
"""Between these the multiple is sought."""


@dataclass(frozen=True)
class CriticalMultiple:
    """Where the loss rises along the update."""

    low: float
    """The largest multiple tried at which the loss has not risen; 0 where it has at every one."""
    high: float
    """The smallest one above it at which it has risen; inf where it has at none."""
    tried: dict[float, float]
    """The loss at each multiple, in the order tried."""

    @property
    def value(self) -> float:
        """The middle of the bracket in logarithms; its lower end where it has no upper one."""
        if self.low == 0 or math.isinf(self.high):
            return self.low
        return math.sqrt(self.low * self.high)


def critical_multiple(
    loss_at: Callable[[float], float], start: float, *, slope: float = math.nan, guess: float | None = None
) -> CriticalMultiple:
    """Bracket the multiple at which the loss rises above `start`; a loss that is not finite has risen.

    Args:
        loss_at: the loss at a multiple of the update: one forward pass.
        start: the loss at multiple 0.
        slope: the loss's derivative along the update. Where that is not negative and the whole update raises the
            loss, it rises at once, and nothing is sought below.
        guess: a multiple near which the answer is expected, as that of the measurement before.
    """
    tried: dict[float, float] = {}

    def risen(multiple: float) -> bool:
        tried[multiple] = loss_at(multiple)
        return not tried[multiple] <= start

    low, high = 0.0, math.inf
    for multiple in AT_ONCE:
        if risen(multiple):
            high = min(high, multiple)
        elif math.isinf(high):
            low = multiple
    near = [guess * WIDTH, guess / WIDTH] if guess and math.isfinite(guess) else []
    while len(tried) < PASSES:
        ended = (low > 0 and high / low < NARROW) or low >= HIGHEST or (low == 0 and (high <= LOWEST or slope >= 0))
        if ended:
            break
        following = next((multiple for multiple in near if low < multiple < high), None)
        if following is not None:
            near.remove(following)
        elif math.isinf(high):
            following = 4 * low
        else:
            following = math.sqrt(low * high) if low else high / 4
        if risen(following):
            high = following
        else:
            low = following
    return CriticalMultiple(low, high, tried)
