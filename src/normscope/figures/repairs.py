"""What each repair buys: the rates of every variant side by side, with the lowest loss beside them."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.figures.style import axes_or_new, legend_once, of_result

STABLE, USABLE, BEST = "#c8442c", "#2e8b57", "#2e8b57"


@of_result
def plot_repairs(dataset: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw one row a variant over the learning rate, the first on top: a bar over the rates not told apart from the
    lowest loss, a tick at the largest usable rate and a cross at the largest stable one; at the right end the lowest
    loss. Variants that were refused or left out are rows without marks that say so.

    Args:
        dataset: what stands at the top of `normscope.check`'s tree.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    titles = [str(title) for title in dataset["title"].values]
    for row, status in enumerate(dataset["status"].values):
        one = dataset.isel(variant=row)
        low, high, usable, stable = (float(one[name]) for name in ("best_low", "best_high", "lr_usable", "lr_stable"))
        right = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": "small"}
        if str(status) != "measured":
            ax.text(0.005, row + 0.08, str(status), color="0.4", **right)
            continue
        if np.isfinite(low) and np.isfinite(high):
            # A single rate has no width on the axis: it is drawn as wide as its cell of the lattice.
            edges = low / 10**0.05, high * 10**0.05
            ax.plot(edges, (row, row), color=BEST, lw=7, alpha=0.35, solid_capstyle="butt", label="lowest loss")
        if np.isfinite(usable):
            ax.plot(usable, row, "|", color=USABLE, ms=14, mew=2.5, label="learns up to")
        if np.isfinite(stable):
            ax.plot(stable, row, "x", color=STABLE, ms=7, mew=2, label="stable up to")
        loss = float(one["horizon_loss"])
        ax.text(1.02, row, f"loss {loss:.2g}" if np.isfinite(loss) else "diverged", **right)
    for row, title in enumerate(titles):  # above its marks, so that the axis keeps the width on a narrow page
        ax.text(0.005, row - 0.28, title, transform=ax.get_yaxis_transform(), va="center", fontsize="small")
    ax.set_yticks([])
    ax.set(xscale="log", xlabel="learning rate", ylim=(len(titles) - 0.6, -0.6))
    ax.grid(axis="y", visible=False)
    legend_once(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return ax
