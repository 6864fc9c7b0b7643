"""Singular values of random products beside their theory (figure 7), and how they spread as a network gets
deeper."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.figures.style import NAMES, axes_or_new, axis_label, color_of, legend_once, of_result

NUM_BINS = 60
LINES = {"resnet": "-", "plain": "--"}
"""How each family of networks is drawn; others are dotted."""


@of_result
def plot_singular_values(dataset: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the histogram of `singular_value` over all draws, the theory's `density` and its `edge`, a dotted
    line.

    The histogram is a density on linear axes. Its lowest bin grows with the number of factors, and the theory
    has no bound there: the vertical axis ends a little above the highest bar, so the theory leaves it near
    zero.

    Args:
        dataset: what `normscope.product_singular_values` gives; choose a single `factor` for
            one panel, as the paper does.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    if "factor" not in dataset["singular_value"].dims:
        dataset = dataset.expand_dims("factor")
    highest = 0.0
    for i, factor in enumerate(dataset["factor"].values.tolist()):
        chosen = dataset.isel(factor=i)
        values, edge = np.ravel(chosen["singular_value"].values), float(chosen["edge"])
        bins = np.linspace(0, max(edge, float(values.max())), NUM_BINS + 1).tolist()
        heights, *_ = ax.hist(values, bins=bins, density=True, color=f"C{i}", alpha=0.35, label=f"M = {factor}, drawn")
        highest = max(highest, float(np.max(heights)))
        ax.plot(chosen["fraction"] * edge, chosen["density"], color=f"C{i}", label=f"M = {factor}, theory")
        ax.axvline(edge, color=f"C{i}", ls=":", lw=1)
    ax.set(
        xlabel=axis_label(dataset["singular_value"]),
        ylabel="density",
        ylim=(0, 1.08 * highest),
        xlim=(0, None),
    )
    legend_once(ax)
    return ax


@of_result
def plot_effective_rank(dataset: xr.Dataset, *, of: str = "network_effective_rank", ax: Axes | None = None) -> Axes:
    """Draw the effective rank of networks' Jacobians over depth, on logarithmic axes: a line through the
    geometric mean over seeds, a point a seed, one colour a norm, one line style a family. Dotted, beside the
    Jacobians where the dataset has it: a product of as many Gaussian matrices as the network has layers.

    Args:
        dataset: with the variable `of` over `family`, `norm`, `depth` and `seed`, and `feature`;
            possibly `product_effective_rank` over `depth` and `draw`.
        of: the ranks that are drawn.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    ranks = dataset[of].transpose("family", "norm", "depth", "seed")
    depth = ranks["depth"].values
    for i, family in enumerate(ranks["family"].values.tolist()):
        for j, norm in enumerate(ranks["norm"].values.tolist()):
            values, color = ranks.values[i, j], color_of(norm, j)
            label = f"{family}, {NAMES.get(norm, norm)}"
            ax.plot(depth, np.exp(np.log(values).mean(1)), LINES.get(family, ":"), color=color, label=label)
            ax.plot(np.repeat(depth, values.shape[1]), values.ravel(), ".", color=color, alpha=0.6)
    if of == "network_effective_rank" and "product_effective_rank" in dataset:
        product = np.exp(np.log(dataset["product_effective_rank"].transpose("depth", "draw").values).mean(1))
        ax.plot(depth, product, ":", color="0.4", label="product of Gaussian matrices")
    highest = dataset.sizes["feature"]
    ax.set(
        xscale="log",
        yscale="log",
        ylim=(0.9, highest),
        xlabel=axis_label(ranks["depth"]),
        ylabel=axis_label(ranks),
    )
    ax.set_xticks(depth, labels=[f"{d}" for d in depth])
    ax.xaxis.minorticks_off()
    legend_once(ax, loc="upper right", fontsize="x-small")
    return ax
