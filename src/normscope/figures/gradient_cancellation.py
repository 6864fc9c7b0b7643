"""Cancellation in the kernels' gradients against depth: table 1, for every layer instead of three."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.figures.style import NAMES, axes_or_new, axis_label, color_of, legend_once, of_result


@of_result
def plot_gradient_cancellation(dataset: xr.Dataset, *, quantity: str = "ratio", ax: Axes | None = None) -> Axes:
    """Draw a/b, or (a/b)/√n, against depth on a logarithmic axis: one colour a norm, one line a seed.

    The dotted line is a/b = 1, where all summands share their sign. The dashed line is where summands with independent
    signs come to lie, (a/b)/√n = 1 for normal ones. Layers on a shortcut have no depth and are left out; where
    everything cancels a triangle stands on the upper edge, and where the gradient is zero or not finite a cross on the
    lower one.

    Args:
        dataset: what `normscope.gradient_cancellation` gives, also with the dims `norm` and `seed`.
        quantity: "ratio" for a/b, "normalized_ratio" for (a/b)/√n.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    main_path = dataset.sel(layer=dataset["depth"].notnull())
    depth = main_path["depth"].values
    values, terms = main_path[quantity], main_path["num_terms"]
    for dim in ("norm", "seed"):
        if dim not in values.dims:
            values = values.expand_dims(dim)
    edge = ax.get_xaxis_transform()
    for i, norm in enumerate(values["norm"].values.tolist() if "norm" in values.coords else [""]):
        color = color_of(norm, i) if norm else "C0"
        for row in values.isel(norm=i).transpose("seed", "layer").values:
            ax.plot(
                depth,
                np.where(np.isfinite(row), row, np.nan),
                color=color,
                alpha=0.8,
                label=NAMES.get(norm, norm) or axis_label(values),
            )
            for odd, height, marker, label in (
                (np.isinf(row), 1, "^", "everything cancels"),
                (np.isnan(row), 0, "x", "zero or not finite"),
            ):
                if odd.any():
                    heights = np.full(odd.sum(), height)
                    ax.plot(depth[odd], heights, marker, color=color, ms=4, transform=edge, clip_on=False, label=label)
    independent = (
        np.ones(len(depth))
        if quantity == "normalized_ratio"
        else np.sqrt(terms.transpose("layer", ...).values.reshape(len(depth), -1).max(1))
    )
    if quantity == "ratio":
        ax.axhline(1, color="0.4", lw=1, ls=":")
    ax.plot(depth, independent, color="0.4", lw=1, ls="--", label="independent signs")
    ax.set(yscale="log", xlabel=axis_label(main_path["depth"]), ylabel=axis_label(values))
    legend_once(ax)
    return ax
