"""The rate to train at, those that are tied with it, and what is sure of it. No torch."""

import math
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from normscope.descent.outcome import LEARNING_FACTOR, STANDARD_ERRORS, Outcome, reference_loss
from normscope.rates.lowest_loss import ALIKE, FALLEN, RUNGS, end_loss, horizon_losses, recommended
from normscope.rates.search import Search
from normscope.statistics.ties import indistinguishable

MARGIN = 3
"""Cells, a factor 2, between the rate to train at and the first above it that falls, where one so far off is tied: on
other seeds a cliff lies elsewhere."""


class Sure(StrEnum):
    """What is sure of the rate to train at."""

    LEARNS = "learns on every seed"
    """Every seed learns at it, and neighbours were tried."""
    SOME_SEEDS = "learns on some seeds"
    """At no rate tried does every seed learn."""
    LOWERS = "lowers the loss"
    """No seed learns within the steps, but the loss falls."""
    UNFINISHED = "unfinished"
    """Time or steps were used up before it was tried on every seed; or it was not looked for."""
    NOWHERE = "nowhere"
    """No rate tried lowers the loss."""


class Recommended(NamedTuple):
    """A rate, the ends of the set that is tied with it, and the mean loss at the horizon over seeds."""

    lr: float
    low: float
    high: float
    loss: float
    found: Sure


NOT_LOOKED_FOR = Recommended(math.nan, math.nan, math.nan, math.nan, Sure.UNFINISHED)


def recommendation(search: Search) -> Recommended:
    """The rate to train at as far as the trials tell."""
    cell = recommended(search)
    if cell is None:
        over = bool(search.tries) and all(t.outcome in FALLEN for t in search.tries.values())
        if over and not search.short:
            return NOT_LOOKED_FOR._replace(found=Sure.NOWHERE)
        return _begun_best(search)
    trials = [search.tries[cell, seed] for seed in search.seeds if (cell, seed) in search.tries]
    loss = float(np.mean([t.horizon_loss for t in trials]))
    learning = [t.outcome is Outcome.LEARNS for t in trials]
    if not any(learning) and not lowers(search, cell):
        return NOT_LOOKED_FOR._replace(loss=loss, found=Sure.NOWHERE)
    if len(trials) < len(search.seeds):
        found = Sure.UNFINISHED
    elif all(learning):
        found = Sure.LEARNS
    else:
        found = Sure.SOME_SEEDS if any(learning) else Sure.LOWERS
    tied = _tied_with(search, cell)
    cell = _off_the_cliff(search, cell, tied)
    loss = float(np.mean([search.tries[cell, t.seed].horizon_loss for t in trials]))
    return Recommended(search.lr(cell), search.lr(min(tied)), search.lr(max(tied)), loss, found)


def _begun_best(search: Search) -> Recommended:
    """Where no trial came to its end: the rate of the lowest loss after as many steps as most have, if that is below
    its start. Its loss at the horizon is not known."""
    seed, least = search.seeds[0], RUNGS[0] * search.steps
    begun = {c: t.losses for (c, s), t in search.short.items() if s == seed and len(t.losses) >= least}
    ends = {c: end_loss(losses[: min(map(len, begun.values()))]) for c, losses in begun.items()}
    cell = min(ends, key=lambda c: ends[c], default=None)
    if cell is None or len(ends) < 2 or not ends[cell] < LEARNING_FACTOR * float(begun[cell][0]):
        return NOT_LOOKED_FOR
    lr = search.lr(cell)
    return Recommended(lr, lr, lr, math.nan, Sure.UNFINISHED)


def _off_the_cliff(search: Search, cell: int, tied: set[int]) -> int:
    """This cell, or the one of the lowest loss among those tied with it that are `ALIKE` and lie `MARGIN` below the
    next that falls (does not learn, where this one does)."""
    stays = (Outcome.LEARNS,) if _learns_at(search, cell) else (Outcome.LEARNS, Outcome.STALLED)
    falls = min((c for (c, _), t in search.tries.items() if c > cell and t.outcome not in stays), default=math.inf)
    if falls - cell >= MARGIN:
        return cell
    trials = {c: [search.tries[c, seed] for seed in search.seeds if (cell, seed) in search.tries] for c in tied}
    losses = {c: float(np.mean([t.horizon_loss for t in mine])) for c, mine in trials.items()}
    start = float(np.mean([t.losses[0] for t in trials[cell]]))
    enough = losses[cell] + ALIKE * max(reference_loss(start, search.constant_loss) - losses[cell], 0.0)
    further = [c for c in tied if falls - c >= MARGIN and losses[c] <= enough]
    return min(further, key=lambda c: losses[c], default=cell)


def _learns_at(search: Search, cell: int) -> bool:
    """Whether every seed that was tried in this cell learns."""
    return all(t.outcome is Outcome.LEARNS for (c, _), t in search.tries.items() if c == cell)


def _tied_with(search: Search, cell: int) -> set[int]:
    """The cells around this one, without a gap, that no other beats on the seeds and mini-batches in common; of those
    that learn only, where it does."""
    seeds = [seed for seed in search.seeds if (cell, seed) in search.tries]
    finite = horizon_losses(search, seeds)
    horizons = {c: {s: search.tries[c, s].horizon for s in seeds} for c in finite}
    alike = indistinguishable(horizons) | {cell}
    tied = {cell}
    for direction in (-1, 1):
        for c in sorted((c for c in finite if (c - cell) * direction > 0), key=lambda c: abs(c - cell)):
            if c not in alike or (_learns_at(search, cell) and not _learns_at(search, c)):
                break
            tied.add(c)
    return tied


def lowers(search: Search, cell: int) -> bool:
    """Whether the loss ends below its start, by three standard errors of its end, on the mean over the seeds tried."""
    trials = [t for (c, _), t in search.tries.items() if c == cell]
    ends = np.concatenate([t.horizon for t in trials])
    error = float(ends.std(ddof=1) / math.sqrt(len(ends))) if len(ends) > 1 else 0.0
    start = float(np.mean([t.losses[0] for t in trials]))
    return float(ends.mean()) + STANDARD_ERRORS * error < start
