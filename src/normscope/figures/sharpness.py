"""Eigenvalues of the Hessian beside what the learning rate allows."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.errors import unknown
from normscope.figures.networks import beyond, each_network
from normscope.figures.style import axes_or_new, axis_label, legend_once, of_result


@of_result
def plot_sharpness(dataset: xr.Dataset, *, along: str = "rank", ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues of the Hessian with the curvature along the gradient, the lowest eigenvalue and, where a
    rate was given, the threshold 2(1 + μ)/lr: one colour a norm, one line a seed.

    The axis is logarithmic, and symmetric about zero where anything is negative. Eigenvalues that did not converge are
    hollow; what is not finite is a cross on the upper edge.

    Args:
        dataset: what `normscope.sharpness` gives, also with the dims `norm`, `seed`, `checkpoint` and `step`.
        along: "rank" for all eigenvalues of one point, or the dimension in which several points were joined, such as
            "epoch", for the largest eigenvalue of each.
        ax: axes to draw on; new ones if None.

    Raises:
        InvalidConfig: a dimension that the dataset does not have.
    """
    if along not in dataset.dims:
        raise unknown("dimension", along, map(str, dataset.dims))
    ax = axes_or_new(ax)
    shown = dataset if along == "rank" else dataset.isel(rank=0)
    x = shown[along].values
    lines = {"curvature": ("--", "along the gradient"), "lowest_eigenvalue": (":", "lowest eigenvalue")}
    drawn: list[np.ndarray] = []
    for network in each_network(shown, along=along, unnamed=axis_label(shown["eigenvalue"])):
        for j in range(network.dataset.sizes["seed"]):
            one = network.dataset.isel(seed=j)
            values, converged = one["eigenvalue"].values, one["converged"].values
            finite = np.isfinite(values)
            ax.plot(x, np.where(finite, values, np.nan), "-", color=network.color, alpha=0.8, label=network.label)
            ax.plot(x[converged], values[converged], "o", color=network.color, ms=4)
            hollow = finite & ~converged
            if hollow.any():
                ax.plot(x[hollow], values[hollow], "o", color=network.color, mfc="none", ms=5, label="not converged")
            beyond(ax, x[~finite], network, "not finite", marker="x")
            for name, (style, _) in lines.items():
                values = np.broadcast_to(one[name].values, x.shape)
                ax.plot(x, np.where(np.isfinite(values), values, np.nan), style, color=network.color, lw=1.2, alpha=0.8)
                drawn.append(values)
            drawn.append(one["eigenvalue"].values)
    for style, label in lines.values():
        ax.plot([], [], style, color="0.4", lw=1.2, label=label)
    if "threshold" in dataset:
        threshold = dataset["threshold"]
        for height in np.unique(threshold.values):
            ax.axhline(height, color="0.2", lw=1, ls="-.", label=axis_label(threshold))
    everything = np.concatenate([np.ravel(values) for values in drawn])
    sizes = np.abs(everything[np.isfinite(everything) & (everything != 0)])
    if (everything <= 0).any():
        ax.set_yscale("symlog", linthresh=max(sizes.min(initial=np.inf), 1e-3 * sizes.max(initial=0.0)) or 1.0)
        ax.axhline(0, color="0.7", lw=0.8)
    else:
        ax.set_yscale("log")
    if along == "rank":
        ax.set_xticks(x)
    ax.set(xlabel=axis_label(shown[along]), ylabel=axis_label(shown["eigenvalue"]))
    legend_once(ax)
    return ax
