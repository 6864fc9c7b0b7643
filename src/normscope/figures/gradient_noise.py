"""Noise and signal of a mini-batch's gradient, layer by layer."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.figures.networks import beyond, each_network
from normscope.figures.style import axes_or_new, axis_label, legend_once, of_result


@of_result
def plot_gradient_noise(dataset: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the variance of a mini-batch's gradient (solid) and the squared norm of the gradient (dotted) of every
    layer against depth, on a logarithmic axis; over seeds the geometric mean.

    Where the solid line lies above the dotted one, a step in that layer is mostly noise. Layers on a shortcut, and
    those without a weight of two dimensions, have no depth and are left out; layers that are not finite are triangles
    on the upper edge.

    Args:
        dataset: what `normscope.gradient_noise` gives, also with the dims `norm`, `seed`, `checkpoint` and `step`.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    main_path = dataset.sel(layer=dataset["depth"].notnull())
    depth = main_path["depth"].values
    curves = {"noise": ("layer_batch_variance", "-"), "signal": ("layer_gradient_squared_norm", ":")}
    for one in each_network(main_path):
        for said, (name, style) in curves.items():
            values = _typical(one.dataset[name]).values
            finite = np.isfinite(values)
            label = f"{said} {one.label}".strip()
            ax.plot(depth, np.where(finite, values, np.nan), style, color=one.color, label=label)
            beyond(ax, depth[~finite], one, "not finite")
    ylabel = "squared norm"
    if "batch_size" in dataset.attrs:
        ylabel += f" (noise at |B| = {dataset.attrs['batch_size']})"
    ax.set(xlabel=axis_label(main_path["depth"]), ylabel=ylabel, yscale="log")
    legend_once(ax)
    return ax


def _typical(curve: xr.DataArray) -> xr.DataArray:
    """The geometric mean over seeds; what is zero in a seed makes it zero."""
    with np.errstate(divide="ignore"):
        logs = xr.DataArray(np.log(curve))
    return xr.DataArray(np.exp(logs.mean("seed", skipna=False)))
