"""Figure 2: the gradient of a kernel in the middle of the network at initialization, entry by entry."""

from functools import partial

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.gradient_histogram import plot_gradient_histogram
from normscope.figures.style import NAMES, figure_of
from normscope.paper.exhibit import DEEP, ON_PAPER_SETTING, Exhibit, Setting, over_networks
from normscope.paper.exhibits.table1 import scaled_layer
from normscope.paper.published import PUBLISHED
from normscope.probes.gradient_histogram import gradient_histogram
from normscope.statistics.claim import Claim, RatioClaim, Scope
from normscope.statistics.verdict import CONTROL

NORMS = ("batch", "none")
OF_KERNEL = ["std", "kurtosis", "tail_index", "num_entries"]
"""What is kept of every convolution beside the one that is shown."""


def measure(setting: Setting) -> xr.Dataset:
    """The gradient of the layer in the place of the paper's layer 55, on the first mini-batch of training; and spread,
    kurtosis and tail index of every convolution's on the main path, over `kernel`."""

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        dataset = gradient_histogram(setting.build(norm, seed), setting.first_batch(seed))
        depth = dataset["depth"].values
        kernels = dataset[OF_KERNEL].isel(layer=np.isfinite(depth) & (depth < np.nanmax(depth)))
        kernels = kernels.swap_dims(layer="depth").drop_vars("layer").rename(depth="kernel")
        kernels = kernels.rename({name: f"kernel_{name}" for name in OF_KERNEL})
        place = scaled_layer(PUBLISHED["figure2"]["layer"], int(np.nanmax(depth)))
        return xr.merge([dataset.isel(layer=depth == place), kernels], combine_attrs="override")

    return over_networks(setting, "figure2", measure_one, {"norm": NORMS})


def draw(dataset: xr.Dataset) -> Figure:
    """One panel a network, each over the whole range of its own entries."""
    figure, axes = figure_of(1, len(NORMS), sharey=True)
    for ax, norm in zip(axes.flat, NORMS, strict=True):
        plot_gradient_histogram(dataset.sel(norm=[norm]), ax=ax)
        ax.set_title(f"layer {int(dataset['depth'].item())}, {NAMES[norm]}")
    axes.flat[0].set_ylim(0.5, 2 * int(dataset["count"].max()))
    axes.flat[-1].set_ylabel("")
    return figure


def ratio(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """A number of the one layer without batch norm over that with it, paired by seed."""
    one = dataset[name].isel(layer=0)
    return one.sel(norm="none") / one.sel(norm="batch")


def _largest_entry(dataset: xr.Dataset, norm: str) -> xr.DataArray:
    """The largest magnitude among the layer's entries."""
    ends = abs(dataset[["minimum", "maximum"]]).sel(norm=norm).isel(layer=0)
    return ends.to_array().max("variable", skipna=False)


def pooled_kurtosis(dataset: xr.Dataset) -> xr.DataArray:
    """The kurtosis of all convolutions' entries together, each layer's divided by their own standard deviation: the
    mean of theirs, weighted by their numbers of entries. NaN in older results, which hold one layer."""
    if "kernel" not in dataset.dims:
        return dataset["kurtosis"].isel(layer=0) * np.nan
    return dataset["kernel_kurtosis"].weighted(dataset["kernel_num_entries"]).mean("kernel", skipna=False)


_HALF_RANGE = PUBLISHED["figure2"]["half_range"]

CLAIMS = [
    RatioClaim(
        statement="In the place of layer 55, without BN the gradient's entries spread at least 30 times wider",
        value=partial(ratio, name="std"),
        above=30,
        paper=f"about {_HALF_RANGE['none'] / _HALF_RANGE['batch']:.0f}",
        note="standard deviations over the entries, paired by seed",
        scope=DEEP,
    ),
    Claim(
        statement="There, without BN they are heavy-tailed: kurtosis above 6, twice a normal distribution's",
        value=lambda dataset: dataset["kurtosis"].sel(norm="none").isel(layer=0),
        above=6,
        scale="log",
        paper="a spike with tails",
        scope=DEEP,
    ),
    RatioClaim(
        statement="There, the kurtosis without BN is at least 1.5 times that with it",
        value=partial(ratio, name="kurtosis"),
        above=1.5,
        paper="bell-shaped with BN",
        note="paired by seed",
        scope=DEEP,
    ),
    RatioClaim(
        statement="There, the tail index without BN is lower than with it, so the tail falls more slowly",
        kind=CONTROL,
        value=partial(ratio, name="tail_index"),
        below=1,
        note="from the largest twentieth of the entries, paired by seed",
        scope=DEEP,
    ),
    RatioClaim(
        statement="Over all kernels, each scaled to its own spread, the kurtosis without BN is at least 1.5 times that "
        "with it",
        where="beside Figure 2",
        kind=CONTROL,
        value=lambda dataset: pooled_kurtosis(dataset).sel(norm="none") / pooled_kurtosis(dataset).sel(norm="batch"),
        above=1.5,
        note="the paper shows one kernel of one network; paired by seed",
        scope=Scope("networks of more than 30 layers", lambda of: DEEP.holds(of) and "kernel" in of.dims),
    ),
    Claim(
        statement="With BN, the largest entry of layer 55 lies within a factor 2 of the published picture's range",
        value=partial(_largest_entry, norm="batch"),
        equals=_HALF_RANGE["batch"],
        margin=2,
        scale="log",
        paper=_HALF_RANGE["batch"],
        scope=ON_PAPER_SETTING,
    ),
    Claim(
        statement=f"Without BN, the tails reach past the published picture's range, ±{_HALF_RANGE['none']:g}",
        value=partial(_largest_entry, norm="none"),
        above=_HALF_RANGE["none"],
        scale="log",
        paper=f"tails past ±{_HALF_RANGE['none']:g}",
        note="the largest entry's magnitude",
        scope=ON_PAPER_SETTING,
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """Spread, kurtosis and tail index of both networks, geometric means over seeds."""
    one = dataset.isel(layer=0)
    means = np.exp(np.log(one[["std", "kurtosis", "tail_index"]]).mean("seed", skipna=False))
    with_bn, without = (means.sel(norm=norm) for norm in NORMS)
    return (
        f"Standard deviation {with_bn['std']:.2g} with batch norm and {without['std']:.2g} without, kurtosis "
        f"{with_bn['kurtosis']:.2g} and {without['kurtosis']:.2g}, tail index {with_bn['tail_index']:.2g} and "
        f"{without['tail_index']:.2g}: a normal distribution has kurtosis 3 and tail index 6 "
        f"(geometric means over {dataset.sizes['seed']} seeds)."
    )


EXHIBIT = Exhibit(
    name="figure2",
    title="The entries of one gradient at initialization",
    where="Figure 2",
    place=2,
    paper_saw=(
        "The gradient of layer 55's kernel, before any training: with batch norm a bell, nearly all of it within "
        "±0.04. Without it a sharp spike at zero and tails past ±4: a hundred times wider, and heavy-tailed."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    protocol=2,
)
