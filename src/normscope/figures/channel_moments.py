"""Channel means and standard deviations against depth, in the arrangement of figure 5."""

import warnings

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.errors import unknown
from normscope.figures.networks import beyond, each_network
from normscope.figures.style import axes_or_new, axis_label, legend_once, of_result

SOURCES = {"log_std": "variance", "log_abs_mean": "mean"}
"""The moments that can be drawn, and what each is the logarithm of."""


def log_moments(dataset: xr.Dataset) -> xr.Dataset:
    """`log_abs_mean` = log |mean| and `log_std` = log √variance of every channel, natural logarithms; a moment of
    exactly 0 has none and is NaN."""
    with np.errstate(divide="ignore"):
        logs = xr.Dataset({"log_abs_mean": np.log(abs(dataset["mean"])), "log_std": 0.5 * np.log(dataset["variance"])})
    logs = logs.where(logs != -np.inf)
    logs["log_abs_mean"].attrs = {"long_name": "log |channel mean|", "units": "nat"}
    logs["log_std"].attrs = {"long_name": "log channel std", "units": "nat"}
    return logs


@of_result
def plot_channel_moments(dataset: xr.Dataset, *, moment: str = "log_std", ax: Axes | None = None) -> Axes:
    """Draw the mean over channels (and seeds) of a log moment against depth; the band is ± one std over channels.

    Layers on a shortcut have no depth and are left out. A layer with a moment that is not finite, in any channel and
    seed, is a triangle on the upper edge instead: nothing is averaged over the rest.

    Args:
        dataset: what `normscope.channel_moments` gives, also with the dims `norm`, `seed`, `checkpoint` and `step`.
        moment: "log_std" or "log_abs_mean".
        ax: axes to draw on; new ones if None.

    Raises:
        InvalidConfig: another moment.
    """
    if moment not in SOURCES:
        raise unknown("moment", moment, SOURCES)
    ax = axes_or_new(ax)
    main_path = dataset.sel(layer=dataset["depth"].notnull())
    logs = log_moments(main_path)[moment]
    measured = main_path["channel"] < main_path["num_channels"]
    odd = (measured & ~np.isfinite(main_path[SOURCES[moment]])).any("channel")
    depth = main_path["depth"].values
    for one in each_network(xr.Dataset({"logs": logs, "odd": odd}), unnamed=axis_label(logs)):
        broken = one.dataset["odd"].any("seed").values
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a layer without one finite logarithm
            centre = np.where(broken, np.nan, one.dataset["logs"].mean(["channel", "seed"]).values)
            half = one.dataset["logs"].std("channel").mean("seed").values
        ax.plot(depth, centre, color=one.color, label=one.label)
        ax.fill_between(depth, centre - half, centre + half, color=one.color, alpha=0.15, lw=0)
        beyond(ax, depth[broken], one, "not finite")
    ax.set(xlabel=axis_label(main_path["depth"]), ylabel=axis_label(logs))
    legend_once(ax)
    return ax
