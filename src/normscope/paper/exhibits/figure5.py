"""Figure 5: channel means and standard deviations against depth, at initialization."""

from functools import partial

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.channel_moments import log_moments, plot_channel_moments
from normscope.figures.style import COLORS, figure_of, legend_once
from normscope.paper.exhibit import DEEP, ON_PAPER_SETTING, Exhibit, Setting, over_networks
from normscope.paper.published import PUBLISHED
from normscope.probes.channel_moments import channel_moments
from normscope.results import attribute
from normscope.statistics.claim import Claim, RatioClaim, Scope
from normscope.statistics.verdict import LATER_WORKS

NORMS = ("batch", "none")
CONVOLUTION_LAYERS = PUBLISHED["figure5"]["layer"][:-1]
LAST_LAYER = PUBLISHED["figure5"]["layer"][-1]
MOMENTS = ("log_abs_mean", "log_std")
MOMENT_NAMES = ("means", "standard deviations")


def measure(setting: Setting) -> xr.Dataset:
    """The moments of every layer on the first mini-batch of training, before any step."""

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        return channel_moments(setting.build(norm, seed), setting.first_batch(seed))

    return over_networks(setting, "figure5", measure_one, {"norm": NORMS})


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


def growth(dataset: xr.Dataset) -> xr.DataArray:
    """How fast log std rises over the convolutions without batch norm, nat per 100 layers."""
    stds = curves(dataset)["log_std"].sel(norm="none").isel(depth=slice(0, -1))
    return 100 * stds.polyfit("depth", 1)["polyfit_coefficients"].sel(degree=1)


def _range_with_bn(dataset: xr.Dataset) -> xr.DataArray:
    """Between which values log std lies over all convolutions with batch norm, highest less lowest."""
    stds = curves(dataset)["log_std"].sel(norm="batch").isel(depth=slice(0, -1))
    return stds.max("depth") - stds.min("depth")


def _last_block(dataset: xr.Dataset) -> np.ndarray:
    """The std without batch norm over that with it, in the last block's first convolution."""
    logs = curves(dataset)["log_std"]
    last = logs.sel(depth=int(logs["depth"].max()) - 2)
    return np.exp((last.sel(norm="none") - last.sel(norm="batch")).values)


def _as_published(dataset: xr.Dataset, norm: str) -> xr.DataArray:
    """Both curves at the published layers, over `seed`, `moment` and `depth`."""
    ours = curves(dataset)[list(MOMENTS)].to_array("moment").sel(norm=norm, depth=PUBLISHED["figure5"]["layer"])
    return ours.transpose("seed", "moment", "depth")


def _distance_with_bn(dataset: xr.Dataset) -> xr.DataArray:
    """Mean absolute distance from the published curves over the nine convolution layers, with batch norm."""
    published = [[PUBLISHED["figure5"][moment]["batch"]] for moment in MOMENTS]
    off = abs(_as_published(dataset, "batch") - np.array(published).transpose(1, 0, 2))
    return off.sel(depth=CONVOLUTION_LAYERS).mean(["moment", "depth"])


def slopes(dataset: xr.Dataset) -> np.ndarray:
    """Of both curves against depth over the published convolution layers, without batch norm, nat per 100 layers."""
    of = _as_published(dataset, "none").sel(depth=CONVOLUTION_LAYERS)
    return 100 * of.polyfit("depth", 1)["polyfit_coefficients"].sel(degree=1).transpose("seed", "moment").values


def _slope_within_stage(dataset: xr.Dataset, stage: int) -> xr.DataArray:
    """The slope of log std against ln k, k being a block's number within the stage, over the first convolutions of its
    blocks from the second on: that of the first reads the stage before."""
    stds = curves(dataset)["log_std"].sel(norm="batch")
    blocks = (int(stds["depth"].max()) - 2) // 6
    numbers = np.arange(2, blocks + 1)
    of_stage = stds.sel(depth=2 * (stage * blocks + numbers)).transpose("depth", "seed").values
    return xr.DataArray(np.polyfit(np.log(numbers), of_stage, 1)[0], dims="seed")


def _published_slope(moment: str, norm: str) -> float:
    """Least-squares slope of a published curve over its convolution layers, nat per layer."""
    values = PUBLISHED["figure5"][moment][norm][: len(CONVOLUTION_LAYERS)]
    return float(np.polyfit(CONVOLUTION_LAYERS, values, 1)[0])


_PUBLISHED_SLOPES = [100 * _published_slope(moment, "none") for moment in MOMENTS]

DEEP_RESNET = Scope(
    "residual networks of more than 30 layers",
    lambda dataset: DEEP.holds(dataset) and attribute(dataset, "config")["net"].startswith("resnet"),
)

CLAIMS = [
    Claim(
        statement="Without BN, activations grow with depth: log std rises by at least 1.5 nat per 100 layers",
        value=growth,
        above=1.5,
        paper=f"{_PUBLISHED_SLOPES[1]:.2g}",
        unit=" nat",
        scope=DEEP,
    ),
    Claim(
        statement="With BN they do not: log std stays within a band 2.5 nat wide over all convolution layers",
        value=_range_with_bn,
        below=2.5,
        paper="0.95 over nine layers",
        unit=" nat",
        in_sample=True,
        scope=DEEP,
    ),
    RatioClaim(
        statement="In the last block's first convolution the std without BN is at least 4 times that with BN",
        value=_last_block,
        above=4,
        paper="8 at layer 102",
        note="paired by seed",
        scope=DEEP,
    ),
    Claim(
        statement="With BN, the nine convolution layers lie within 0.25 nat of the published curves on average",
        value=_distance_with_bn,
        below=0.25,
        unit=" nat",
        note="mean absolute distance of one seed, over layers and both curves",
        in_sample=True,
        scope=ON_PAPER_SETTING,
    ),
    Claim(
        statement=f"With BN, the published pair of layer {LAST_LAYER} could be one more seed's",
        of="band",
        value=lambda dataset: _as_published(dataset, "batch").sel(depth=LAST_LAYER).values,
        published=[PUBLISHED["figure5"][moment]["batch"][-1] for moment in MOMENTS],
        points="published moments",
        widest=4,
        unit=" nat",
        note="ten channels only, so a single draw scatters",
        in_sample=True,
        scope=ON_PAPER_SETTING,
    ),
    Claim(
        statement="Without BN, the published slopes of means and standard deviations against depth could be one more "
        "seed's",
        of="band",
        value=slopes,
        published=_PUBLISHED_SLOPES,
        points="published slopes",
        widest=10,
        unit=" nat per 100 layers",
        paper=", ".join(f"{slope:.3g}" for slope in _PUBLISHED_SLOPES),
        scope=ON_PAPER_SETTING,
    ),
    *(
        Claim(
            statement=f"Without BN, the published curve of the {name} could be one more seed's, at all layers at once",
            of="band",
            value=lambda dataset, one=moment: _as_published(dataset, "none").sel(moment=one).values,
            published=PUBLISHED["figure5"][moment]["none"],
            points="layers",
            unit=" nat",
            scope=ON_PAPER_SETTING,
        )
        for moment, name in zip(MOMENTS, MOMENT_NAMES, strict=True)
    ),
    *(
        Claim(
            statement=f"With BN, log std of block k rises as ½ ln k within stage {stage + 1}: slope within 0.1 of a "
            "half",
            where="De and Smith 2020",
            kind=LATER_WORKS,
            value=partial(_slope_within_stage, stage=stage),
            equals=0.5,
            margin=0.1,
            note="first convolutions of blocks 2 and on; batch norm scales the branch down by the square root of depth",
            scope=DEEP_RESNET,
        )
        for stage in range(3)
    ),
]


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
    claims=CLAIMS,
    we_saw=we_saw,
)
