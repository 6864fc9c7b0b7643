"""How every picture looks: colours that mean the same everywhere, sizes, and the axes they are drawn on."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from normscope.errors import NormscopeError, ResultError, one_line
from normscope.results.dataset import writable

COLORS = {
    "batch": "#1f6fb4",
    "frozen": "#6db0dd",
    "none": "#c8442c",
    "final": "#2e8b57",
    "group": "#8250a8",
    "layer": "#b8860b",
}
"""The colour of each normalization; others take what is left of matplotlib's cycle."""

NAMES = {
    "batch": "with batch norm",
    "frozen": "statistics frozen",
    "none": "without",
    "final": "batch norm before the last layer",
}

STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": "medium",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "lines.linewidth": 1.6,
    "font.size": 10.0,
    "svg.fonttype": "path",
}


def figure_of(
    rows: int, columns: int, *, panel: tuple[float, float] = (3.7, 3.0), **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `rows` × `columns` panels, each about `panel` inches, in normscope's style; axes as a 2-d array.

    Belongs to no window, so that nothing has to be closed.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes given, or new ones shown by pyplot where that is in use."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    with mpl.rc_context(STYLE):
        return plt.subplots(layout="constrained")[1]


def literal(text: str) -> str:
    """A name as it is drawn: a $ in it begins no mathematics, and what UTF-8 cannot hold is escaped."""
    return re.sub(r"(?<!\\)\$", r"\\$", writable(text))


def axis_label(array: Any) -> str:
    """The label of an axis from what the array says of itself: its long name, and its unit where it has one."""
    units = array.attrs.get("units", "1")
    name = array.attrs.get("long_name", array.name)
    return literal(str(name) if units == "1" else f"{name} [{units}]")


def log_ticks_at(ax: Axes, values: Any) -> None:
    """A logarithmic horizontal axis with a tick at each of these few values, and no other."""
    ax.set_xscale("log")
    ax.set_xticks(list(values), labels=[f"{value:g}" for value in values])
    ax.set_xticks([], minor=True)


def whole_ticks(axis: Any) -> None:
    """Ticks at whole numbers: steps, examples, classes."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def name_layers(ax: Axes, depths: Any, names: Any, *, most: int = 8) -> None:
    """Ticks that bear the layers' names, `most` of them at most, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(depths) - 1, min(most, len(depths))).round().astype(int))
    ax.set_xticks(np.asarray(depths)[chosen], [literal(str(names[i])) for i in chosen])
    ax.tick_params(axis="x", rotation=35, labelsize="small")
    for tick in ax.get_xticklabels():
        tick.set(ha="right", rotation_mode="anchor")


def color_of(norm: str, index: int = 0) -> str:
    """The colour of a normalization, or the cycle's where it has none of its own."""
    return COLORS.get(norm, f"C{index + 4}")


def legend_once(ax: Axes, **options: Any) -> None:
    """A legend that names each label once, however many lines carry it."""
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        look = {"fontsize": "small", "frameon": True, "framealpha": 0.85, "edgecolor": "none", "borderpad": 0.3}
        ax.legend(once.values(), once.keys(), **look | options)


Plot = TypeVar("Plot", bound=Callable[..., Any])


def of_result(plot: Plot) -> Plot:
    """A picture that raises ResultError for what is none of the Datasets that it draws."""

    @wraps(plot)
    def drawn(dataset: xr.Dataset, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(dataset, xr.Dataset):
            raise ResultError(
                f"{plot.__name__} draws a Dataset, not a {type(dataset).__name__}: give what was measured"
            )
        import matplotlib.pyplot as plt

        before = plt.get_fignums()
        try:
            return plot(dataset, *args, **kwargs)
        except Exception as error:
            for number in set(plt.get_fignums()).difference(before):
                plt.close(number)
            if isinstance(error, NormscopeError):
                raise
            there = ", ".join(map(str, list(dataset.variables)[:8])) or "nothing"
            raise ResultError(
                f"{plot.__name__} cannot draw this Dataset ({type(error).__name__}: {one_line(error)[:120]}): it holds "
                f"{there}; give what {plot.__name__.removeprefix('plot_')} measured"
            ) from error

    return drawn  # pyright: ignore[reportReturnType]
