"""Is the rate that somebody trains with a good one? It and a few around it are tried, at a third of a search's cost.

The *edge* is the first rate going up at which a seed diverges or does not learn. A rate *diverges* where a seed does;
it is *near or above the edge* where a seed does not learn at it, or at twice the rate; *too small* where a larger rate
gains considerably more within the steps; else *good*. Cell 0 of the search is the rate itself. No torch here.
"""

import math
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from normscope.descent.outcome import Outcome, reference_loss
from normscope.rates.search import Search, find_stable, learns, stays_finite
from normscope.rates.trial import Trial

TWICE = 3
"""Cells to twice the rate."""

FURTHER = (8, 13)
"""Cells to larger rates that are tried on one seed, as long as they learn: 6 and 20 times."""

AROUND = (10, -10, -20, 20, 5, -5, 30)
"""Cells around a rate that does not learn, tried in turn until it is known on which side it learns, ..."""

BELOW = (-10, -20)
"""... of which these say whether a larger rate that learns is the way, or an escape from a rate that is far too large:
they are tried even where a larger one learns."""

TOO_SMALL = 0.2
"""Share of what can be gained that a rate must leave to a larger one to be called too small."""

MOST_TRIALS_A_SEED = 2.6
"""Of full length: a third of the search for all three rates."""


class Judgement(StrEnum):
    """What is said of somebody's own rate."""

    DIVERGES = "diverges"
    NEAR = "near or above the edge"
    GOOD = "good"
    SMALL = "too small"
    NOWHERE = "learns at no rate tried"
    UNFINISHED = "unfinished"


class OwnRate(NamedTuple):
    """The judgement with what it rests on; rates are NaN where nothing is known of them."""

    judgement: Judgement
    passes: float
    """The largest rate tried below the edge: every seed tried learns (where the rate diverges: does not diverge)."""
    fails: float
    """The smallest rate tried at which one does not; inf where none was found."""
    outcomes: list[str]
    """Of each seed at the rate itself."""
    loss: float
    """At the horizon, mean over the seeds."""
    better_lr: float
    """The larger rate that gains more, where the rate is too small."""
    better_loss: float


def judge_own(search: Search) -> OwnRate:
    """Try the rate on every seed, and then what decides."""
    for seed in search.seeds:
        if not search.go(0, seed):
            return _told(search, Judgement.UNFINISHED)
    own = [search.tries[0, seed] for seed in search.seeds]
    if not all(map(stays_finite, own)):
        find_stable(search, -TWICE)
        return _told(search, Judgement.DIVERGES, passes=stays_finite)
    if all(map(learns, own)):
        return _judge_learning(search)
    seed = search.seeds[0]
    for cell in AROUND:
        if not search.go(cell, seed):
            break
        learning = search.learning()
        if min(learning, default=0) < 0 or (learning and all((c, seed) in search.tries for c in BELOW)):
            return _told(search, Judgement.SMALL if learning[0] > 0 else Judgement.NEAR)
    if search.stopped:
        return _told(search, Judgement.UNFINISHED)
    return _told(search, Judgement.SMALL if _gains_more(search) is not None else Judgement.NOWHERE)


def _judge_learning(search: Search) -> OwnRate:
    weakest = sorted(search.seeds, key=lambda s: -search.tries[0, s].horizon_loss)
    for seed in weakest:
        if not search.go(TWICE, seed):
            return _told(search, Judgement.UNFINISHED if search.stopped else Judgement.GOOD)
        if not learns(search.tries[TWICE, seed]):
            return _told(search, Judgement.NEAR)
    for cell in FURTHER:
        if not search.go(cell, weakest[0]) or not learns(search.tries[cell, weakest[0]]):
            break
    return _told(search, Judgement.GOOD if _gains_more(search) is None else Judgement.SMALL)


def _gains_more(search: Search) -> int | None:
    """The larger rate of the lowest loss, where it leaves the rate itself behind by `TOO_SMALL` of its gain, on the
    seeds that both were tried on."""
    best, found = TOO_SMALL, None
    for cell in {c for c, _ in search.tries if c > 0}:
        seeds = [s for c, s in search.tries if c == cell and (0, s) in search.tries]
        pairs = [(search.tries[0, s], search.tries[cell, s]) for s in seeds]
        own, other = (float(np.mean([pair[i].horizon_loss for pair in pairs])) for i in (0, 1))
        start = float(np.mean([pair[0].losses[0] for pair in pairs]))
        gain = reference_loss(start, search.constant_loss) - other
        if gain > 0 and (own - other) / gain > best:
            best, found = (own - other) / gain, cell
    return found


def _told(search: Search, judgement: Judgement, passes: Callable[[Trial], bool] = learns) -> OwnRate:
    own = [t for (c, _), t in search.tries.items() if c == 0]
    failing = [c for (c, _), t in search.tries.items() if not passes(t)]
    passing = {c for (c, _), t in search.tries.items() if passes(t)} - set(failing)
    if judgement is Judgement.SMALL:
        # What is too small to learn is no edge.
        failing = [c for c in failing if c > max(passing, default=0)]
    low = max((c for c in passing if c < min(failing, default=math.inf)), default=None)
    better = _gains_more(search) if judgement is Judgement.SMALL else None
    better_losses = [t.horizon_loss for (c, _), t in search.tries.items() if c == better]
    return OwnRate(
        judgement,
        math.nan if low is None else search.lr(low),
        search.lr(min(failing)) if failing else math.inf,
        [t.outcome.value if t.outcome else "" for t in own],
        float(np.mean([t.horizon_loss for t in own])) if own else math.nan,
        math.nan if better is None else search.lr(better),
        float(np.mean(better_losses)) if better_losses else math.nan,
    )


def diverged_trial(search: Search) -> tuple[int, int] | None:
    """The seed that diverges first at the rate itself, and at which step; None where none does."""
    steps = {s: len(t.losses) - 1 for (c, s), t in search.tries.items() if c == 0 and t.outcome is Outcome.DIVERGED}
    return min(steps.items(), key=lambda item: item[1], default=None)
