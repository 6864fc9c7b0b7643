"""The rate for a longer training: as training lengthens the best rate falls, by how much is measured and extrapolated.

The rates around the best go on, from where their trials ended, to twice and four times the steps. At each length the
lowest loss is that of a parabola through three rates. Over the logarithm of the length its place is a line, whose slope
has a prior: what was measured on other networks. No torch here.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from normscope.descent.outcome import Outcome
from normscope.rates.lowest_loss import TAIL, end_loss
from normscope.rates.search import Search, cell_of

LENGTHS = (1, 2, 4)
"""Times the steps of a trial to which the best rates go on."""

COOLDOWN = 0.25
"""Share of its steps over which a training that is to end with a decayed rate goes on, while the rate falls linearly to
0: a fifth of the whole (Hägele et al. 2024)."""

SPACING = 3
"""Cells between the rates that are compared: a factor 2."""

DRIFT, DRIFT_ERROR = {False: -0.7, True: -0.5}, 0.6
"""Cells by which the best rate moves with each doubling of the length, without and with a cooldown: the prior's mean
and standard deviation."""

PLACE_ERROR = 1.0
"""Standard deviation, in cells, that a lowest loss between three rates has at the least."""

BEYOND_ERROR = 0.5
"""... and what each doubling beyond the lengths measured adds, for a line need not go on as one."""

INTERVAL = 1.645
"""Standard deviations on either side: nine of ten."""


class Length(NamedTuple):
    """The lowest loss of trainings of this many steps."""

    steps: int
    cell: float
    """Where the loss is lowest, between cells."""
    error: float
    """Its standard deviation."""
    loss: float
    """The lowest found, mean over seeds."""
    lr: float = math.nan
    """Of the cell."""


class LongerTraining(NamedTuple):
    """The rate for a training of `steps`, with its interval; NaN where no length was measured."""

    steps: int
    lr: float
    low: float
    high: float
    lengths: Sequence[Length]
    complete: bool
    """Whether neither time nor steps ended it before the last of its lengths."""


def longest(steps: int, train_steps: int) -> int:
    """Of the trials for such a training, at most."""
    return min(round(max(LENGTHS) * (1 + COOLDOWN)) * steps, train_steps)


def longer_training(search: Search, lr: float, train_steps: int, *, cooldown: bool) -> LongerTraining:
    """Go on with the trials around this rate as far as the search's time and steps allow; not where it is NaN."""
    if not lr > 0:
        return LongerTraining(train_steps, math.nan, math.nan, math.nan, [], complete=True)
    whole = 1 + COOLDOWN if cooldown else 1.0
    stems = sorted({round(min(times * search.steps, train_steps / whole)) for times in LENGTHS})
    lengths: list[Length] = []
    cell = cell_of(lr, search.lowest)
    for stem in stems:
        losses = _around(search, cell, stem, round(COOLDOWN * stem) if cooldown else 0)
        if not losses:
            break
        found = _lowest(losses, round(whole * stem))
        lengths.append(found._replace(lr=search.lr(found.cell)))
        cell = round(lengths[-1].cell)
    place, error = extrapolated(lengths, train_steps, DRIFT[cooldown])
    low, lr, high = (search.lr(place + side * INTERVAL * error) for side in (-1, 0, 1))
    return LongerTraining(train_steps, lr, low, high, lengths, len(lengths) == len(stems))


def extrapolated(lengths: Sequence[Length], train_steps: int, drift: float) -> tuple[float, float]:
    """The cell of the lowest loss after `train_steps`, and its standard deviation: the posterior of a line over the
    binary logarithm of the length, with a normal prior on its slope and none on its height."""
    if not lengths:
        return math.nan, math.nan
    x = np.log2([one.steps / train_steps for one in lengths])
    y = np.asarray([one.cell for one in lengths])
    weights = 1 / np.asarray([max(one.error, PLACE_ERROR) for one in lengths]) ** 2
    design = np.stack([np.ones_like(x), x], 1)
    precision = design.T @ (weights[:, None] * design) + np.diag([0.0, DRIFT_ERROR**-2])
    covariance = np.linalg.inv(precision)
    height, _ = covariance @ (design.T @ (weights * y) + np.asarray([0.0, drift * DRIFT_ERROR**-2]))
    return float(height), math.hypot(math.sqrt(covariance[0, 0]), BEYOND_ERROR * float(-x[-1]))


def _around(search: Search, cell: int, stem: int, cooldown: int) -> dict[int, np.ndarray]:
    """The loss at the end on each seed by cell, inf where it diverged: of the lowest and its neighbours, for which is
    looked from this cell. Empty where time or steps ended it."""
    losses: dict[int, np.ndarray] = {}
    wanted = cell
    while wanted not in losses:
        ends = []
        for seed in search.seeds:
            trial = search.go_beyond(wanted, seed, stem, cooldown)
            if trial is None:
                return {}
            share = TAIL / 4 if cooldown else TAIL  # while the rate falls, so does the loss
            ends.append(math.inf if trial.outcome is Outcome.DIVERGED else end_loss(trial.losses, share))
            if math.isinf(ends[-1]):
                break
        losses[wanted] = np.asarray(ends + [math.inf] * (len(search.seeds) - len(ends)))
        best = min(losses, key=lambda c: (float(losses[c].mean()), c))
        sides = [c for c in (best - SPACING, best + SPACING) if search.lowest <= c <= search.highest]
        wanted = next((c for c in sides if c not in losses), best)
    return losses


def _lowest(losses: dict[int, np.ndarray], steps: int) -> Length:
    """Where the parabola through the lowest and its neighbours is lowest, and how far seeds move that."""
    best = min(losses, key=lambda c: (float(losses[c].mean()), c))
    lowest = float(losses[best].mean())
    below, above = losses.get(best - SPACING), losses.get(best + SPACING)
    if below is None or above is None or not np.isfinite([below, above]).all():
        return Length(steps, float(best), SPACING / 2, lowest)
    bend = float((below - 2 * losses[best] + above).mean())
    if not bend > 0:
        return Length(steps, float(best), float(SPACING), lowest)
    places = SPACING * (below - above) / (2 * bend)
    error = float(places.std(ddof=1) / math.sqrt(len(places))) if len(places) > 1 else SPACING / 2
    return Length(steps, best + float(np.clip(places.mean(), -SPACING / 2, SPACING / 2)), error, lowest)
