"""Which trials are run to find the stable and the usable boundary; no torch here.

Every trial is kept and serves all questions; `plan` has their order.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from normscope.descent.outcome import Outcome
from normscope.rates.bracket import Edge, Known, confirmed, edge, monotone, next_hunt, next_try, weakest_first
from normscope.rates.trial import Trial
from normscope.statistics.ties import indistinguishable

CELLS_A_DECADE = 10
"""The lattice: neighbouring rates differ by a factor 10^0.1."""

MOST_HUNTS = 8
"""How many rates are tried, at most, until one learns."""

STABLE_STRIDE = 8
"""The first jump up while nothing diverges, in cells: tries beyond the boundary stop early and cost little."""

CHEAP_SHARE, CHEAP_DESCENT = 0.2, 3
"""Below a divergence within this share of the steps the stable boundary is come upon from above, by so many cells."""

SHARP_SHARE = 0.1
"""Where all tries of the upper cell diverged within this share of the steps, the boundary is taken for sharp: of 39 on
small networks none had a divergence two cells below, on the seed that failed."""

USABLE_STRIDE = 4
"""The first jump towards the usable boundary, in cells: where to start is known less well than for the stable one."""

BEST_STRIDE = 5
"""The lowest loss is looked for below the usable boundary in steps of half a decade."""

LOWEST_LOSS_SHARE = 0.95
"""Of the steps allowed, those that tries may use which only look for a lower loss: the last are kept for boundaries."""


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

    run: Callable[[int, int, int], Trial]
    """(cell, seed, steps) -> the trial of the rate 10^(cell/10) on that seed, gone on with to so many steps."""
    seeds: Sequence[int]
    lowest: int
    highest: int
    steps: int
    """Of a try that does not diverge."""
    most_steps: float = math.inf
    """No try is begun that could take the training steps of all tries above this."""
    deadline: float = math.inf
    """... or until `time.monotonic()` is past this."""
    constant_loss: float = math.nan
    """L_c on the first seed."""
    tries: dict[tuple[int, int], Trial] = field(default_factory=dict)
    """Those that came to their end, by (cell, seed), in the order of ending."""
    short: dict[tuple[int, int], Trial] = field(default_factory=dict)
    """Those that were left before it, and may go on."""

    repeated: int = 0
    """Training steps that were made twice, since there was no room for what the trial had to go on from."""
    run_beyond: Callable[[int, int, int, int], Trial] | None = None
    """(cell, seed, steps, cooldown) -> the same trial gone on with beyond the horizon to so many steps; and from there,
    where a cooldown is given, over so many more while its rate falls to 0."""
    steps_beyond: int = 0
    """Training steps made beyond the horizon, which `most_steps` does not bound ..."""
    most_beyond: float = 0
    """... but this."""
    origin: float = 1.0
    """The rate of cell 0."""
    keep_interrupted: bool = False
    """Whether Ctrl-C ends the search with what it has."""
    stopped: bool = False
    """Whether the deadline or Ctrl-C ended it."""
    interrupted: bool = False

    def lr(self, cell: float) -> float:
        """The rate of a cell."""
        return self.origin * lr_of(cell)

    @property
    def train_steps(self) -> int:
        """Training steps of all trials together."""
        made = sum(len(t.losses) for trials in (self.tries, self.short) for t in trials.values())
        return made + self.repeated

    def has_room(self, trials: int) -> bool:
        """Whether the steps allow so many more of full length."""
        return self.train_steps + trials * self.steps <= self.most_steps

    def passed(self, passes: Callable[[Trial], bool]) -> dict[tuple[int, int], bool]:
        """What is known of the boundary between the tries that pass and those that do not."""
        return {key: passes(t) for key, t in self.tries.items()}

    def worst_losses(self) -> dict[int, float]:
        """The loss at the horizon by cell, of the seed where it is highest; NaN where one diverged."""
        cells = {cell for cell, _ in self.tries}
        return {c: float(np.max([t.horizon_loss for (k, _), t in self.tries.items() if k == c])) for c in cells}

    def loss(self, cell: int) -> float:
        """The loss at the horizon in this cell, over its seeds."""
        return float(np.mean([t.horizon_loss for (k, _), t in self.tries.items() if k == cell]))

    def learning(self) -> list[int]:
        """The cells in which every seed tried learns, those of the lowest loss first."""
        known = self.passed(learns)
        cells = {cell for cell, _ in known} - {cell for (cell, _), passed in known.items() if not passed}
        return sorted(cells, key=self.loss)

    def best(self) -> set[int]:
        """The cells that cannot be told apart from the lowest loss at the horizon, below the first above it in which a
        seed does not learn."""
        learning = self.learning()
        seeds = {c: sum(cell == c for cell, _ in self.tries) for c in learning}
        lowest = next((c for c in learning if seeds[c] == max(seeds.values())), self.highest)
        failing = {cell for cell, _ in self.tries if cell > lowest and cell not in learning}
        below = [c for c in learning if c < min(failing, default=math.inf)]
        return indistinguishable({c: {s: t.horizon for (k, s), t in self.tries.items() if k == c} for c in below})

    def diverges_early(self) -> bool:
        """Whether the last try that diverged cost little beside one that does not."""
        diverged = [len(t.losses) for t in self.tries.values() if not stays_finite(t)]
        return bool(diverged) and diverged[-1] <= CHEAP_SHARE * self.steps

    def is_sharp(self, high: int | None) -> bool:
        """Whether every try that diverged in this cell did so early."""
        taken = [len(t.losses) for (cell, _), t in self.tries.items() if cell == high and not stays_finite(t)]
        return max(taken, default=self.steps) <= SHARP_SHARE * self.steps

    def next_try(self, known: Known, start: int, **how: Any) -> tuple[int, int] | None:
        """`bracket.next_try` over the seeds and within the range of this search; `how` is its other arguments."""
        return next_try(known, seeds=self.seeds, start=start, lowest=self.lowest, highest=self.highest, **how)

    def go(self, cell: int, seed: int, share: float = 1.0, until: int | None = None) -> bool:
        """Make this trial, or go on with it to so many steps; False where time, or this share of the steps, is used
        up."""
        key, until = (cell, seed), self.steps if until is None else until
        begun = len(self.short[key].losses) if key in self.short else 0
        if key in self.tries or begun >= until:
            return True
        self.stopped = self.stopped or time.monotonic() >= self.deadline
        if self.stopped or self.train_steps + until - begun > share * self.most_steps:
            return False
        trial = self._made(lambda: self.run(cell, seed, until))
        if trial is None:
            return False
        self.short.pop(key, None)
        (self.short if trial.outcome is None else self.tries)[key] = trial
        return True

    def go_beyond(self, cell: int, seed: int, steps: int, cooldown: int) -> Trial | None:
        """Go on with a trial beyond the horizon, see `run_beyond`; None where time or steps are used up."""
        self.stopped = self.stopped or time.monotonic() >= self.deadline
        beyond = self.run_beyond
        if self.stopped or beyond is None or self.steps_beyond + steps + cooldown > self.most_beyond:
            return None
        trial = self._made(lambda: beyond(cell, seed, steps, cooldown))
        return trial if trial is not None and trial.outcome is not None else None

    def _made(self, trial: Callable[[], Trial]) -> Trial | None:
        """The trial; None where Ctrl-C ends it and the search is to keep what it has."""
        try:
            return trial()
        except KeyboardInterrupt:
            if not self.keep_interrupted:
                raise
            self.stopped, self.interrupted = True, time.monotonic() < self.deadline  # later it is an alarm
            return None


def lr_of(cell: float) -> float:
    """The rate of a cell of the lattice: 10^(cell/10)."""
    return float(10.0 ** (cell / CELLS_A_DECADE))


def cell_of(lr: float, otherwise: int) -> int:
    """The cell nearest to a rate; `otherwise` where the rate is not a positive number."""
    return round(math.log10(lr) * CELLS_A_DECADE) if 0 < lr < math.inf else otherwise


def stays_finite(t: Trial) -> bool:
    """Passes for the stable boundary."""
    return t.outcome is not Outcome.DIVERGED


def learns(t: Trial) -> bool:
    """Passes for the usable boundary."""
    return t.outcome is Outcome.LEARNS


def usable_monotone(search: Search) -> bool:
    """Whether no seed learns above a rate at which it does not, from the rate of the lowest loss up."""
    learning = search.learning()
    known = search.passed(learns)
    return not learning or monotone({key: passed for key, passed in known.items() if key[0] >= learning[0]})


def find_stable(search: Search, start: int, share: float = 1.0) -> Boundary:
    """The first divergence going up, searched from the cell `start` with this share of the steps."""
    start = min(max(start, search.lowest), search.highest)
    while True:
        known = search.passed(stays_finite)
        step = search.next_try(
            known,
            start,
            first_stride=STABLE_STRIDE,
            descent=CHEAP_DESCENT if search.diverges_early() else None,
            check_below=not search.is_sharp(edge(known).high),
        )
        if step is None or not search.go(*step, share):
            break
    found = edge(known)
    below_range = step is None and found.low is None
    return Boundary(Found.BELOW_RANGE if below_range else _how_found(search, known, found), found)


def find_usable(search: Search, start: int, most: float = 1.0) -> Boundary:
    """The first rate that does not learn, going up from the one of the lowest loss; searched from the cell `start`,
    with `most` of the steps.

    Where no rate learns yet, one is hunted down the valley of the loss; once the boundary is found, rates below the
    best one are tried as long as their loss is lower, and the boundary is searched again from there.
    """
    start = min(max(start, search.lowest), search.highest)
    hunts = 0
    while True:
        learning = search.learning()
        known = search.passed(learns)
        share = most
        if not learning:
            hunts += 1
            cell = next_hunt(search.worst_losses(), start=start, lowest=search.lowest, highest=search.highest)
            failing = min((c for (c, _), passed in known.items() if not passed), default=None)
            seed = weakest_first(known, search.seeds, failing)[0]
            step = None if cell is None or hunts > MOST_HUNTS else (cell, seed)
        else:
            step = search.next_try(known, start, anchor=learning[0], first_stride=USABLE_STRIDE, check_below=False)
            if step is None and (lower := _next_lower(search, learning[0])) is not None:
                step, share = (lower, search.seeds[0]), min(most, LOWEST_LOSS_SHARE)
        if step is None or not search.go(*step, share):
            break
    if not learning:
        return Boundary(Found.NOWHERE if step is None else Found.UNFINISHED, Edge(None, None))
    found = edge(known, learning[0])
    return Boundary(_how_found(search, known, found), found)


def _how_found(search: Search, known: dict[tuple[int, int], bool], found: Edge) -> Found:
    """Bracketed or above the range where the lower end is confirmed on every seed; unfinished else."""
    if not confirmed(known, found, seeds=search.seeds, highest=search.highest):
        return Found.UNFINISHED
    return Found.ABOVE_RANGE if found.high is None else Found.BRACKETED


def _next_lower(search: Search, best: int) -> int | None:
    """The cell below the best one where the loss may be lower still; None where a cell as near was tried."""
    nearest = max((cell for cell, _ in search.tries if cell < best), default=-math.inf)
    return best - BEST_STRIDE if best - nearest > BEST_STRIDE and best - BEST_STRIDE >= search.lowest else None


def confirm_lowest_loss(search: Search) -> None:
    """Try the rate of the lowest loss on all seeds, so that others can be compared with it seed by seed."""
    while learning := search.learning():
        lower = _next_lower(search, learning[0])
        untried = [seed for seed in search.seeds if (learning[0], seed) not in search.tries]
        if lower is None and not untried:
            return
        cell, seed = (lower, search.seeds[0]) if lower is not None else (learning[0], untried[0])
        if not search.go(cell, seed, LOWEST_LOSS_SHARE):
            return
