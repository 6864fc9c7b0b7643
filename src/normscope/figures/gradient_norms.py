"""Norms of the weights' and of the activations' gradients against depth."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.figures.networks import beyond, each_network
from normscope.figures.style import axes_or_new, axis_label, legend_once, of_result


@of_result
def plot_gradient_norms(
    dataset: xr.Dataset, *, quantity: str = "activation_gradient_rms", ax: Axes | None = None
) -> Axes:
    """Draw a gradient's size against depth on a logarithmic axis: one colour a norm, one thin line a seed, and with two
    seeds or more their geometric mean as a thick one.

    Layers on a shortcut have no depth and are left out. A gradient that is not finite is a triangle on the upper edge;
    where there is none (a frozen weight), the line has a gap.

    Args:
        dataset: what `normscope.gradient_norms` gives, also with the dims `norm`, `seed`, `checkpoint` and `step`.
        quantity: "activation_gradient_rms", "weight_gradient_norm", "update_ratio", or any other variable over layers.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    main_path = dataset.sel(layer=dataset["depth"].notnull())
    curves, depth = main_path[quantity], main_path["depth"].values
    measured = main_path["has_activation_gradient" if quantity.startswith("activation") else "has_weight_gradient"]
    both = xr.Dataset({"curves": curves, "measured": measured})
    for one in each_network(both, unnamed=axis_label(curves)):
        exist = one.dataset["measured"].values.astype(bool)
        lines = np.where(exist, one.dataset["curves"].values, np.nan)
        several = len(lines) > 1
        width, alpha = (0.7, 0.45) if several else (1.6, 1.0)
        for line in lines:
            ax.plot(depth, finite(line), color=one.color, lw=width, alpha=alpha, label=one.label)
        if several:
            with np.errstate(divide="ignore"):
                ax.plot(depth, finite(np.exp(np.log(lines).mean(0))), color=one.color, lw=2, label=one.label)
        beyond(ax, depth[(exist & ~np.isfinite(lines)).any(0)], one, "not finite")
    ax.set(xlabel=axis_label(main_path["depth"]), ylabel=axis_label(curves), yscale="log")
    legend_once(ax)
    return ax


def finite(values: np.ndarray) -> np.ndarray:
    """The values with NaN in place of infinity, which no line can be drawn to."""
    return np.where(np.isfinite(values), values, np.nan)
