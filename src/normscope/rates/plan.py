"""In which order the three rates are searched, and how they share the training steps. No torch here."""

from normscope.rates.lowest_loss import refine, spread
from normscope.rates.search import CELLS_A_DECADE, Boundary, Search, confirm_lowest_loss, find_stable, find_usable

STABLE_SHARE, USABLE_SHARE = 0.8, 0.85
"""Of the steps allowed, those that may be used once the stable and the usable boundary were searched a first time: the
rest is for the rate of the lowest loss, and what that leaves for the boundaries again."""

ABOVE = 2
"""The range begins so many cells above where one step of the optimizer says that it diverges ..."""

BELOW_STABLE, BELOW_USABLE = 4 * CELLS_A_DECADE, 2 * CELLS_A_DECADE
"""... and ends so far below that, and below where one step lowers the loss most."""

LOWEST_OF_ADAM = -5 * CELLS_A_DECADE
"""Where updates do not grow with the gradient one step says little: the range ends no higher than 1e-5."""


def find_both(search: Search, *, stable: int, usable: int) -> tuple[Boundary, Boundary]:
    """The stable and the usable boundary, searched from these cells; then the lowest loss is confirmed.

    The usable boundary is searched from no higher than the stable one, which is searched again where a try meanwhile
    diverged below it.
    """
    below = find_stable(search, stable).edge.low
    learning = find_usable(search, usable if below is None else min(usable, below))
    confirm_lowest_loss(search)
    return find_stable(search, stable), learning


def find_all(search: Search, *, stable: int, usable: int, grows_with_gradient: bool) -> tuple[Boundary, Boundary]:
    """Both boundaries, among trials that also tell the rate to train at; the cells are where one step puts them."""
    top = min(search.highest, max(stable, usable) + ABOVE)
    bottom = min(top - BELOW_STABLE, usable - BELOW_USABLE)
    spread(search, top=top, bottom=max(search.lowest, bottom if grows_with_gradient else min(bottom, LOWEST_OF_ADAM)))
    refine(search, search.seeds[:1])
    find_stable(search, stable, STABLE_SHARE)
    refine(search, search.seeds[:1])
    find_usable(search, usable, USABLE_SHARE)
    refine(search, search.seeds)
    learning = find_usable(search, usable)
    return find_stable(search, stable), learning
