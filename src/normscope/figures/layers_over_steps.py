"""One quantity of every layer over the steps of a training: a heat map, depth upwards."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm

from normscope.errors import unknown
from normscope.figures.style import axes_or_new, axis_label, literal, of_result
from normscope.figures.training_curves import ALARM_COLOR
from normscope.results import attribute

NOT_FINITE, NOT_CALLED = "#c8442c", "0.85"

MOST_NAMES = 24
"""Of more layers not every one is named."""


@of_result
def plot_layers_over_steps(dataset: xr.Dataset, *, signal: str = "activation_size", ax: Axes | None = None) -> Axes:
    """Draw one variable over `measurement` and `layer` in colour, on a logarithmic scale; red where it is not finite,
    grey where the layer was not called. Alarms are vertical lines.

    Args:
        dataset: what `Watch.record` gives, with one measurement or more.
        signal: the variable's name.
        ax: axes to draw on; new ones if None.

    Raises:
        InvalidConfig: a signal that is not there.
    """
    known = [str(n) for n, a in dataset.data_vars.items() if a.dims == ("measurement", "layer") and n != "called"]
    if signal not in known:
        raise unknown("signal", signal, known)
    ax = axes_or_new(ax)
    array = dataset[signal]
    values, called = array.values.T, dataset["called"].values.T
    shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    finite = shown[np.isfinite(shown)]
    low, high = (finite.min(), finite.max()) if len(finite) else (1.0, 10.0)
    places = np.arange(values.shape[0])
    columns = np.arange(values.shape[1])
    background = np.where(called, np.where(np.isfinite(values), np.nan, 1.0), 0.0)
    two = ListedColormap([NOT_CALLED, NOT_FINITE])
    ax.pcolormesh(columns, places, background, cmap=two, vmin=0, vmax=1, shading="nearest", rasterized=True)
    scale = LogNorm(low, high if high > low else 10 * low)
    mesh = ax.pcolormesh(columns, places, shown, norm=scale, cmap="viridis", shading="nearest", rasterized=True)
    ax.grid(False)
    bar = ax.figure.colorbar(mesh, ax=ax)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    bar.set_label(axis_label(array))
    steps = dataset["measurement"].values
    every = max(1, len(steps) // 6)
    ax.set_xticks(columns[::every], labels=[str(step) for step in steps[::every]])
    skip = max(1, -(-len(places) // MOST_NAMES))
    names = [literal(str(name)) for name in dataset["layer"].values[::skip]]
    ax.set_yticks(places[::skip], labels=names, fontsize="x-small")
    for alarm in attribute(dataset, "alarms"):
        place = float(np.interp(alarm["step"], steps, columns)) if len(steps) > 1 else 0.0
        ax.axvline(place, color=ALARM_COLOR, lw=0.8, ls="--")
    ax.set(xlabel="step of the measurement", ylabel="layer, the deepest on top")
    return ax
