"""When to measure: every so many steps, or as often as a share of the time allows."""

from collections.abc import Callable
from statistics import median

REMEMBERED = 5
"""The expected duration of a measurement is the median of this many."""

FIRST = 2
"""The step of the first measurement: at the one before the optimizer has no state yet."""


class Schedule:
    """Keeps the time spent beside the training at `overhead` of the training's own, or measures every `every` steps.

    A measurement is due once the time that it is expected to take fits. Two are taken on credit, which the steps after
    them pay back before the next: the first one, since a short training would otherwise have none, and one where the
    cheap signals are suspicious.
    """

    def __init__(self, overhead: float, every: int | None, clock: Callable[[], float]) -> None:
        self.overhead, self.every, self.clock = overhead, every, clock
        self.begun = clock()
        self.spent = 0.0
        self.durations: list[float] = []
        self.first: float | None = None
        """Duration of the first measurement."""

    def spend(self, seconds: float, *, measurement: bool = False) -> None:
        """Book time that was not the training's."""
        self.spent += seconds
        if measurement:
            self.durations = [*self.durations[1 - REMEMBERED :], seconds]
            self.first = seconds if self.first is None else self.first

    @property
    def share(self) -> float:
        """Time spent so far over the training's own."""
        training = self.clock() - self.begun - self.spent
        return self.spent / training if training > 0 else 0.0

    def due(self, steps: int, *, suspicious: bool = False) -> bool:
        """Whether to measure now, after so many steps in all."""
        if self.every is not None:
            return steps % self.every == 0
        if steps < FIRST:
            return False
        allowed = self.overhead * (self.clock() - self.begun - self.spent)
        if self.first is None:
            return True
        cost = median(self.durations)
        return self.spent + cost <= allowed + (self.first + cost if suspicious else 0.0)
