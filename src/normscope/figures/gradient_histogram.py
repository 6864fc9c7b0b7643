"""Histogram of the entries of one layer's gradient, in the arrangement of figure 2."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.errors import InvalidConfig
from normscope.figures.style import NAMES, axes_or_new, axis_label, color_of, legend_once, of_result


@of_result
def plot_gradient_histogram(dataset: xr.Dataset, *, layer: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the counts of one layer's entries over their own range: one colour a norm, one outline a seed.

    Counts are logarithmic, so that a single entry far out is as visible as the peak: heavy tails spread like a tent, a
    normal distribution falls off like a parabola. The dashed parabola is the normal one with the same mean, spread and
    number of entries as the first seed's. Entries that are in no bin, since they lie beyond the range shown or are not
    finite, are counted in a line of text.

    Args:
        dataset: what `normscope.gradient_histogram` gives, also with the dims `norm` and `seed`.
        layer: which to draw, by name; may be left out where there is one only.
        ax: axes to draw on; new ones if None.

    Raises:
        InvalidConfig: a layer that is not in the dataset, or none given where it has several.
    """
    ax = axes_or_new(ax)
    if "layer" in dataset.dims:
        dataset = dataset.sel(layer=_chosen(dataset["layer"].values.tolist(), layer))
    edge_label = axis_label(dataset["bin_edge"])
    for dim in ("norm", "seed"):
        if dim not in dataset["count"].dims:
            dataset = dataset.expand_dims(dim)
    unseen = 0
    for i, norm in enumerate(dataset["norm"].values.tolist() if "norm" in dataset.coords else [""]):
        color = color_of(norm, i) if norm else "C0"
        for j in range(dataset.sizes["seed"]):
            one = dataset.isel(norm=i, seed=j)
            counts, edges = one["count"].values, one["bin_edge"].values
            unseen += int(one["num_below"] + one["num_above"] + one["num_not_finite"])
            if np.isnan(edges).any():
                continue  # nothing finite: said by the text
            ax.stairs(counts, edges, color=color, alpha=0.8, label=NAMES.get(norm, norm) or str(one["layer"].values))
            if j == 0:
                centres, expected = _normal(one, edges)
                ax.plot(centres, expected, color=color, lw=1, ls="--", label="normal, same spread")
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
