"""Relative loss against step size along the gradient, in the arrangement of figure 3."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.figures.networks import beyond, each_network
from normscope.figures.style import axes_or_new, axis_label, legend_once, of_result

HIGHEST_SHOWN = 1e7
"""The paper's figure ends here; what lies above or is not finite is drawn on the upper edge, as diverged."""

LOWEST_SHOWN = 1e-2
"""... and here; it is extended to a curve that lies lower."""


@of_result
def plot_relative_loss(dataset: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw `relative_loss` over `step_size` (or over `lr`, along an optimizer's first update) on logarithmic axes: one
    colour a norm, one line a seed.

    Points that diverged (not finite, or above the axis) are triangles on the upper edge, never left out. The dotted
    line is the paper's threshold of divergence, 10³.

    Args:
        dataset: what `normscope.relative_loss` gives, or the `evidence` of `normscope.diagnose`; also with the dims
            `norm`, `seed`, `checkpoint` and `step`.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    curves = dataset["relative_loss"]
    along = "step_size" if "step_size" in dataset.dims else "lr"
    steps = dataset[along].values
    positive = curves.values[curves.values > 0]
    lowest = min(LOWEST_SHOWN, positive.min() / 2) if len(positive) else LOWEST_SHOWN
    ax.set(xscale="log", ylim=(lowest, HIGHEST_SHOWN), yscale="log")
    for one in each_network(curves.to_dataset(name="curves"), unnamed="relative loss"):
        for values in one.dataset["curves"].values:
            shown = np.where(np.isfinite(values) & (values < HIGHEST_SHOWN), values, np.nan)
            ax.plot(steps, shown, color=one.color, alpha=0.8, label=one.label)
            beyond(ax, steps[np.isnan(shown)], one, "diverged")
    ax.axhline(DIVERGENCE_FACTOR, color="0.4", lw=1, ls=":")
    ax.set(ylim=(lowest, HIGHEST_SHOWN), xlabel=axis_label(dataset[along]), ylabel=axis_label(curves))
    legend_once(ax)
    return ax
