"""Figure 4: channel means and variances along one diverging step, in three layers of growing depth."""

from functools import partial

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.descent.step_line import crossing, step_line
from normscope.figures.moments_along_step import plot_moments_along_step
from normscope.figures.style import COLORS, NAMES, figure_of
from normscope.paper.exhibit import DEEP, SHALLOW, Exhibit, Setting, on_paper_setting, over_networks
from normscope.paper.published import PUBLISHED
from normscope.probes.channel_moments import channel_moments
from normscope.probes.moments_along_step import moments_along_step
from normscope.statistics.claim import Claim, RatioClaim, Scope
from normscope.statistics.verdict import CONTROL

STEP_WITH_BN = 0.2
"""The largest step of figure 3, of which batch norm takes no harm."""

TRIED_STEPS = np.geomspace(1e-4, 25.6, 19)
"""Where the step of divergence without batch norm is looked for: each twice the one before."""

HALVINGS = 4
"""How often the interval found is halved, in logarithms: the step is known to 2^(1/16), 4 %."""

MULTIPLE = "step size over that of divergence"
FRACTIONS = np.linspace(0, 1, 21)
VISIBLE = 0.1
"""Below a tenth of the end of a linear colour scale nothing is seen to happen."""


MULTIPLES = np.geomspace(0.7, 8.0, 13)
"""Of the step of divergence: where the growth against the step size is measured."""


def measure(setting: Setting) -> xr.Dataset:
    """One step on the first mini-batch, before any training.

    Without batch norm the step is the one at whose end the deepest layer shown reaches the published variance of layer
    80, 5.6e16, since the scales depend violently on the step (in networks of at most 30 layers, twice the one at which
    the relative loss passes 10³); with batch norm it is 0.2. The largest variance of the three layers is measured
    against the step size as well, over multiples of the step of divergence.
    """

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        net, batch = setting.build(norm, seed), setting.first_batch(seed)
        layers = shown_layers(channel_moments(net, batch)["depth"])
        names = layers["layer"].values.tolist()
        diverges = divergence_step_size(net, batch) if norm == "none" else float("nan")
        step_size, against = STEP_WITH_BN, np.full((len(MULTIPLES), len(names)), np.nan)
        if norm == "none":
            unit = min(diverges, TRIED_STEPS[-1])
            moments = moments_along_step(net, batch, step_size=unit, fractions=MULTIPLES, layers=names)
            against = largest_variance(moments).transpose("fraction", "layer").values
            step_size = 2 * unit
            if layers.values[-1] > SHALLOW:
                reached = crossing(MULTIPLES, against[:, -1], PUBLISHED["figure4"]["max_variance"][-1])
                step_size = unit * min(reached, MULTIPLES[-1])
        moments = moments_along_step(net, batch, step_size=step_size, fractions=FRACTIONS, layers=names)
        moments = moments.assign_coords(multiple=("multiple", MULTIPLES, {"long_name": MULTIPLE, "units": "1"}))
        more = {
            "divergence_step_size": ((), diverges, "step size where relative loss passes 10³"),
            "variance_against_step": (("multiple", "layer"), against, "largest channel variance"),
        }
        for name, (dims, values, long_name) in more.items():
            moments[name] = (dims, values, {"long_name": long_name, "units": "1"})
        return moments.assign_coords(depth=("layer", layers.values, layers.attrs))

    return over_networks(setting, "figure4", measure_one, {"norm": ("none", "batch")})


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


def _visible_from(largest: xr.DataArray) -> xr.DataArray:
    """The fraction of the step at which the largest variance first passes a tenth of that at the end."""
    share = (largest / largest.isel(fraction=-1)).isel(fraction=slice(1, None))
    passed = xr.apply_ufunc(
        lambda row: crossing(FRACTIONS[1:], row, VISIBLE), share, input_core_dims=[["fraction"]], vectorize=True
    )
    return passed.where(largest.isel(fraction=0).notnull())


def draw(dataset: xr.Dataset) -> Figure:
    """The paper's two rows of heat maps for the median seed without batch norm; below them, on a logarithmic axis, the
    largest variance for all seeds and both networks; and, without batch norm, how it grows with the step size.
    Published values are hollow, and dotted where the step that they belong to is not known."""
    published = PUBLISHED["figure4"]
    depths = dataset["depth"].values.astype(int)
    growth = "multiple" in dataset.dims  # older results were measured at one step size
    figure, axes = figure_of(4 if growth else 3, len(depths), panel=(3.9, 2.7))
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
        if growth:
            draw_growth(axes[3, column], dataset, str(name))
            axes[3, column].set(title=f"against the step size, layer {depth}")
            if column:
                axes[3, column].set_ylabel("")
            if depths.tolist() == published["layers"]:
                axes[3, column].axhline(published["max_variance"][column], ls=":", color=COLORS["none"])
    lines = {line.get_label(): line for line in axes[2, 0].lines}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
    return figure


def draw_growth(ax: Axes, dataset: xr.Dataset, layer: str) -> None:
    """The largest variance of a layer without batch norm against the step size, one line a seed; a cross where the
    step of the other rows ends."""
    of = dataset.sel(norm="none", layer=layer)
    for seed in dataset["seed"].values:
        one = of.sel(seed=seed)
        ax.plot(dataset["multiple"], one["variance_against_step"], color=COLORS["none"], alpha=0.8)
        ends = float(one["step_size"] / one["divergence_step_size"])
        ax.plot(ends, float(largest_variance(one).isel(fraction=-1)), "x", color="0.3", ms=5)
    ax.set(xscale="log", yscale="log", xlabel=MULTIPLE, ylabel="largest channel variance")


def diverging(dataset: xr.Dataset) -> xr.DataArray:
    """The largest variances without batch norm along the step; no value where the network diverges at none of the steps
    tried."""
    of = dataset.sel(norm="none")
    return largest_variance(of).where(np.isfinite(of["divergence_step_size"]))


def begins(dataset: xr.Dataset, place: int) -> xr.DataArray:
    """How far into the step, in per cent, the layer in this place reaches a tenth of its final variance; no value where
    that is not finite."""
    largest = diverging(dataset).isel(layer=place)
    return 100 * _visible_from(largest).where(np.isfinite(largest.isel(fraction=-1)))


def _change_with_bn(dataset: xr.Dataset) -> xr.DataArray:
    """By what the step with batch norm multiplies the largest variance of the deepest layer."""
    of = largest_variance(dataset.sel(norm="batch")).isel(layer=-1)
    return of.isel(fraction=-1) / of.isel(fraction=0)


def _end_where_published(dataset: xr.Dataset) -> np.ndarray:
    """The largest variances of the first two layers at the end of the step, (seed, layer); no value where the third
    does not reach the published one within a factor of 10."""
    end = diverging(dataset).isel(fraction=-1)
    off = abs(np.log(end.isel(layer=-1, drop=True) / _PUBLISHED["max_variance"][-1]))
    return end.where(off < np.log(10)).isel(layer=slice(0, 2)).transpose("seed", "layer").values


_PUBLISHED = PUBLISHED["figure4"]

AT_PUBLISHED_VARIANCE = Scope(
    "ResNet-110 on CIFAR-10", lambda dataset: on_paper_setting(dataset) and "multiple" in dataset.dims
)

CLAIMS = [
    *(
        Claim(
            statement="Nothing until the last fifth of the step: without BN, the layer in the place of layer "
            f"{_PUBLISHED['layers'][place]} reaches a tenth of its final variance only after 80 % of the step",
            value=partial(begins, place=place),
            above=80,
            paper="last fifth",
            unit=" %",
            scope=DEEP,
        )
        for place in (1, 2)
    ),
    Claim(
        statement="Where layer 80 reaches its published variance, 5.6e16, those of layers 8 and 44 could be one more "
        "seed's",
        of="band",
        value=_end_where_published,
        published=_PUBLISHED["max_variance"][:2],
        points="published variances",
        scale="log",
        widest=1e4,
        paper=", ".join(f"{value:g}" for value in _PUBLISHED["max_variance"][:2]),
        note="the paper does not state its α",
        no_value="in which layer 80 does not come near it",
        scope=AT_PUBLISHED_VARIANCE,
    ),
    RatioClaim(
        statement="With BN, a step of α = 0.2 changes the variance of the layer in the place of 80 by less than a "
        "factor 100",
        where="beside Figure 4",
        kind=CONTROL,
        value=_change_with_bn,
        below=100,
        scope=DEEP,
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """Medians over seeds, in words."""
    without = dataset.sel(norm="none")
    final = largest_variance(without).isel(fraction=-1).median("seed", skipna=False)
    sizes = ", ".join(f"{value:.1e} at layer {depth:.0f}" for value, depth in zip(final, final["depth"], strict=True))
    begins = 100 * float(_visible_from(largest_variance(without)).isel(layer=-1).median())
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
    claims=CLAIMS,
    we_saw=we_saw,
    protocol=2,
)
