"""Histogram of the entries of one layer's gradient, in the arrangement of figure 2."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.errors import InvalidConfig
from normscope.figures.networks import each_network
from normscope.figures.style import axes_or_new, axis_label, legend_once, of_result


@of_result
def plot_gradient_histogram(dataset: xr.Dataset, *, layer: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the counts of one layer's entries over their own range: one colour a norm, one outline a seed.

    Counts are logarithmic, so that a single entry far out is as visible as the peak: heavy tails spread like a tent, a
    normal distribution falls off like a parabola. The dashed parabola is the normal one with the same mean, spread and
    number of entries as the first seed's. Entries that are in no bin, since they lie beyond the range shown or are not
    finite, are counted in a line of text.

    Args:
        dataset: what `normscope.gradient_histogram` gives, also with the dims `norm`, `seed`, `checkpoint` and `step`.
        layer: which to draw, by name; may be left out where there is one only.
        ax: axes to draw on; new ones if None.

    Raises:
        InvalidConfig: a layer that is not in the dataset, or none given where it has several.
    """
    ax = axes_or_new(ax)
    if "layer" in dataset.dims:
        dataset = dataset.sel(layer=_chosen(dataset["layer"].values.tolist(), layer))
    edge_label = axis_label(dataset["bin_edge"])
    unseen = 0
    for network in each_network(dataset):
        for j in range(network.dataset.sizes["seed"]):
            one = network.dataset.isel(seed=j)
            counts, edges = one["count"].values, one["bin_edge"].values
            unseen += int(one["num_below"] + one["num_above"] + one["num_not_finite"])
            if np.isnan(edges).any():
                continue  # nothing finite: said by the text
            name = network.label or str(one["layer"].values)
            ax.stairs(counts, edges, color=network.color, alpha=0.8, label=name)
            if j == 0:
                centres, expected = _normal(one, edges)
                ax.plot(centres, expected, color=network.color, lw=1, ls="--", label="normal, same spread")
    if unseen:
        ax.text(0.02, 0.98, f"{unseen} entries in no bin", transform=ax.transAxes, va="top", fontsize="small")
    top = 2 * max(1, int(dataset["count"].max()))
    ax.set(yscale="log", ylim=(0.5, top), xlabel=edge_label, ylabel=axis_label(dataset["count"]))
    legend_once(ax)
    return ax


def _chosen(names: list[str], layer: str | None) -> str:
    if layer is None and len(names) == 1:
        return names[0]
    if layer not in names:
        some = ", ".join(names[:3])
        asked = "no layer named" if layer is None else f"no layer {layer!r}"
        raise InvalidConfig(f"{asked}: choose one of the {len(names)} in this dataset: {some}, ...")
    return layer


def _normal(one: xr.Dataset, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the bins, and the counts expected of a normal distribution; NaN where less than half an entry is."""
    centres, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    mean, std = float(one["mean"]), float(one["std"])
    with np.errstate(all="ignore"):
        density = np.exp(-((centres - mean) ** 2) / (2 * std**2)) / (std * np.sqrt(2 * np.pi))
        expected = int(one["num_entries"]) * width * density
    return centres, np.where(expected > 0.5, expected, np.nan)
