"""Which tries are run: first for the stable boundary, then for the usable one, then for the lowest loss; no torch here.

Every try is kept and serves all three questions.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from normscope.check.best import indistinguishable
from normscope.check.bracket import Edge, edge, monotone, next_hunt, next_try
from normscope.check.tries import Try
from normscope.outcome import Outcome

CELLS_A_DECADE = 10
"""The lattice: neighbouring rates differ by a factor 10^0.1."""

MOST_HUNTS = 6
"""How many rates are tried, at most, until one learns."""

BEST_STRIDE = 4
"""The lowest loss is looked for below the usable boundary in steps of 0.4 decades."""


class Found(StrEnum):
    """How the search for a boundary ended."""

    BRACKETED = "bracketed"
    """Passes on all seeds at the lower end, fails at the upper."""
    ABOVE_RANGE = "above the range"
    """Nothing failed up to the end of the range: the boundary is a bound."""
    BELOW_RANGE = "below the range"
    """Fails even at the lowest rate of the range."""
    NOWHERE = "nowhere"
    """No rate was found that passes on all seeds."""
    UNFINISHED = "unfinished"
    """Time or steps were used up; the bracket is as narrow as it got, and perhaps not confirmed on all seeds."""


class Boundary(NamedTuple):
    """A boundary as far as it was found."""

    found: Found
    edge: Edge


@dataclass
class Search:
    """The tries so far, and how to make another."""

    run: Callable[[int, int], Try]
    """(cell, seed) -> the try of the rate 10^(cell/10) on that seed."""
    seeds: Sequence[int]
    lowest: int
    highest: int
    steps: int
    """Of a try that does not diverge."""
    most_steps: float = math.inf
    """Tries are made until they took this many training steps together."""
    deadline: float = math.inf
    """... or until `time.monotonic()` is past this."""
    tries: dict[tuple[int, int], Try] = field(default_factory=dict)
    """By (cell, seed), in the order of trying."""

    @property
    def train_steps(self) -> int:
        """Training steps of all tries together."""
        return sum(len(t.losses) for t in self.tries.values())

    @property
    def exhausted(self) -> bool:
        """Whether time or steps are used up."""
        return self.train_steps >= self.most_steps or time.monotonic() >= self.deadline

    def passed(self, passes: Callable[[Try], bool]) -> dict[tuple[int, int], bool]:
        """What is known of the boundary between the tries that pass and those that do not."""
        return {key: passes(t) for key, t in self.tries.items()}

    def losses(self) -> dict[int, float]:
        """The loss at the horizon by cell, over its seeds; NaN where one diverged."""
        return {cell: self.loss(cell) for cell, _ in self.tries}

    def loss(self, cell: int) -> float:
        """The loss at the horizon in this cell, over its seeds."""
        return float(np.mean([t.horizon_loss for (k, _), t in self.tries.items() if k == cell]))

    def learning(self) -> list[int]:
        """The cells in which every seed tried learns, those of the lowest loss first."""
        known = self.passed(learns)
        cells = {cell for cell, _ in known} - {cell for (cell, _), passed in known.items() if not passed}
        return sorted(cells, key=self.loss)

    def best(self) -> set[int]:
        """The cells that cannot be told apart from the lowest loss at the horizon."""
        return indistinguishable(
            {c: {s: t.horizon for (k, s), t in self.tries.items() if k == c} for c in self.learning()}
        )

    def go(self, cell: int, seed: int) -> bool:
        """Make this try; False where time or steps are used up."""
        if self.exhausted:
            return False
        self.tries[cell, seed] = self.run(cell, seed)
        return True


def lr_of(cell: int) -> float:
    """The rate of a cell of the lattice: 10^(cell/10)."""
    return float(10.0 ** (cell / CELLS_A_DECADE))


def cell_of(lr: float, otherwise: int) -> int:
    """The cell nearest to a rate; `otherwise` where the rate is not a positive number."""
    return round(math.log10(lr) * CELLS_A_DECADE) if 0 < lr < math.inf else otherwise


def stays_finite(t: Try) -> bool:
    """Passes for the stable boundary."""
    return t.outcome is not Outcome.DIVERGED


def learns(t: Try) -> bool:
    """Passes for the usable boundary."""
    return t.outcome is Outcome.LEARNS


def usable_monotone(search: Search) -> bool:
    """Whether no seed learns above a rate at which it does not, from the rate of the lowest loss up."""
    learning = search.learning()
    known = search.passed(learns)
    return not learning or monotone({key: passed for key, passed in known.items() if key[0] >= learning[0]})


def find_stable(search: Search, start: int) -> Boundary:
    """The first divergence going up, searched from the cell `start`."""
    start = min(max(start, search.lowest), search.highest)

    def known() -> dict[tuple[int, int], bool]:
        return search.passed(stays_finite)

    while True:
        step = next_try(known(), seeds=search.seeds, start=start, lowest=search.lowest, highest=search.highest)
        if step is None or not search.go(*step):
            break
    found = edge(known())
    if step is not None:
        return Boundary(Found.UNFINISHED, found)
    if found.low is None:
        return Boundary(Found.BELOW_RANGE, found)
    return Boundary(Found.ABOVE_RANGE if found.high is None else Found.BRACKETED, found)


def find_usable(search: Search, start: int) -> Boundary:
    """The first rate that does not learn, going up from the one of the lowest loss; searched from the cell `start`."""
    start = min(max(start, search.lowest), search.highest)
    hunts = 0
    while True:
        learning = search.learning()
        if learning:
            anchor = learning[0]
            step = next_try(
                search.passed(learns),
                seeds=search.seeds,
                start=anchor,
                lowest=search.lowest,
                highest=search.highest,
                anchor=anchor,
            )
        else:
            hunts += 1
            cell = next_hunt(search.losses(), start=start, lowest=search.lowest, highest=search.highest)
            step = None if cell is None or hunts > MOST_HUNTS else (cell, search.seeds[0])
        if step is None or not search.go(*step):
            break
    learning = search.learning()
    if not learning:
        return Boundary(Found.NOWHERE if step is None else Found.UNFINISHED, Edge(None, None))
    found = edge(search.passed(learns), learning[0])
    if step is not None:
        return Boundary(Found.UNFINISHED, found)
    return Boundary(Found.ABOVE_RANGE if found.high is None else Found.BRACKETED, found)


def find_lowest_loss(search: Search) -> None:
    """Try rates below the best one as long as the loss at the horizon falls, then the best one on all seeds."""
    while learning := search.learning():
        best = learning[0]
        untried = [seed for seed in search.seeds if (best, seed) not in search.tries]
        nearest = max((cell for cell, _ in search.tries if cell < best), default=-math.inf)
        down = best - BEST_STRIDE
        if best - nearest > BEST_STRIDE and down >= search.lowest:
            step = down, search.seeds[0]
        elif untried:
            step = best, untried[0]
        else:
            return
        if not search.go(*step):
            return
