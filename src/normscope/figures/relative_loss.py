"""Relative loss against step size along the gradient, in the arrangement of figure 3."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.figures.style import NAMES, axes_or_new, axis_label, color_of, legend_once, of_result

HIGHEST_SHOWN = 1e7
"""The paper's figure ends here; what lies above or is not finite is drawn on the upper edge, as diverged."""

LOWEST_SHOWN = 1e-2
"""... and here; it is extended to a curve that lies lower."""


@of_result
def plot_relative_loss(dataset: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw `relative_loss` over `step_size` on logarithmic axes: one colour a norm, one line a seed.

    Points that diverged (not finite, or above the axis) are triangles on the upper edge, never left out. The dotted
    line is the paper's threshold of divergence, 10³.

    Args:
        dataset: what `normscope.relative_loss` gives, also with the dims `norm` and `seed`.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    curves = dataset["relative_loss"]
    steps = dataset["step_size"].values
    for dim in ("norm", "seed"):
        if dim not in curves.dims:
            curves = curves.expand_dims(dim)
    for i, norm in enumerate(curves["norm"].values.tolist() if "norm" in curves.coords else [""]):
        color = color_of(norm, i) if norm else "C0"
        of_norm = curves.isel(norm=i)
        for values in of_norm.transpose("seed", "step_size").values:
            shown = np.where(np.isfinite(values) & (values < HIGHEST_SHOWN), values, np.nan)
            ax.plot(steps, shown, color=color, alpha=0.8, label=NAMES.get(norm, norm) or "relative loss")
            diverged = steps[np.isnan(shown)]
            if len(diverged):
                ax.plot(
                    diverged,
                    np.full(len(diverged), HIGHEST_SHOWN),
                    "^",
                    color=color,
                    ms=4,
                    alpha=0.5,
                    label="diverged",
                    clip_on=False,
                )
    ax.axhline(DIVERGENCE_FACTOR, color="0.4", lw=1, ls=":")
    positive = curves.values[curves.values > 0]
    lowest = min(LOWEST_SHOWN, positive.min() / 2) if len(positive) else LOWEST_SHOWN
    ax.set(
        xscale="log",
        yscale="log",
        ylim=(lowest, HIGHEST_SHOWN),
        xlabel=axis_label(dataset["step_size"]),
        ylabel=axis_label(curves),
    )
    legend_once(ax)
    return ax
