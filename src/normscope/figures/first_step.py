"""The loss after one step of the optimizer against its rate, over the loss before."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.figures.style import axes_or_new, axis_label, legend_once, of_result

HIGHEST_SHOWN, LOWEST_SHOWN = 1e7, 1e-2
DIVERGED = 1e3


@of_result
def plot_first_step(dataset: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw `relative_loss` over `lr` on logarithmic axes; what is not finite or above the axes is a triangle on the
    upper edge, and the dotted line the threshold of divergence, 10³.

    Args:
        dataset: with `relative_loss(lr)`, as the `evidence` of `normscope.diagnose`.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    lrs, values = dataset["lr"].values, dataset["relative_loss"].values
    shown = np.isfinite(values) & (values < HIGHEST_SHOWN)
    ax.plot(lrs, np.where(shown, values, np.nan), color="C0", label="relative loss")
    if not shown.all():
        edge = np.full((~shown).sum(), HIGHEST_SHOWN)
        ax.plot(lrs[~shown], edge, "^", color="C3", ms=4, alpha=0.6, label="diverged", clip_on=False)
    ax.axhline(DIVERGED, color="0.4", lw=1, ls=":")
    ax.set(
        xscale="log",
        yscale="log",
        ylim=(LOWEST_SHOWN, HIGHEST_SHOWN),
        xlabel=axis_label(dataset["lr"]),
        ylabel=axis_label(dataset["relative_loss"]),
    )
    legend_once(ax)
    return ax
