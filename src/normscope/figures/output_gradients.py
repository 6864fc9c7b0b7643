"""The gradient at the output, examples × classes, as the heat map of figure 6."""

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from normscope.figures.networks import refuse_several
from normscope.figures.style import axes_or_new, axis_label, of_result, whole_ticks

NOT_FINITE = "0.35"
"""The colour of what is not finite, in neither half of the scale: grey."""


@of_result
def plot_output_gradients(dataset: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the gradient of every example's output: examples downwards, classes to the right, red where the step
    lowers an output, blue where it raises it.

    The colour scale is linear and the same on both sides of zero; a column of one colour is a class that all examples
    push the same way. What is not finite is grey.

    Args:
        dataset: what `normscope.output_gradients` gives, of one network: no dims `norm` and `seed`.
        ax: axes to draw on; new ones if None.

    Raises:
        InvalidConfig: a dataset of several networks.
    """
    array = dataset["gradient"]
    refuse_several(array, {"example", "label"})
    ax = axes_or_new(ax)
    values = array.transpose("example", "label").values
    sizes = np.abs(values[np.isfinite(values)])
    largest = float(sizes.max()) if sizes.size and sizes.max() > 0 else 1.0
    # Rasterized, since every cell would be a path of its own in a vector file.
    mesh = ax.pcolormesh(
        array["label"].values,
        array["example"].values,
        np.ma.masked_invalid(values),
        norm=Normalize(-largest, largest),
        cmap=mpl.colormaps["RdBu_r"].with_extremes(bad=NOT_FINITE),
        shading="nearest",
        rasterized=True,
    )
    ax.invert_yaxis()
    for axis in (ax.xaxis, ax.yaxis):
        whole_ticks(axis)
    ax.grid(False)
    bar = ax.figure.colorbar(mesh, ax=ax)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    bar.set_label(axis_label(array))
    ax.set(xlabel=axis_label(array["label"]), ylabel=axis_label(array["example"]))
    return ax
