"""One signal of a training over its steps: the loss, the gradient's norm, how much longer the next step could be."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.errors import unknown
from normscope.figures.style import axes_or_new, axis_label, of_result
from normscope.results import attribute

ALARM_COLOR = "#c8442c"


@of_result
def plot_training_curves(dataset: xr.Dataset, *, signal: str = "loss", ax: Axes | None = None) -> Axes:
    """Draw one variable over `step` or `measurement`, on a logarithmic axis where it is positive and spans a decade.
    Alarms are vertical lines; steps where it is not finite are triangles on the upper edge.

    Args:
        dataset: what `Watch.record` gives.
        signal: the name of a variable over `step` or over `measurement` alone.
        ax: axes to draw on; new ones if None.

    Raises:
        InvalidConfig: a signal that is not there.
    """
    known = [str(name) for name, array in dataset.data_vars.items() if array.dims in (("step",), ("measurement",))]
    if signal not in known:
        raise unknown("signal", signal, known)
    ax = axes_or_new(ax)
    array = dataset[signal]
    steps, values = array[array.dims[0]].values, array.values.astype(np.float64)
    finite = np.isfinite(values)
    marker = "." if len(steps) < 100 or array.dims == ("measurement",) else ""
    ax.plot(steps, np.where(finite, values, np.nan), marker=marker, lw=1.0)
    lost = steps[~finite]
    if signal == "gradient_norm":
        lost = steps[~finite & dataset["gradient_seen"].values]
    if len(lost):
        ax.plot(
            lost, np.ones(len(lost)), "^", color=ALARM_COLOR, ms=4, transform=ax.get_xaxis_transform(), clip_on=False
        )
    for alarm in attribute(dataset, "alarms"):
        ax.axvline(alarm["step"], color=ALARM_COLOR, lw=0.8, ls="--")
    shown = values[finite]
    if len(shown) and (shown > 0).all() and shown.max() > 10 * shown.min():
        ax.set_yscale("log")
    if signal == "critical_multiple":
        ax.axhline(1, color="0.4", lw=0.8, ls=":")
    ax.set(xlabel="step", ylabel=axis_label(array))
    return ax
