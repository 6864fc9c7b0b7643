"""Figure 2: the gradient of a kernel in the middle of the network at initialization, entry by entry."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.gradient_histogram import plot_gradient_histogram
from normscope.figures.style import NAMES, figure_of
from normscope.paper.exhibit import Exhibit, Setting, on_paper_setting, over_networks
from normscope.paper.exhibits.table1 import scaled_layer
from normscope.paper.published import PUBLISHED
from normscope.probes.gradient_histogram import gradient_histogram
from normscope.statistics.verdict import Verdict, judge, judge_band

NORMS = ("batch", "none")


def measure(setting: Setting) -> xr.Dataset:
    """The gradient of the layer in the place of the paper's layer 55, on the first mini-batch of training."""

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        dataset = gradient_histogram(setting.build(norm, seed), setting.first_batch(seed))
        place = scaled_layer(PUBLISHED["figure2"]["layer"], int(dataset["depth"].max()))
        return dataset.isel(layer=dataset["depth"].values == place)

    return over_networks(setting, "figure2", measure_one, norms=NORMS)


def draw(dataset: xr.Dataset) -> Figure:
    """One panel a network, each over the whole range of its own entries."""
    figure, axes = figure_of(1, len(NORMS), sharey=True)
    for ax, norm in zip(axes.flat, NORMS, strict=True):
        plot_gradient_histogram(dataset.sel(norm=[norm]), ax=ax)
        ax.set_title(f"layer {int(dataset['depth'].item())}, {NAMES[norm]}")
    axes.flat[0].set_ylim(0.5, 2 * int(dataset["count"].max()))
    axes.flat[-1].set_ylabel("")
    return figure


def verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """How much wider and how much heavier-tailed the gradient is without BN, paired by seed."""
    one = dataset.isel(layer=0)
    place = int(one["depth"].item())
    with_bn, without = (one.sel(norm=norm) for norm in NORMS)
    half_range = PUBLISHED["figure2"]["half_range"]
    result = [
        judge(
            f"Layer {place}: without BN the gradient's entries spread at least 30 times wider",
            "Figure 2",
            without["std"] / with_bn["std"],
            above=30,
            scale="log",
            paper=f"about {half_range['none'] / half_range['batch']:.0f}",
            unit=" times",
            note="standard deviations over the entries, paired by seed",
        ),
        judge(
            f"Layer {place}: without BN they are heavy-tailed: kurtosis above 6, twice a normal distribution's",
            "Figure 2",
            without["kurtosis"],
            above=6,
            scale="log",
            paper="a spike with tails",
        ),
        judge(
            f"Layer {place}: the kurtosis without BN is at least 1.5 times that with it",
            "Figure 2",
            without["kurtosis"] / with_bn["kurtosis"],
            above=1.5,
            scale="log",
            unit=" times",
            paper="bell-shaped with BN",
            note="paired by seed",
        ),
        judge(
            f"Layer {place}: the tail index without BN is lower than with it, so the tail falls more slowly",
            "Figure 2",
            without["tail_index"] / with_bn["tail_index"],
            below=1,
            scale="log",
            unit=" times",
            note="from the largest twentieth of the entries, paired by seed",
        ),
    ]
    if on_paper_setting(dataset):
        largest = abs(one[["minimum", "maximum"]]).to_array().max("variable", skipna=False)
        result += [
            judge(
                "With BN, the largest entry lies within a factor 2 of the published picture's range",
                "Figure 2",
                largest.sel(norm="batch"),
                equals=half_range["batch"],
                margin=2,
                scale="log",
                paper=half_range["batch"],
            ),
            judge_band(
                f"Without BN, the published range of ±{half_range['none']:g} lies in the seeds' 95 % prediction band",
                "Figure 2",
                np.log(largest.sel(norm="none").values)[:, None],
                np.log([half_range["none"]]),
                of="range",
            ),
        ]
    return result


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
    verdicts=verdicts,
    we_saw=we_saw,
)
