"""Norms of the weights' and of the activations' gradients against depth."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from normscope.figures.style import NAMES, axes_or_new, axis_label, color_of, legend_once, of_result


@of_result
def plot_gradient_norms(
    dataset: xr.Dataset, *, quantity: str = "activation_gradient_rms", ax: Axes | None = None
) -> Axes:
    """Draw a gradient's size against depth on a logarithmic axis: one colour a norm, one thin line a seed, and with two
    seeds or more their geometric mean as a thick one.

    Layers on a shortcut have no depth and are left out. A gradient that is not finite is a triangle on the upper edge;
    where there is none (a frozen weight), the line has a gap.

    Args:
        dataset: what `normscope.gradient_norms` gives, also with the dims `norm` and `seed`.
        quantity: "activation_gradient_rms", "weight_gradient_norm", "update_ratio", or any other variable over layers.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    main_path = dataset.sel(layer=dataset["depth"].notnull())
    curves, depth = main_path[quantity], main_path["depth"].values
    measured = main_path["has_activation_gradient" if quantity.startswith("activation") else "has_weight_gradient"]
    for dim in ("norm", "seed"):
        if dim not in curves.dims:
            curves, measured = curves.expand_dims(dim), measured.expand_dims(dim)
    for i, norm in enumerate(curves["norm"].values.tolist() if "norm" in curves.coords else [""]):
        color, name = color_of(norm) if norm else "C0", NAMES.get(norm, norm) or axis_label(curves)
        lines = curves.isel(norm=i).transpose("seed", "layer").values
        exist = measured.isel(norm=i).transpose("seed", "layer").values.astype(bool)
        lines = np.where(exist, lines, np.nan)
        several = len(lines) > 1
        for line in lines:
            ax.plot(
                depth, finite(line), color=color, lw=0.7 if several else 1.6, alpha=0.45 if several else 1, label=name
            )
        if several:
            with np.errstate(divide="ignore"):
                ax.plot(depth, finite(np.exp(np.log(lines).mean(0))), color=color, lw=2, label=name)
        gone = depth[(exist & ~np.isfinite(lines)).any(0)]
        if len(gone):
            top = ax.get_xaxis_transform()
            ax.plot(gone, np.ones(len(gone)), "^", color=color, transform=top, clip_on=False, label="not finite")
    ax.set(xlabel=axis_label(main_path["depth"]), ylabel=axis_label(curves), yscale="log")
    legend_once(ax)
    return ax


def finite(values: np.ndarray) -> np.ndarray:
    """The values with NaN in place of infinity, which no line can be drawn to."""
    return np.where(np.isfinite(values), values, np.nan)
