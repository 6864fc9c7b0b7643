"""When an alarm is due: the loss diverged, it jumped, or the rule warned at several steps in a row."""

import math
from collections.abc import Sequence

from normscope.descent.outcome import has_diverged
from normscope.monitoring.outlook import Outlook
from normscope.monitoring.rule import AHEAD, PATIENCE, THRESHOLD, probability
from normscope.monitoring.signals import FreeStep

DIVERGED, JUMPED, AHEAD_OF_DIVERGENCE = "diverged", "jumped", "ahead"

QUIET = 20
"""No warning before this step: a loss that has just begun to fall has no past to compare with."""

LOOK_EVERY = 4
"""Steps between two looks at the rule, as long as nothing is suspicious."""

JUMP = 10.0
"""A loss this many times as large as all recent ones and the first is looked into, diverged or not."""


class Trigger:
    """Takes in the steps in their order, and says what is due at each."""

    def __init__(self) -> None:
        self.outlook = Outlook()
        self.has_diverged = False
        self._above = 0
        self._quiet_until = 0

    @property
    def suspicious(self) -> bool:
        """Whether what is free looks bad enough to measure on credit."""
        return self._above > 0

    def see(self, entry: FreeStep, recent: Sequence[FreeStep]) -> str:
        """`DIVERGED`, `JUMPED`, `AHEAD_OF_DIVERGENCE`, or "" for nothing.

        Args:
            entry: the step.
            recent: the last steps, this one at their end.
        """
        lowest = self.outlook.lowest
        self.outlook.see(entry.step, entry.loss, entry.gradient_norm, entry.lr)
        first = self.outlook.first_loss
        if self.has_diverged:
            return ""
        if not math.isfinite(entry.loss) or has_diverged(
            entry.loss, start=first, best=lowest if lowest > 0 else first, constant_loss=math.nan
        ):
            self.has_diverged = True
            return DIVERGED
        usual = max((each.loss for each in recent[:-1]), default=math.inf)
        if entry.loss > JUMP * max(usual, first) > 0 and entry.step >= self._quiet_until:
            self._quiet_until = entry.step + AHEAD
            return JUMPED
        if entry.step < QUIET or (self._above == 0 and entry.step % LOOK_EVERY):
            return ""
        self._above = self._above + 1 if probability(self.outlook.features()) >= THRESHOLD else 0
        if self._above >= PATIENCE and entry.step >= self._quiet_until:
            self._quiet_until = entry.step + AHEAD
            return AHEAD_OF_DIVERGENCE
        return ""
