"""When to measure: every so many steps, or as often as a share of the time allows."""

from collections.abc import Callable
from statistics import median

EXPECTED_STEPS = 5.0
"""Before the first measurement it is taken to last as long as this many steps."""

REMEMBERED = 5
"""The expected duration of a measurement is the median of this many."""

FIRST = 2
"""No measurement before this step: the first one of a process pays for much that is made once."""


class Schedule:
    """Keeps the time spent beside the training at `overhead` of the training's own, or measures every `every` steps.

    A measurement is due once the time that it is expected to take fits; where the cheap signals are suspicious it may
    be taken on credit, one at a time.
    """

    def __init__(self, overhead: float, every: int | None, clock: Callable[[], float]) -> None:
        self.overhead, self.every, self.clock = overhead, every, clock
        self.begun = clock()
        self.spent = 0.0
        self.durations: list[float] = []

    def spend(self, seconds: float, *, measurement: bool = False) -> None:
        """Book time that was not the training's."""
        self.spent += seconds
        if measurement:
            self.durations = [*self.durations[1 - REMEMBERED :], seconds]

    @property
    def share(self) -> float:
        """Time spent so far over the training's own."""
        training = self.clock() - self.begun - self.spent
        return self.spent / training if training > 0 else 0.0

    def expected(self, steps: int) -> float:
        """Seconds that a measurement will take."""
        if self.durations:
            return median(self.durations)
        return EXPECTED_STEPS * (self.clock() - self.begun - self.spent) / max(1, steps)

    def due(self, steps: int, *, suspicious: bool = False) -> bool:
        """Whether to measure now, after so many steps in all."""
        if self.every is not None:
            return steps % self.every == 0
        if steps < FIRST:
            return False
        allowed = self.overhead * (self.clock() - self.begun - self.spent)
        cost = self.expected(steps)
        return self.spent + cost <= allowed + (cost if suspicious else 0.0)
