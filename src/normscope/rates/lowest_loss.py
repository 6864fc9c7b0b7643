"""The rate to train at: over the rate, the loss at the horizon is a noisy valley with plateaus, dips and cliffs.

*Spread*: short descents on one seed, a decade apart over the whole plausible range. *Halve*: the rates of the lowest
loss go on, fewer and fewer of them, to the horizon. *Refine*: neighbours of the lowest, then the best few on every seed
and the same mini-batches. As long as no rate has left the plateau of the best constant output nothing is dropped: there
the loss does not tell good rates from bad ones. No torch here.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from normscope.descent.outcome import LEARNING_FACTOR, Outcome, reference_loss
from normscope.rates.search import CELLS_A_DECADE, Search

SPREAD = CELLS_A_DECADE
"""Cells between the rates that are tried first."""

RUNGS = (0.25, 0.5, 1.0)
"""Shares of the steps at which rates are compared."""

KEPT = (4, 3)
"""Rates that go on after each rung but the last."""

CLOSE = 2
"""Cells between the rates of the lowest loss at the end: a factor 1.6."""

FINALISTS = 2
"""Rates that are tried on every seed."""

TAIL = 0.2
"""Share of a descent's last steps whose mean stands for its end: longer than the horizon, since one seed tells
little."""

FALLEN = (Outcome.DIVERGED, Outcome.DEAD)
"""Outcomes of rates that are never trained at: what is dead has the loss of the best constant output for good."""

ALIKE = 0.05
"""Share of what was gained so far by which the loss of a rate has to be higher to tell that it is worse."""

NEARLY = 0.01
"""Share of what is gained at the lowest loss that a smaller rate may lose and still be the one to train at."""

CAUTION = 0.5
"""Standard errors over the seeds that are added to a rate's loss: seeds differ most near a cliff."""

SMOOTHING = 2.0
"""Standard deviation, in cells, over which losses of neighbouring rates are averaged before the lowest is chosen."""


def end_loss(losses: np.ndarray, share: float = TAIL) -> float:
    """The mean of the last steps of a descent so far."""
    return float(np.mean(losses[-max(1, round(share * len(losses))) :]))


def spread(search: Search, *, top: int, bottom: int) -> None:
    """Short descents over the whole range on the first seed, the best of which go on to the horizon."""
    rungs = [max(2, round(share * search.steps)) for share in RUNGS]
    for cell in range(bottom, top + 1, SPREAD):
        search.go(cell, search.seeds[0], until=rungs[0])
    while (cell := beyond(search, rungs[0])) is not None and search.go(cell, search.seeds[0], until=rungs[0]):
        pass
    for rung, following, kept in zip(rungs, rungs[1:], KEPT, strict=False):
        ranking = _ranked(search, rung)
        if not ranking:
            return
        if _left_the_plateau(search, ranking[0], rung):
            best = ranking[0]
            for cell in (best - SPREAD // 2, best + SPREAD // 2):
                if search.lowest <= cell <= search.highest:
                    search.go(cell, search.seeds[0], until=rung)
            ranking = _in_contention(search, rung, kept)
        for cell in ranking:
            search.go(cell, search.seeds[0], until=following)


def beyond(search: Search, rung: int) -> int | None:
    """The next cell where the lowest loss lies at an end of what was spread; None inside it."""
    ranking = _ranked(search, rung)
    every = {cell for cell, _ in (*search.short, *search.tries)}
    if not every:
        return None
    best = ranking[0] if ranking else min(every)
    if best == min(every) and best - SPREAD >= search.lowest:
        return best - SPREAD
    if best == max(every) and best + SPREAD <= search.highest:
        return best + SPREAD
    return None


def so_far(search: Search, seed: int) -> dict[int, np.ndarray]:
    """The losses by cell of this seed's descents that have not diverged."""
    both = {**search.short, **search.tries}
    return {c: t.losses for (c, s), t in both.items() if s == seed and t.outcome is not Outcome.DIVERGED}


def _ranked(search: Search, until: int) -> list[int]:
    """The cells that got this far on the first seed, those of the lowest loss there first."""
    ends = {c: end_loss(x[:until]) for c, x in so_far(search, search.seeds[0]).items() if len(x) >= until}
    return sorted(ends, key=lambda c: ends[c])


def _in_contention(search: Search, until: int, kept: int) -> list[int]:
    """The first of the ranking, and whatever is `ALIKE` with its best: only what another is ahead of is dropped."""
    losses = so_far(search, search.seeds[0])
    ranking = _ranked(search, until)
    ends = {c: end_loss(losses[c][:until]) for c in ranking}
    best = ranking[0]
    alike = ends[best] + ALIKE * (float(losses[best][0]) - ends[best])
    return [c for i, c in enumerate(ranking) if i < kept or ends[c] <= alike]


def _left_the_plateau(search: Search, cell: int, until: int) -> bool:
    """Whether this cell's loss lies below the start and what a constant output reaches."""
    losses = so_far(search, search.seeds[0])[cell][:until]
    return end_loss(losses) < LEARNING_FACTOR * reference_loss(float(losses[0]), search.constant_loss)


def refine(search: Search, seeds: Sequence[int]) -> None:
    """On the first seed what looks lowest on any; the best few of it on these seeds; then neighbours of the lowest loss
    over them, until it has two. None is begun that cannot be tried on all."""
    while (cell := _seen_elsewhere(search)) is not None:
        if not search.go(cell, search.seeds[0]):
            return
    for seed in seeds[1:]:
        for cell in _finalists(search):
            search.go(cell, seed)
    while (cell := closer(search, seeds)) is not None:
        untried = [seed for seed in seeds if (cell, seed) not in search.tries]
        if not search.has_room(len(untried)) or not all(search.go(cell, seed) for seed in untried):
            return


def _seen_elsewhere(search: Search) -> int | None:
    """The cell of the lowest loss on any seed, as the search for a boundary meets one, where the first lacks it."""
    fallen = {c for (c, _), t in search.tries.items() if t.outcome in FALLEN}
    ends = {(c, s): end_loss(t.losses) for (c, s), t in search.tries.items() if c not in fallen}
    cell = min(ends, key=lambda key: ends[key], default=(None, None))[0]
    return None if (cell, search.seeds[0]) in ends else cell


def closer(search: Search, seeds: Iterable[int]) -> int | None:
    """A neighbour of the cell of the lowest loss that was not tried on these seeds; None where both were."""
    seeds = list(seeds)
    losses = horizon_losses(search, seeds)
    if not losses:
        return None
    best = min(losses, key=lambda c: losses[c])
    tried = {c for c, s in search.tries if s == seeds[-1]}
    for side in (-CLOSE, CLOSE):
        near = [c for c in tried if 0 < (c - best) * np.sign(side) <= CLOSE + 1]
        if not near and search.lowest <= best + side <= search.highest:
            return best + side
    return None


def horizon_losses(search: Search, seeds: Iterable[int], caution: float = 0.0) -> dict[int, float]:
    """The mean loss at the end over these seeds, of the cells in which no seed diverged or died, and so many standard
    errors above it."""
    fallen = {c for (c, _), t in search.tries.items() if t.outcome in FALLEN}
    per_seed = [
        {c: end_loss(t.losses) for (c, s), t in search.tries.items() if s == seed and c not in fallen} for seed in seeds
    ]
    common = set.intersection(*(set(one) for one in per_seed)) if per_seed else set()
    values = {c: np.asarray([one[c] for one in per_seed]) for c in common}
    errors = {c: v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0.0 for c, v in values.items()}
    return {c: float(v.mean() + caution * errors[c]) for c, v in values.items()}


def _finalists(search: Search) -> list[int]:
    """The cells of the lowest losses on the first seed."""
    losses = horizon_losses(search, search.seeds[:1])
    return sorted(losses, key=lambda c: losses[c])[:FINALISTS]


def recommended(search: Search) -> int | None:
    """The cell to train at: the lowest of those whose loss, smoothed over neighbours, lies within `NEARLY` of the
    lowest, for a cliff lies above and never below."""
    seeds = _seeds_to_ask(search)
    losses = horizon_losses(search, seeds, CAUTION)
    if not losses:
        return None
    smooth = {c: smoothed(losses, c) for c in losses}
    lowest = min(smooth.values())
    start = float(np.mean([search.tries[min(losses), seed].losses[0] for seed in seeds]))
    gain = reference_loss(start, search.constant_loss) - lowest
    return min(c for c in smooth if smooth[c] <= lowest + max(NEARLY * gain, 0.0))


def _seeds_to_ask(search: Search) -> Sequence[int]:
    """As many seeds as there are, unless what was tried on fewer is `ALIKE` no more, but lower on the first."""
    first = horizon_losses(search, search.seeds[:1])
    if not first:
        return search.seeds
    lowest = min(first, key=lambda c: first[c])
    start = float(search.tries[lowest, search.seeds[0]].losses[0])
    alike = first[lowest] + ALIKE * max(reference_loss(start, search.constant_loss) - first[lowest], 0.0)
    for count in range(len(search.seeds), 1, -1):
        losses = horizon_losses(search, search.seeds[:count])
        if losses and first[min(losses, key=lambda c: losses[c])] <= alike:
            return search.seeds[:count]
    return search.seeds[:1]


def smoothed(losses: dict[int, float], cell: int) -> float:
    """The loss of a local parabola at this cell: a weighted fit through its neighbours, and no lower than all of them,
    for beside a steep rise it undershoots."""
    cells = np.asarray(sorted(losses))
    near = cells[np.abs(cells - cell) <= 3 * SMOOTHING]
    if len(near) < 4:
        return losses[cell]
    x, y = near - cell, np.asarray([losses[c] for c in near])
    weights = np.exp(-0.5 * (x / SMOOTHING) ** 2)
    fitted = np.polynomial.polynomial.polyfit(x, y, 2, w=np.sqrt(weights))[0]
    return float(max(fitted, y.min()))
