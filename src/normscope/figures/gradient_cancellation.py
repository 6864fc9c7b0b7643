"""Cancellation in the kernels' gradients against depth: table 1, for every layer instead of three."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.figures.networks import beyond, each_network
from normscope.figures.style import axes_or_new, axis_label, legend_once, of_result


@of_result
def plot_gradient_cancellation(dataset: xr.Dataset, *, quantity: str = "ratio", ax: Axes | None = None) -> Axes:
    """Draw a/b, or (a/b)/√n, against depth on a logarithmic axis: one colour a norm, one line a seed.

    The dotted line is a/b = 1, where all summands share their sign. The dashed line is where summands with independent
    signs come to lie, (a/b)/√n = 1 for normal ones. Layers on a shortcut have no depth and are left out; where
    everything cancels a triangle stands on the upper edge, and where the gradient is zero or not finite a cross on the
    lower one.

    Args:
        dataset: what `normscope.gradient_cancellation` gives, also with the dims `norm`, `seed`, `checkpoint` and
            `step`.
        quantity: "ratio" for a/b, "normalized_ratio" for (a/b)/√n.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    main_path = dataset.sel(layer=dataset["depth"].notnull())
    depth = main_path["depth"].values
    values, terms = main_path[quantity], main_path["num_terms"]
    for one in each_network(values.to_dataset(name="values"), unnamed=axis_label(values)):
        for row in one.dataset["values"].values:
            ax.plot(depth, np.where(np.isfinite(row), row, np.nan), color=one.color, alpha=0.8, label=one.label)
            beyond(ax, depth[np.isinf(row)], one, "everything cancels")
            beyond(ax, depth[np.isnan(row)], one, "zero or not finite", marker="x", lower=True)
    independent = (
        np.ones(len(depth))
        if quantity == "normalized_ratio"
        else np.sqrt(terms.transpose("layer", ...).values.reshape(len(depth), -1).max(1))
    )
    if quantity == "ratio":
        ax.axhline(1, color="0.4", lw=1, ls=":")
    ax.plot(depth, independent, color="0.4", lw=1, ls="--", label="independent signs")
    ax.set(yscale="log", xlabel=axis_label(main_path["depth"]), ylabel=axis_label(values))
    legend_once(ax)
    return ax
