"""Figure 4: channel means and variances along one diverging step, in three layers of growing depth."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from torch import nn

from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.descent.step_line import crossing, step_line
from normscope.figures.moments_along_step import plot_moments_along_step
from normscope.figures.style import COLORS, NAMES, figure_of
from normscope.paper.exhibit import Exhibit, Setting, on_paper_setting, over_networks
from normscope.paper.published import PUBLISHED
from normscope.probes.channel_moments import channel_moments
from normscope.probes.moments_along_step import moments_along_step
from normscope.statistics.verdict import Verdict, judge, judge_band

STEP_WITH_BN = 0.2
"""The largest step of figure 3, of which batch norm takes no harm."""

TRIED_STEPS = np.geomspace(1e-4, 25.6, 19)
"""Where the step of divergence without batch norm is looked for: each twice the one before."""

HALVINGS = 4
"""How often the interval found is halved, in logarithms: the step is known to 2^(1/16), 4 %."""

FRACTIONS = np.linspace(0, 1, 21)
SHALLOW = 30
"""What the paper sees in layers 44 and 80 is not asked of layers nearer the input than this."""

VISIBLE = 0.1
"""Below a tenth of the end of a linear colour scale nothing is seen to happen."""


def measure(setting: Setting) -> xr.Dataset:
    """One step on the first mini-batch, before any training.

    Without batch norm the step is twice the one at which the relative loss passes 10³, since the scales depend
    violently on it; with batch norm it is 0.2.
    """

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        net, batch = setting.build(norm, seed), setting.first_batch(seed)
        layers = shown_layers(channel_moments(net, batch)["depth"])
        diverges = divergence_step_size(net, batch) if norm == "none" else float("nan")
        step_size = 2 * min(diverges, TRIED_STEPS[-1]) if norm == "none" else STEP_WITH_BN
        moments = moments_along_step(
            net, batch, step_size=step_size, fractions=FRACTIONS, layers=layers["layer"].values.tolist()
        )
        moments["divergence_step_size"] = (
            (),
            diverges,
            {"long_name": "step size where relative loss passes 10³", "units": "1"},
        )
        return moments.assign_coords(depth=("layer", layers.values, layers.attrs))

    return over_networks(setting, "figure4", measure_one)


def divergence_step_size(net: nn.Module, batch: object) -> float:
    """The step size at which the relative loss first passes 10³; infinite where none of those tried does."""
    with step_line(net, batch) as line:

        def stays(step_size: float) -> bool:
            return float(line.loss_at(step_size) / line.loss) <= DIVERGENCE_FACTOR

        high = next((step_size for step_size in TRIED_STEPS if not stays(step_size)), np.inf)
        low = high / 2
        for _ in range(HALVINGS if high < np.inf else 0):
            middle = np.sqrt(low * high)
            low, high = (middle, high) if stays(middle) else (low, middle)
    return float(np.sqrt(low) * np.sqrt(high))


def shown_layers(depth: xr.DataArray) -> xr.DataArray:
    """The layers at the place in each of the three stages that 8, 44 and 80 have in ResNet-110."""
    main_path = depth[depth.notnull().values]
    per_stage = (len(main_path) - 2) // 3
    places = dict.fromkeys(1 + stage * per_stage + round(per_stage / 6) for stage in range(3))
    return main_path[list(places)]


def largest_variance(dataset: xr.Dataset) -> xr.DataArray:
    """The largest variance among a layer's channels; not finite as soon as one of them is not."""
    real = dataset["channel"] < dataset["num_channels"]
    return dataset["variance"].where(real, 0.0).max("channel", skipna=False)


def growth_per_layer(largest: xr.DataArray) -> xr.DataArray:
    """Least-squares slope of the log of the largest variance against depth over the layers shown, nat a layer."""
    log_variance = xr.apply_ufunc(np.log, largest).swap_dims(layer="depth")
    finite = log_variance.where(np.isfinite(log_variance))
    return finite.polyfit("depth", 1, skipna=False)["polyfit_coefficients"].sel(degree=1)


def visible_from(largest: xr.DataArray) -> xr.DataArray:
    """The fraction of the step at which the largest variance first passes a tenth of that at the end."""
    share = (largest / largest.isel(fraction=-1)).isel(fraction=slice(1, None))
    passed = xr.apply_ufunc(
        lambda row: crossing(FRACTIONS[1:], row, VISIBLE), share, input_core_dims=[["fraction"]], vectorize=True
    )
    return passed.where(largest.isel(fraction=0).notnull())


def draw(dataset: xr.Dataset) -> Figure:
    """The paper's two rows of heat maps for the median seed without batch norm, and below them, on a logarithmic
    axis, the largest variance for all seeds and both networks; published values hollow."""
    published = PUBLISHED["figure4"]
    depths = dataset["depth"].values.astype(int)
    figure, axes = figure_of(3, len(depths), panel=(3.9, 2.7))
    largest = largest_variance(dataset)
    final = largest.sel(norm="none").isel(fraction=-1, layer=-1)
    seed = dataset["seed"].values[np.argsort(final.values)[len(final) // 2]]
    network = dataset.sel(norm="none", seed=seed)
    for column, (name, depth) in enumerate(zip(dataset["layer"].values, depths, strict=True)):
        for ax, moment in zip(axes[:2, column], ("mean", "variance"), strict=True):
            plot_moments_along_step(network, moment=moment, layer=str(name), ax=ax)
            ax.set_title(f"{'means' if moment == 'mean' else 'variances'}, layer {depth}")
        axes[0, column].set_xlabel("")  # both rows have the channels to the right, all columns the step upwards
        axes[0, column].tick_params(labelbottom=False)
        for ax in axes[:2, column] if column else ():
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
        ax = axes[2, column]
        for norm in ("none", "batch"):
            for row in largest.sel(norm=norm, layer=name).transpose("seed", "fraction").values:
                ax.plot(100 * FRACTIONS, row, color=COLORS[norm], alpha=0.8, label=NAMES[norm])
        if depths.tolist() == published["layers"]:
            paper = published["max_variance"][column]
            ax.plot(100, paper, "o", mfc="none", mec=COLORS["none"], ms=8, label="published, CIFAR-10", clip_on=False)
        ax.set(yscale="log", xlabel="fraction of the step [%]", ylabel="" if column else "largest channel variance")
        ax.set_title(f"all seeds, layer {depth}")
    lines = {line.get_label(): line for line in axes[2, 0].lines}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
    return figure


def verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """When and how much the layers explode, if there are enough of them; on the paper's data, whether as much as there.

    A network without batch norm that diverges at none of the steps tried has no value.
    """
    diverges = np.isfinite(dataset["divergence_step_size"].sel(norm="none"))
    largest = largest_variance(dataset).where(diverges | (dataset["norm"] != "none"))
    deepest = int(dataset["depth"].values[-1])
    change = (largest.isel(fraction=-1) / largest.isel(fraction=0)).isel(layer=-1)
    result = explosion_verdicts(largest, change) if deepest > SHALLOW else []
    result.append(
        judge(
            f"With BN, a step of α = 0.2 changes the variance of layer {deepest} by less than a factor 100",
            "Figure 4",
            change.sel(norm="batch"),
            below=100,
            scale="log",
            unit=" times",
        )
    )
    if on_paper_setting(dataset):
        result += published_verdicts(largest)
    return result


def explosion_verdicts(largest: xr.DataArray, change: xr.DataArray) -> list[Verdict]:
    """Claims that can hold or fail on any data, of a network deep enough."""
    depths = largest["depth"].values.astype(int)
    start = visible_from(largest.sel(norm="none"))
    result = [
        judge(
            f"Nothing until the last fifth of the step: without BN, layer {depth} reaches a tenth of its final "
            "variance only after 80 % of the step",
            "Figure 4",
            100 * start.isel(layer=i),
            above=80,
            paper="last fifth",
            unit=" %",
        )
        for i, depth in enumerate(depths)
        if depth > SHALLOW
    ]
    return [
        *result,
        judge(
            "Without BN, at the end of the diverging step the variance grows by at least 0.2 nat from layer to layer",
            "Figure 4",
            growth_per_layer(largest.sel(norm="none", fraction=1)),
            above=0.2,
            paper=f"{published_growth():.2g}",
            unit=" nat",
            note=f"slope of the log of the largest channel variance over layers {', '.join(map(str, depths))}",
        ),
        judge(
            f"The step multiplies the variance of layer {depths[-1]} at least 10⁶ times more without BN than with it",
            "Figure 4",
            change.sel(norm="none") / change.sel(norm="batch"),
            above=1e6,
            scale="log",
            paper="variances to 5.6e16 at layer 80",
            unit=" times",
            note="paired by seed; with BN at α = 0.2, without at twice the step of divergence",
        ),
    ]


def published_verdicts(largest: xr.DataArray) -> list[Verdict]:
    """The distance to the published colour scales, which are those of CIFAR-10 and ResNet-110."""
    end = largest.sel(norm="none", fraction=1)
    return [
        judge(
            "Without BN, the growth of the variance from layer to layer is the published one within a factor 1.5",
            "Figure 4",
            growth_per_layer(end),
            equals=published_growth(),
            margin=1.5,
            scale="log",
            paper=f"{published_growth():.2g}",
            unit=" nat",
        ),
        judge_band(
            "Without BN, the published variances lie in the seeds' 95 % prediction band",
            "Figure 4",
            np.log(end.transpose("seed", "layer").values),
            np.log(PUBLISHED["figure4"]["max_variance"]),
            of="layers",
        ),
    ]


def published_growth() -> float:
    """`growth_per_layer` of the published colour scales' upper ends."""
    published = PUBLISHED["figure4"]
    return float(np.polyfit(published["layers"], np.log(published["max_variance"]), 1)[0])


def we_saw(dataset: xr.Dataset) -> str:
    """Medians over seeds, in words."""
    without = dataset.sel(norm="none")
    final = largest_variance(without).isel(fraction=-1).median("seed", skipna=False)
    sizes = ", ".join(f"{value:.1e} at layer {depth:.0f}" for value, depth in zip(final, final["depth"], strict=True))
    begins = 100 * float(visible_from(largest_variance(without)).isel(layer=-1).median())
    with_bn = largest_variance(dataset.sel(norm="batch")).isel(layer=-1)
    change = float((with_bn.isel(fraction=-1) / with_bn.isel(fraction=0)).median())
    return (
        f"Without batch norm a step of α = {float(without['step_size'].median()):.2g} ends with channel variances "
        f"up to {sizes}; the deepest of them passes a tenth of that at {begins:.0f} % of the step. With batch norm a "
        f"step of α = {STEP_WITH_BN} multiplies its variance by {change:.2g} (medians over seeds)."
    )


EXHIBIT = Exhibit(
    name="figure4",
    title="Activations along one diverging step",
    where="Figure 4",
    place=4,
    paper_saw=(
        "Follow the channels through one step that diverges, without batch norm: the means and variances of a low "
        "layer hardly move, those of layers 44 and 80 reach variances of 5e6 and 6e16, and nothing happens in them "
        "until the last fifth of the step. The explosion grows from layer to layer."
    ),
    measure=measure,
    draw=draw,
    verdicts=verdicts,
    we_saw=we_saw,
)
