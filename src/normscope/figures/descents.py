"""Short descents as curves: the loss of every step, at one rate or at all that were tried."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.descent.outcome import Outcome
from normscope.figures.stable_lr import OUTCOME_COLORS
from normscope.figures.style import axes_or_new, axis_label, legend_once, of_result, whole_ticks

HIGHEST = 10.0
"""Losses are drawn up to so many times the loss of the best constant output, or the start where that is larger."""


@of_result
def plot_descents(
    dataset: xr.Dataset, *, lrs: Sequence[float] | None = None, label: str = "", color: str = "", ax: Axes | None = None
) -> Axes:
    """Draw the loss before every step, one line a try; the colour is its outcome, unless one is given.

    A try that diverged leaves through the upper edge, where a triangle marks its last step. The dotted line is the loss
    of the best constant output: what a network attains that has learned nothing of its inputs.

    Args:
        dataset: what `normscope.stable_lr` gives.
        lrs: the rates to draw, of those in `dataset`; all if None.
        label, color: of all lines, for several networks in one picture; the outcomes' own if empty.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    chosen = dataset if lrs is None else dataset.sel(lr=list(lrs), method="nearest")
    floor = float(dataset["constant_loss"].mean())
    starts = dataset["loss"].isel(step=0).values
    top = HIGHEST * max([abs(floor), *np.abs(starts[np.isfinite(starts)])])
    for lr in chosen["lr"].values:
        for seed in chosen["seed"].values:
            one = chosen.sel(lr=lr, seed=seed)
            outcome, taken = str(one["outcome"].values), int(one["steps_taken"])
            if taken == 0:
                continue
            losses = one["loss"].values[:taken]
            said = label or outcome
            known = outcome in list(Outcome)  # else it was left early, beaten by others
            shade = color or (OUTCOME_COLORS[Outcome(outcome)] if known else "0.6")
            shown = np.isfinite(losses) & (losses <= top)
            ax.plot(one["step"].values[:taken], np.where(shown, losses, np.nan), color=shade, lw=1.2, label=said)
            if outcome == Outcome.DIVERGED:
                edge = ax.get_xaxis_transform()
                ax.plot(one["step"].values[taken - 1], 1, "^", color=shade, ms=5, transform=edge, clip_on=False)
    if np.isfinite(floor):
        ax.axhline(floor, color="0.4", lw=1, ls=":", label="best constant output")
    lines = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.lines[:-1]] or [np.array([])])
    finite = lines[np.isfinite(lines)]
    if len(finite) and finite.min() > 0 and finite.max() > 10 * finite.min():
        ax.set_yscale("log")
    whole_ticks(ax.xaxis)
    ax.set(xlabel="step", ylabel=axis_label(dataset["loss"]))
    legend_once(ax)
    return ax
