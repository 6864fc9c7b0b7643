"""Where a boundary lies on a line of cells: which cell to try next, knowing what was tried. Pure logic, no torch.

Cell k stands for the rate 10^(k/10). A cell *fails* when any seed fails in it, and *passes* when all seeds pass; one in
which only some seeds were tried, and none failed, passes so far. The boundary is the first failure going up: a bracket
(low, high) of neighbouring cells is found when `low` passes on all seeds and `high` fails.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Known = Mapping[tuple[int, int], bool]
"""(cell, seed) -> whether it passed."""

FIRST_STRIDE, LONGEST_STRIDE = 4, 16
"""How far to jump where one side is still open, in cells: 0.4 decades at first, doubling up to 1.6."""


class Edge(NamedTuple):
    """A boundary lies above `low` (None: nothing passes) and not above `high` (None: nothing fails)."""

    low: int | None
    high: int | None


def edge(known: Known, anchor: int | None = None) -> Edge:
    """The first failing cell going up, from `anchor` where that is given, and the highest passing cell below it."""
    failing = {cell for (cell, _), passed in known.items() if not passed and (anchor is None or cell > anchor)}
    high = min(failing, default=None)
    below = [cell for cell, _ in known if (high is None or cell < high) and (anchor is None or cell >= anchor)]
    return Edge(max(below, default=None), high)


def next_try(
    known: Known, *, seeds: Sequence[int], start: int, lowest: int, highest: int, anchor: int | None = None
) -> tuple[int, int] | None:
    """The (cell, seed) to try next, or None where the bracket is found or the range is used up.

    Begins at `start`, jumps in doubling strides while one side is open, then halves the gap; last, the lower end is
    confirmed on every seed, and where one fails there the search goes on below it. The seed that failed lowest is tried
    first: it is the likeliest to fail again, and one failure settles a cell.
    """
    low, high = edge(known, anchor)
    first = weakest_first(known, seeds, high)
    if low is None and high is None:
        return start, first[0]
    if low is None:
        if high is None or high <= lowest:
            return None
        return max(lowest, high - stride(start - high)), first[0]
    if high is None:
        if low < highest:
            return min(highest, low + stride(low - start)), first[0]
    elif high - low > 1:
        return (low + high) // 2, first[0]
    untried = [seed for seed in first if (low, seed) not in known]
    return (low, untried[0]) if untried else None


def next_hunt(losses: Mapping[int, float], *, start: int, lowest: int, highest: int, closest: int = 3) -> int | None:
    """The cell to try next where none passes yet: down the valley of the loss at the horizon, which falls from the
    rates that are too small to those that learn, and rises again to those that are too large.

    Args:
        losses: of every cell tried; NaN where it diverged.
        closest: cells nearer than this to the best are not tried any more.

    Returns:
        None where the best cell's neighbourhood is used up.
    """
    if start not in losses:
        return start
    finite = {cell: loss for cell, loss in losses.items() if math.isfinite(loss)}
    best = min(finite, key=lambda cell: finite[cell], default=min(losses))
    below = max((cell for cell in losses if cell <= best - closest), default=None)
    above = min(
        (cell for cell in losses if cell >= best + closest or (cell > best and cell not in finite)), default=None
    )
    if below is None and best - closest >= lowest:
        return max(lowest, best - stride(start - best))
    if above is None and best + closest <= highest:
        return min(highest, best + stride(best - start))
    gaps = {(best + side) // 2: abs(best - side) for side in (below, above) if side is not None}
    widest = max(gaps, key=lambda cell: gaps[cell], default=None)
    return widest if widest is not None and gaps[widest] > closest else None


def weakest_first(known: Known, seeds: Sequence[int], cell: int | None) -> list[int]:
    """The seeds, those first that failed in this cell."""
    return sorted(seeds, key=lambda seed: known.get((cell, seed), True) if cell is not None else True)


def stride(travelled: int) -> int:
    """As far again as was travelled, within bounds."""
    return min(max(FIRST_STRIDE, travelled), LONGEST_STRIDE)


def monotone(known: Known) -> bool:
    """Whether no seed passes above a cell in which it fails."""
    seeds = {seed for _, seed in known}
    for seed in seeds:
        failing = [cell for (cell, s), passed in known.items() if s == seed and not passed]
        passing = [cell for (cell, s), passed in known.items() if s == seed and passed]
        if failing and passing and max(passing) > min(failing):
            return False
    return True
