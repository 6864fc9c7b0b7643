"""The loss at the horizon against the learning rate, with what became of every try and where the boundaries lie."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.descent.outcome import Outcome
from normscope.figures.style import axes_or_new, axis_label, legend_once, of_result

OUTCOME_COLORS = {
    Outcome.LEARNS: "#2e8b57",
    Outcome.STALLED: "#b8860b",
    Outcome.DEAD: "#555555",
    Outcome.DIVERGED: "#c8442c",
}

BOUNDARIES = {"lr_stable": ("stable", Outcome.DIVERGED), "lr_usable": ("usable", Outcome.LEARNS)}
"""Each boundary's name in the legend, and the outcome whose colour it has."""


@of_result
def plot_stable_lr(dataset: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw `horizon_loss`, on a logarithmic axis where it spans a decade, over `lr`: one point a try, its outcome as
    colour, one thin line a seed.

    Tries that diverged never reached the horizon: they are triangles on the upper edge. A shaded band is the bracket of
    a boundary; a dotted line is a bound, where nothing failed up to the end of the range. Rings mark the rates that
    cannot be told apart from the lowest loss.

    Args:
        dataset: what `normscope.stable_lr` gives.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    lrs, horizon = dataset["lr"].values, dataset["horizon_loss"]
    outcomes = dataset["outcome"].values
    for i in range(dataset.sizes["seed"]):
        losses = horizon.isel(seed=i).values
        shown = np.isfinite(losses)
        ax.plot(lrs[shown], losses[shown], color="0.7", lw=0.8, zorder=1)
        for outcome, color in OUTCOME_COLORS.items():
            chosen = outcomes[:, i] == outcome.value
            if not chosen.any():
                continue  # an empty line that is not clipped counts as a point at the figure's corner, for its layout
            if outcome is Outcome.DIVERGED:
                edge = np.ones(chosen.sum())
                top = ax.get_xaxis_transform()
                ax.plot(
                    lrs[chosen], edge, "^", color=color, ms=5, alpha=0.6, label=outcome, transform=top, clip_on=False
                )
            else:
                ax.plot(lrs[chosen], losses[chosen], "o", color=color, ms=4, alpha=0.8, label=outcome)
    best = dataset["best_at_horizon"].values
    rings = horizon.mean("seed").values[best]
    if best.any():
        ax.plot(lrs[best], rings, "o", mfc="none", mec="black", ms=9, lw=0, label="not told apart from the lowest")
    for name, (title, outcome) in BOUNDARIES.items():
        low, high = dataset[f"{name}_bracket"].values.tolist()
        color = OUTCOME_COLORS[outcome]
        if low > 0 and np.isinf(high):
            ax.axvline(low, color=color, ls=":", label=f"{title} up to {low:.2g} or more")
        elif low > 0:
            ax.axvspan(low, high, color=color, alpha=0.25, lw=0, label=f"{title} up to {low:.2g}")
    if len(lrs):
        ax.set_xscale("log")
    ax.set(xlabel=axis_label(dataset["lr"]), ylabel=axis_label(horizon))
    finite = horizon.values[np.isfinite(horizon.values)]
    if len(finite) and (finite > 0).all() and finite.max() > 10 * finite.min():
        ax.set_yscale("log")
    legend_once(ax)
    return ax
