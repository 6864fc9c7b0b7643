"""How large the activations are, layer by layer, at fractions of the step that diverges."""

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from normscope.figures.style import axes_or_new, axis_label, legend_once, name_layers, of_result


@of_result
def plot_size_along_step(dataset: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw `size_along_step` over the layers of the main path on a logarithmic axis: one line a fraction of the step,
    the later the redder, and the layers' names on the axis. Where sizes are not finite there are triangles on the
    upper edge.

    Args:
        dataset: with `size_along_step(fraction, layer)` and `walked_lr`, as the `evidence` of `normscope.diagnose`.
        ax: axes to draw on; new ones if None.
    """
    ax = axes_or_new(ax)
    main = dataset.sel(layer=dataset["depth"].notnull())
    sizes = main["size_along_step"].transpose("fraction", "layer")
    depth, fractions = main["depth"].values, sizes["fraction"].values
    colors = mpl.colormaps["viridis_r"](np.linspace(0.1, 1, len(fractions)))
    colors[-1] = to_rgba("#c8442c")
    for fraction, color, values in zip(fractions, colors, sizes.values, strict=True):
        shown = np.isfinite(values) & (values > 0)
        ax.plot(depth, np.where(shown, values, np.nan), color=color, label=f"{100 * fraction:.0f} % of the step")
        lost = depth[~np.isfinite(values)]
        if len(lost):
            top = ax.get_xaxis_transform()
            ax.plot(lost, np.ones(len(lost)), "^", color=color, ms=4, transform=top, clip_on=False)
    ax.set(yscale="log", ylabel=axis_label(sizes), title=f"one step at rate {float(dataset['walked_lr']):.2g}")
    name_layers(ax, depth, main["layer"].values)
    legend_once(ax)
    return ax
