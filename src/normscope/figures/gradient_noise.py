"""Noise and signal of a mini-batch's gradient, layer by layer."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.figures.style import NAMES, axes_or_new, axis_label, color_of, legend_once, of_result


@of_result
def plot_gradient_noise(dataset: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the variance of a mini-batch's gradient (solid) and the squared norm of the gradient (dotted) of every
    layer against depth, on a logarithmic axis; over seeds the geometric mean.

    Where the solid line lies above the dotted one, a step in that layer is mostly noise. Layers on a shortcut, and
    those without a weight of two dimensions, have no depth and are left out; layers that are not finite are triangles
    on the upper edge.

    Args:
        dataset: what `normscope.gradient_noise` gives, also with the dims `norm` and `seed`.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    main_path = dataset.sel(layer=dataset["depth"].notnull())
    noise, signal = main_path["layer_batch_variance"], main_path["layer_gradient_squared_norm"]
    depth = main_path["depth"].values
    for i, norm in enumerate(noise["norm"].values.tolist() if "norm" in noise.dims else [""]):
        color = color_of(norm) if norm else "C0"
        name = NAMES.get(norm, norm)
        for curve, style, label in ((noise, "-", "noise"), (signal, ":", "signal")):
            of_norm = curve.isel(norm=i) if norm else curve
            values = typical(of_norm).values
            finite = np.isfinite(values)
            ax.plot(depth, np.where(finite, values, np.nan), style, color=color, label=f"{label} {name}".strip())
            top = ax.get_xaxis_transform()
            if (~finite).any():
                gone = depth[~finite]
                ax.plot(gone, np.ones(len(gone)), "^", color=color, transform=top, clip_on=False, label="not finite")
    ylabel = "squared norm"
    if "batch_size" in dataset.attrs:
        ylabel += f" (noise at |B| = {dataset.attrs['batch_size']})"
    ax.set(xlabel=axis_label(main_path["depth"]), ylabel=ylabel, yscale="log")
    legend_once(ax)
    return ax


def typical(curve: xr.DataArray) -> xr.DataArray:
    """The geometric mean over seeds, where there are any; what is zero in a seed makes it zero."""
    if "seed" not in curve.dims:
        return curve
    with np.errstate(divide="ignore"):
        logs = xr.DataArray(np.log(curve))
    return xr.DataArray(np.exp(logs.mean("seed", skipna=False)))
