"""Channel means and variances at fractions of one step, as heat maps in the arrangement of figure 4."""

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, SymLogNorm

from normscope.errors import unknown
from normscope.figures.networks import refuse_several
from normscope.figures.style import axes_or_new, axis_label, literal, of_result

COLOR_MAPS = {"mean": "RdBu_r", "variance": "viridis"}
"""White or dark is zero: for means in the middle of the scale, for variances at its end."""

NOT_FINITE = "0.35"
"""The colour of what overflowed, in neither scale: grey."""

DECADES = 8
"""How many powers of ten below its end a logarithmic colour scale goes."""


@of_result
def plot_moments_along_step(
    dataset: xr.Dataset,
    *,
    moment: str = "variance",
    layer: str | None = None,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw one moment of one layer: channels to the right, the step from 0 to 100 % upwards, colour for the value.

    The colour scale is linear and belongs to this picture alone, as in the paper, so that what is small beside the
    end of the step looks like nothing; `log` spreads it over eight powers of ten. What is not finite is grey.

    Args:
        dataset: what `normscope.moments_along_step` gives, of one network: no dims `norm` and `seed`.
        moment: "variance" or "mean".
        layer: its name; the deepest on the main path if None.
        ax: axes to draw on; new ones if None.

    Raises:
        InvalidConfig: a moment or a layer that is not there.
    """
    if moment not in COLOR_MAPS:
        raise unknown("moment", moment, COLOR_MAPS)
    names = dataset["layer"].values.tolist()
    name = _deepest(dataset) if layer is None else layer
    if name not in names:
        raise unknown("layer", name, names)
    refuse_several(dataset[moment], {"fraction", "layer", "channel"})
    ax = axes_or_new(ax)
    of_layer = dataset.sel(layer=name)
    array = of_layer[moment].transpose("fraction", "channel")[:, : int(of_layer["num_channels"])]
    finite = np.where(np.isfinite(array.values), array.values, np.nan)
    scale = _scale(finite, moment, log)
    colors = mpl.colormaps[COLOR_MAPS[moment]].with_extremes(bad=NOT_FINITE)
    shown = np.clip(finite, scale.vmin, None) if isinstance(scale, LogNorm) else finite
    # Rasterized, since every cell would be a path of its own in a vector file.
    mesh = ax.pcolormesh(
        array["channel"].values,
        100 * array["fraction"].values,
        np.ma.masked_invalid(shown),
        norm=scale,
        cmap=colors,
        shading="nearest" if len(array["fraction"]) > 1 else "auto",
        rasterized=True,
    )
    ax.grid(False)
    bar = ax.figure.colorbar(mesh, ax=ax)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    bar.set_label(axis_label(array))
    ax.set(title=literal(name), xlabel=axis_label(array["channel"]), ylabel=f"{axis_label(array['fraction'])} [%]")
    return ax


def _deepest(dataset: xr.Dataset) -> str:
    depth = dataset["depth"].values
    return str(dataset["layer"].values[-1 if np.isnan(depth).all() else np.nanargmax(depth)])


def _scale(values: np.ndarray, moment: str, log: bool) -> Normalize:
    """The colour scale: means about zero, variances from it; up to the largest finite value."""
    sizes = np.abs(values[np.isfinite(values)])
    largest = float(sizes.max()) if sizes.size and sizes.max() > 0 else 1.0
    if log:
        smallest = max(largest / 10**DECADES, np.finfo(np.float64).tiny)
        if moment == "variance":
            return LogNorm(smallest, largest)
        return SymLogNorm(smallest, vmin=-largest, vmax=largest)
    return Normalize(-largest if moment == "mean" else 0, largest)
