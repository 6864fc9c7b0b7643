"""Figure 5: channel means and standard deviations against depth, at initialization."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.channel_moments import log_moments, plot_channel_moments
from normscope.figures.style import COLORS, figure_of, legend_once
from normscope.paper.exhibit import Exhibit, Setting, on_paper_setting, over_networks
from normscope.paper.published import PUBLISHED
from normscope.probes.channel_moments import channel_moments
from normscope.statistics.verdict import Verdict, judge, judge_band

NORMS = ("batch", "none")
CONVOLUTION_LAYERS = PUBLISHED["figure5"]["layer"][:-1]
LAST_LAYER = PUBLISHED["figure5"]["layer"][-1]
MOMENTS = ("log_abs_mean", "log_std")
MOMENT_NAMES = ("means", "standard deviations")


def measure(setting: Setting) -> xr.Dataset:
    """The moments of every layer on the first mini-batch of training, before any step."""

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        return channel_moments(setting.build(norm, seed), setting.first_batch(seed))

    return over_networks(setting, "figure5", measure_one, norms=NORMS)


def curves(dataset: xr.Dataset) -> xr.Dataset:
    """The two curves of figure 5 for every norm and seed, by `depth` on the main path instead of by layer name."""
    main_path = dataset.sel(layer=dataset["depth"].notnull())
    logs = log_moments(main_path).mean("channel").swap_dims(layer="depth")
    return logs.assign_coords(depth=logs["depth"].astype(int))


def we_saw(dataset: xr.Dataset) -> str:
    """Medians over seeds, in words."""
    stds = curves(dataset)["log_std"].isel(depth=slice(0, -1))
    first, last = stds.isel(depth=1), stds.isel(depth=-2)
    growth = float(np.exp((last - first).sel(norm="none").median()))
    span = np.exp((stds.max("depth") - stds.min("depth")).sel(norm="batch").median())
    return (
        f"From the second layer to the last block the channels' standard deviation grows by a factor {growth:.3g} "
        f"without batch norm; with it all layers stay within a factor {float(span):.2g} of each other, on a saw-tooth "
        "that starts again at each stage (medians over seeds)."
    )


def draw(dataset: xr.Dataset) -> Figure:
    """Means on the left, standard deviations on the right, both networks in each; published values hollow."""
    figure, axes = figure_of(1, 2, panel=(5.2, 3.4))
    published = PUBLISHED["figure5"]
    shown = dataset.sel(layer=dataset["depth"].isin([1, *range(2, 1000, 2)]))  # every block's first convolution, and fc
    for ax, moment in zip(axes.flat, MOMENTS, strict=True):
        plot_channel_moments(shown, moment=moment, ax=ax)
        for norm in NORMS:
            ax.plot(
                published["layer"],
                published[moment][norm],
                "o",
                mfc="none",
                mec=COLORS[norm],
                label="published, CIFAR-10",
            )
        legend_once(ax)
    return figure


def verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """Growth with depth without BN, none with it; and, on the paper's data, the distance to its curves."""
    logs = curves(dataset)
    result = []
    if int(logs["depth"].max()) > 30:
        result += growth_verdicts(logs)
    if on_paper_setting(dataset):
        result += published_verdicts(logs)
    return result


def growth_verdicts(logs: xr.Dataset) -> list[Verdict]:
    """Claims that can hold or fail on any data."""
    slope = logs["log_std"].isel(depth=slice(0, -1)).polyfit("depth", 1)["polyfit_coefficients"].sel(degree=1)
    growth = 100 * slope.sel(norm="none")
    last_block = logs["log_std"].sel(depth=int(logs["depth"].max()) - 2)
    spread = logs["log_std"].sel(norm="batch").isel(depth=slice(0, -1))
    return [
        judge(
            "Without BN, activations grow with depth: log std rises by at least 1.5 nat per 100 layers",
            "Figure 5",
            growth,
            above=1.5,
            paper=f"{100 * published_slope('log_std', 'none'):.2g}",
            unit=" nat",
        ),
        judge(
            "With BN they do not: log std stays within a band 2.5 nat wide over all convolution layers",
            "Figure 5",
            spread.max("depth") - spread.min("depth"),
            below=2.5,
            paper="0.95 over nine layers",
            unit=" nat",
        ),
        judge(
            "In the last block's first convolution the std without BN is at least 4 times that with BN",
            "Figure 5",
            np.exp((last_block.sel(norm="none") - last_block.sel(norm="batch")).values),
            above=4,
            scale="log",
            paper="8 at layer 102",
            unit=" times",
            note="paired by seed",
        ),
    ]


def published_verdicts(logs: xr.Dataset) -> list[Verdict]:
    """The distance to the published curves, which were measured on CIFAR-10 with ResNet-110."""
    published = PUBLISHED["figure5"]
    ours: xr.DataArray = logs[list(MOMENTS)].to_array("moment").sel(depth=published["layer"])
    paper: xr.DataArray = xr.DataArray(
        [[published[moment][norm] for norm in NORMS] for moment in MOMENTS],
        dims=("moment", "norm", "depth"),
        coords={"moment": list(MOMENTS), "norm": list(NORMS), "depth": published["layer"]},
    )
    with_bn: xr.DataArray = abs(ours - paper).sel(norm="batch")
    slopes = ours.sel(norm="none", depth=CONVOLUTION_LAYERS).polyfit("depth", 1)["polyfit_coefficients"].sel(degree=1)
    result = [
        judge(
            "With BN, the nine convolution layers lie within 0.25 nat of the published curves on average",
            "Figure 5",
            with_bn.sel(depth=CONVOLUTION_LAYERS).mean(["moment", "depth"]),
            below=0.25,
            unit=" nat",
            note="mean absolute distance of one seed, over layers and both curves",
        ),
        judge(
            f"With BN, layer {LAST_LAYER} lies within 0.5 nat of the published values on average",
            "Figure 5",
            with_bn.sel(depth=LAST_LAYER).mean("moment"),
            below=0.5,
            unit=" nat",
            note="ten channels only, so a single seed scatters",
        ),
    ]
    for moment, name in zip(MOMENTS, MOMENT_NAMES, strict=True):
        slope = published_slope(moment, "none")
        result.append(
            judge(
                f"Without BN, the slope of the {name} against depth is the published one within a factor 1.5",
                "Figure 5",
                100 * slopes.sel(moment=moment),
                equals=100 * slope,
                margin=1.5,
                scale="log",
                paper=f"{100 * slope:.3g}",
                unit=" nat per 100 layers",
            )
        )
    for moment, name in zip(MOMENTS, MOMENT_NAMES, strict=True):
        result.append(
            judge_band(
                f"Without BN, the published curve of the {name} lies in the seeds' 95 % prediction band",
                "Figure 5",
                ours.sel(norm="none", moment=moment).transpose("seed", "depth"),
                paper.sel(norm="none", moment=moment),
                of="layers",
            )
        )
    return result


def published_slope(moment: str, norm: str) -> float:
    """Least-squares slope of a published curve over its convolution layers, nat per layer."""
    values = PUBLISHED["figure5"][moment][norm][: len(CONVOLUTION_LAYERS)]
    return float(np.polyfit(CONVOLUTION_LAYERS, values, 1)[0])


EXHIBIT = Exhibit(
    name="figure5",
    title="Activations against depth at initialization",
    where="Figure 5",
    place=5,
    paper_saw=(
        "Before any training, the means and standard deviations of the channels grow exponentially with depth without "
        "batch norm. With it they are reset: the residual stream grows slowly within a stage and starts again at "
        "the next (layers 42 and 78)."
    ),
    measure=measure,
    draw=draw,
    verdicts=verdicts,
    we_saw=we_saw,
)
