"""The time that a check may take, and how it is shared out."""

import time

RATES_SHARE = 0.5
"""Of a budget, the rates of the model as it is get at most this share where repairs are measured too."""

GRACE = 0.05
"""Of a budget, and at most a second: what has not ended by then is left where it stands."""

LEAST_SHARE = 0.1
"""A repair is not begun with less of the budget left than this share."""


class Budget:
    """So many seconds from now on; None for all it takes."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.begun = seconds, time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.begun

    def left(self) -> float | None:
        """Seconds; None where there is no limit."""
        return None if self.seconds is None else self.seconds - self.spent

    def alarm(self) -> float | None:
        """A little later than the searches end themselves."""
        left = self.left()
        return None if left is None or self.seconds is None else left + min(1.0, GRACE * self.seconds)

    def for_rates(self, *, alone: bool) -> float | None:
        """What the rates of the model as it is may take."""
        return None if self.seconds is None else (1 if alone else RATES_SHARE) * self.seconds

    @property
    def is_used_up(self) -> bool:
        """Whether too little is left to begin with a repair."""
        left = self.left()
        return left is not None and self.seconds is not None and left < LEAST_SHARE * self.seconds
