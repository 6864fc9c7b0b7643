"""Where a boundary lies on a line of cells: which cell to try next, knowing what was tried. Pure logic, no torch.

Cell k stands for the rate 10^(k/10). A cell *fails* when any seed fails in it, and *passes* when all seeds pass; one in
which only some seeds were tried, and none failed, passes so far. The boundary is the first failure going up: a bracket
(low, high) of neighbouring cells is found when `low` passes on all seeds and `high` fails.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

Known = Mapping[tuple[int, int], bool]
"""(cell, seed) -> whether it passed."""

FIRST_STRIDE, LONGEST_STRIDE = 2, 16
"""How far to jump where one side is still open, in cells: 0.2 decades at first by default, doubling up to 1.6."""

CLOSEST = 3
"""Cells nearer than this to each other are one place when a rate that learns is hunted."""

CHECKED_BELOW = 2
"""How far below a bracket one more try looks for an earlier failure, in cells: one next to it would hardly move it."""

PLATEAU = 0.01
"""Losses that differ by no more than this share say nothing about where to go."""


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
    known: Known,
    *,
    seeds: Sequence[int],
    start: int,
    lowest: int,
    highest: int,
    anchor: int | None = None,
    first_stride: int = FIRST_STRIDE,
    descent: int | None = None,
    check_below: bool = True,
) -> tuple[int, int] | None:
    """The (cell, seed) to try next, or None where the bracket is found or the range is used up.

    Begins at `start`, jumps in doubling strides while one side is open or far off, then halves the gap; then the lower
    end is confirmed on every seed, and where one fails there the search goes on below it. As long as
    nothing fails the seeds take turns; then the one that failed lowest is tried first, the likeliest to fail
    again, and one failure settles a cell.

    Args:
        descent: where failures cost far less than passes, how many cells below the lowest failure to go at most, so
            that the boundary is come upon from above. None: jump, and halve the gap.
        check_below: try `CHECKED_BELOW` cells further down at last: outcomes need not be monotone, and it may be the
            first failure going up that is wanted.
    """
    low, high = edge(known, anchor)
    first = weakest_first(known, seeds, high)
    if low is None and high is None:
        return start, first[0]
    if low is None:
        if high is None or high <= lowest:
            return None
        return max(lowest, high - (descent or stride(start - high, first_stride))), first[0]
    if high is None:
        if low < highest:
            fewest = min(seeds, key=lambda seed: sum(s == seed and cell >= low for cell, s in known))
            return min(highest, low + stride(low - start, first_stride)), fewest
    elif high - low > 1:
        if descent is not None:
            return max((low + high) // 2, high - descent), first[0]
        return min((low + high) // 2, low + stride(low - start, first_stride)), first[0]
    untried = [seed for seed in first if (low, seed) not in known]
    if untried:
        return low, untried[0]
    below = low - CHECKED_BELOW, first[0]
    return below if check_below and high is not None and below[0] >= lowest and below not in known else None


def confirmed(known: Known, found: Edge, *, seeds: Sequence[int], highest: int) -> bool:
    """Whether the lower end passes on all seeds, and its neighbour fails or lies outside the range."""
    low, high = found
    if low is None or low != (highest if high is None else high - 1):
        return False
    return all((low, seed) in known for seed in seeds)


def next_hunt(losses: Mapping[int, float], *, start: int, lowest: int, highest: int) -> int | None:
    """The cell to try next where none passes yet: down the valley of the loss at the horizon, which falls from the
    rates that are too small to those that learn, and rises again to those that are too large.

    On a plateau, as networks end on that died at once or hardly moved, the loss does not say which side is which: then
    the widest gap is halved, or the next jump goes down where that is longer.

    Args:
        losses: of every cell tried; NaN where it diverged.

    Returns:
        None where the neighbourhood of the lowest loss is used up.
    """
    if start not in losses:
        return start
    finite = {cell: loss for cell, loss in losses.items() if math.isfinite(loss)}
    floor = min(finite.values(), default=math.nan)
    level = [cell for cell, loss in finite.items() if loss <= floor + PLATEAU * abs(floor)] or [min(losses)]
    best, tried = min(level), sorted(losses)
    jump = max(lowest, tried[0] - stride(start - tried[0]))
    if max(level) - best >= CLOSEST:
        gaps = {(low + high) // 2: high - low for low, high in pairwise(tried)}
        widest = max(gaps, key=lambda cell: gaps[cell])
        return widest if gaps[widest] > tried[0] - jump or jump in losses else jump
    below = max((cell for cell in tried if cell <= best - CLOSEST), default=None)
    above = min((c for c in tried if c >= best + CLOSEST or (c > best and c not in finite)), default=None)
    if below is None and jump not in losses:
        return jump
    if above is None and tried[-1] < highest:
        return min(highest, tried[-1] + stride(tried[-1] - start))
    middles = {(best + side) // 2: abs(best - side) for side in (below, above) if side is not None}
    gaps = {cell: gap for cell, gap in middles.items() if gap > CLOSEST and cell not in losses}
    return max(gaps, key=lambda cell: gaps[cell], default=None)


def weakest_first(known: Known, seeds: Sequence[int], cell: int | None) -> list[int]:
    """The seeds, those first that failed in this cell."""
    return sorted(seeds, key=lambda seed: known.get((cell, seed), True) if cell is not None else True)


def stride(travelled: int, first: int = FIRST_STRIDE) -> int:
    """As far again as was travelled, within bounds."""
    return min(max(first, travelled), LONGEST_STRIDE)


def monotone(known: Known) -> bool:
    """Whether no seed passes above a cell in which it fails."""
    seeds = {seed for _, seed in known}
    for seed in seeds:
        failing = [cell for (cell, s), passed in known.items() if s == seed and not passed]
        passing = [cell for (cell, s), passed in known.items() if s == seed and passed]
        if failing and passing and max(passing) > min(failing):
            return False
    return True
