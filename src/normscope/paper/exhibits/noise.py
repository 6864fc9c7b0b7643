"""The noise of SGD's gradient: estimators against exact enumeration, the law C/|B| with and without batch norm, and
the size of gradients against depth."""

from functools import partial
from itertools import combinations, product

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from normscope.figures.gradient_norms import plot_gradient_norms
from normscope.figures.style import COLORS, axis_label, figure_of, legend_once
from normscope.model.batch import Batch, take
from normscope.model.loss import default_loss
from normscope.model.state import untouched
from normscope.paper.exhibit import DEEP, NORM_TITLES, Exhibit, Setting, over_networks
from normscope.per_example import gradient, trainable
from normscope.probes.gradient_noise import gradient_noise
from normscope.probes.gradient_norms import gradient_norms
from normscope.results import labelled
from normscope.statistics.claim import Claim, RatioClaim
from normscope.statistics.verdict import CONTROL

SMALL_NET = "resnet20"
"""Fast enough to run all mini-batches of a small population."""
POPULATION = 8
PAIR = 2
"""|B| of the mini-batches that are enumerated."""
SAMPLINGS = ("with replacement", "without replacement")
PARTITIONS = 12
"""How often the estimate takes the population apart, where the loss does not decouple."""
BATCH_SIZES = (4, 16, 64)
DEEP_BATCH_SIZE = 64
"""|B| at which the paper's deep network is compared: half of its first mini-batch of 128."""


def measure(setting: Setting) -> xr.Dataset:
    """At initialization, on the first mini-batch of training with its augmentation frozen."""

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        batch = setting.first_batch(seed)
        small, deep = setting.build(norm, seed, net=SMALL_NET), setting.build(norm, seed)
        all_pairs = enumerated(small, take(batch, range(POPULATION)))
        parts = [all_pairs, _at_batch_sizes(small, batch), _of_deep(deep, batch), gradient_norms(deep, batch)]
        return xr.merge(parts, combine_attrs="drop_conflicts")

    return over_networks(setting, "noise", measure_one, small_net=SMALL_NET, population=POPULATION)


def enumerated(net: nn.Module, population: Batch) -> xr.Dataset:
    """Variance and bias of the gradient of mini-batches of two: exactly, from every one that the population allows,
    each run by itself; and as `gradient_noise` gives them, which sees the population only as one batch."""
    noise = gradient_noise(net, population, batch_size=PAIR, partitions=PARTITIONS)
    of_population = float(noise["noise_per_example"]) * (POPULATION - 1) / POPULATION
    predicted = np.array([1, (POPULATION - PAIR) / (POPULATION - 1)]) * of_population / PAIR
    examples = range(POPULATION)
    subsets = list(combinations(examples, PAIR))
    distinct = sorted({tuple(sorted(draw)) for draw in product(examples, repeat=PAIR)})
    place = {draw: i for i, draw in enumerate([*distinct, tuple(examples)])}
    products = _inner_products(net, [take(population, draw) for draw in place])

    def weights(draws: list[tuple[int, ...]]) -> np.ndarray:
        return np.bincount([place[tuple(sorted(d))] for d in draws], minlength=len(place)) / len(draws)

    def variance(draws: list[tuple[int, ...]]) -> float:
        w = weights(draws)
        return float(w @ products.diagonal() - w @ products @ w)

    disjoint = [(place[a], place[b]) for a, b in combinations(subsets, 2) if not set(a) & set(b)]
    apart = [(products[i, i] + products[j, j]) / 2 - products[i, j] for i, j in disjoint]
    off = weights(subsets) - weights([tuple(examples)])
    return labelled(
        {
            "exact_variance": (
                "sampling",
                [variance(list(product(examples, repeat=PAIR))), variance(subsets)],
                "exact",
                "1",
            ),
            "predicted_variance": ("sampling", predicted, "predicted from C", "1"),
            "exact_fresh_variance": ((), np.mean(apart), "exact, between disjoint mini-batches", "1"),
            "estimated_variance": ((), float(noise["batch_variance"]), "estimated", "1"),
            "exact_bias": ((), off @ products @ off, "exact squared bias", "1"),
            "estimated_bias": ((), float(noise["batch_bias"]), "estimated squared bias", "1"),
            "decouples": ((), bool(noise["decouples"]), "loss decouples into examples", "1"),
        },
        {"sampling": (list(SAMPLINGS), "drawing mini-batches", "1")},
    )


def _inner_products(net: nn.Module, batches: list[Batch]) -> np.ndarray:
    """Of the gradients of these batches, in training mode: (batches, batches) in float64."""
    with untouched(net):
        net.train()
        parameters = trainable(net)
        rows = [torch.cat([part.flatten() for part in gradient(default_loss(net, b), parameters)]) for b in batches]
    table = torch.stack(rows).double()
    return (table @ table.T).cpu().numpy()


def _at_batch_sizes(net: nn.Module, batch: Batch) -> xr.Dataset:
    """Variance and bias at growing |B|, in the same batch."""
    found = [gradient_noise(net, batch, batch_size=size, partitions=2) for size in BATCH_SIZES]
    return labelled(
        {
            "variance": ("batch_size", [float(f["batch_variance"]) for f in found], "variance of the gradient", "1"),
            "bias": ("batch_size", [float(f["batch_bias"]) for f in found], "squared bias of the gradient", "1"),
            "squared_norm": ((), float(found[0]["gradient_squared_norm"]), "squared norm of the gradient", "1"),
        },
        {"batch_size": (list(BATCH_SIZES), "mini-batch size |B|", "1")},
    )


def _of_deep(net: nn.Module, batch: Batch) -> xr.Dataset:
    """The noise of the deep network."""
    found = gradient_noise(net, batch, batch_size=min(DEEP_BATCH_SIZE, len(batch[1]) // 2), partitions=2)
    return labelled(
        {
            "deep_variance": ((), float(found["batch_variance"]), "variance of the gradient", "1"),
            "deep_squared_norm": ((), float(found["gradient_squared_norm"]), "squared norm of the gradient", "1"),
        },
        {},
    )


def draw(dataset: xr.Dataset) -> Figure:
    """Estimates against enumeration, the law C/|B|, and both gradients against depth."""
    figure, axes = figure_of(2, 2)
    _draw_enumeration(dataset, axes[0, 0])
    _draw_batch_sizes(dataset, axes[0, 1])
    for ax, quantity in zip(axes[1], ("activation_gradient_rms", "weight_gradient_norm"), strict=True):
        plot_gradient_norms(dataset, quantity=quantity, ax=ax)
    return figure


def _draw_enumeration(dataset: xr.Dataset, ax: Axes) -> None:
    """What the probe says against what enumeration gives; on the line they are the same."""
    without = dataset.sel(norm="none")
    for sampling, marker in zip(SAMPLINGS, "os", strict=True):
        one = without.sel(sampling=sampling)
        ax.plot(
            one["exact_variance"],
            one["predicted_variance"],
            marker,
            mfc="none",
            color=COLORS["none"],
            ls="",
            label=f"no norm, {sampling}",
        )
    with_bn = dataset.sel(norm="batch")
    for kind, marker in (("variance", "^"), ("bias", "v")):
        exact = with_bn["exact_fresh_variance" if kind == "variance" else "exact_bias"]
        ax.plot(
            exact, with_bn[f"estimated_{kind}"], marker, color=COLORS["batch"], ls="", label=f"with batch norm, {kind}"
        )
    ax.axline((1, 1), (10, 10), color="0.4", lw=1, ls=":")
    ax.set(xscale="log", yscale="log", xlabel="by enumeration", ylabel="by the probe")
    ax.set_title(f"mini-batches of {PAIR} from {dataset.attrs['population']} images")
    legend_once(ax, loc="upper left", handlelength=1)


def _draw_batch_sizes(dataset: xr.Dataset, ax: Axes) -> None:
    """Variance against |B|, and how large the gradient itself is."""
    sizes = dataset["batch_size"].values
    for norm in dataset["norm"].values.tolist():
        of_norm, color = dataset.sel(norm=norm), COLORS[norm]
        for seed in dataset["seed"].values:
            values = of_norm["variance"].sel(seed=seed) / of_norm["squared_norm"].sel(seed=seed)
            ax.plot(sizes, values, "o-" if norm == "batch" else "-", color=color, ms=4, label=NORM_TITLES[norm])
    ax.axhline(1, color="0.4", lw=1, ls=":")
    ax.set(
        xscale="log",
        yscale="log",
        xlabel=axis_label(dataset["batch_size"]),
        ylabel="variance / squared norm of the gradient",
    )
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set_xticks([], minor=True)
    ax.set_title(f"noise at growing |B|, {dataset.attrs['small_net']}")
    legend_once(ax)


def _variance_ratio(dataset: xr.Dataset, sampling: str) -> xr.DataArray:
    """Without BN, the variance of the gradient from all mini-batches over that predicted from C."""
    of = dataset.sel(norm="none", sampling=sampling)
    return of["exact_variance"] / of["predicted_variance"]


def _falls_with_size(dataset: xr.Dataset) -> xr.DataArray:
    """With BN, |B| times the variance at the smallest |B| over that at the largest; 1 where the variance is C/|B|."""
    scaled = (dataset["variance"] * dataset["batch_size"]).sel(norm="batch")
    return scaled.isel(batch_size=0) / scaled.isel(batch_size=-1)


def _bias_of_smallest(dataset: xr.Dataset) -> xr.DataArray:
    """With BN, the squared bias at the smallest |B| over the squared gradient."""
    of = dataset.sel(norm="batch")
    return of["bias"].isel(batch_size=0) / of["squared_norm"]


def _deep_noise_ratio(dataset: xr.Dataset) -> xr.DataArray:
    """The variance of the deep network's gradient without BN over that with it."""
    return dataset["deep_variance"].sel(norm="none") / dataset["deep_variance"].sel(norm="batch")


def _weight_gradient_ratio(dataset: xr.Dataset) -> xr.DataArray:
    """The norm of a weight's gradient without BN over that with it, geometric mean over all convolutions."""
    of = _on_main_path(dataset)["weight_gradient_norm"].isel(depth=slice(0, -1))
    logs = xr.apply_ufunc(np.log, of.sel(norm="none") / of.sel(norm="batch"))
    return xr.apply_ufunc(np.exp, logs.mean("depth", skipna=False))


_NOISE = "argument 2: noise and C/|B|"

CLAIMS = [
    *(
        Claim(
            statement=f"Drawn {sampling}, the variance of the gradient is {law} within 1 %",
            where=_NOISE,
            kind=CONTROL,
            value=partial(_variance_ratio, sampling=sampling),
            equals=1,
            margin=0.01,
            unit=" times",
            paper="at most C/|B|",
            note=f"without BN; C from one pass, the variance from all mini-batches of {PAIR} out of {POPULATION}",
        )
        for sampling, law in zip(SAMPLINGS, ("C/|B|", "C/|B| · (N − |B|)/(N − 1)"), strict=True)
    ),
    RatioClaim(
        statement="With BN the variance estimated from random mini-batches is that by enumeration, within a factor "
        "1.25",
        where=_NOISE,
        kind=CONTROL,
        value=lambda dataset: (dataset["estimated_variance"] / dataset["exact_fresh_variance"]).sel(norm="batch"),
        equals=1,
        margin=1.25,
        note=f"{PARTITIONS} partitions of {POPULATION} images; between mini-batches without a common image",
    ),
    RatioClaim(
        statement="With BN so is the bias of the mini-batch's gradient, within a factor 1.5",
        where=_NOISE,
        kind=CONTROL,
        value=lambda dataset: (dataset["estimated_bias"] / dataset["exact_bias"]).sel(norm="batch"),
        equals=1,
        margin=1.5,
        note="squared distance of the mean mini-batch gradient from that of the whole population",
    ),
    RatioClaim(
        statement=f"With BN the noise is no C/|B|: |B| · variance at {BATCH_SIZES[0]} is at least twice that at "
        f"{BATCH_SIZES[-1]}",
        where=_NOISE,
        kind=CONTROL,
        value=_falls_with_size,
        above=2,
        note=f"{SMALL_NET}; without BN it is 1",
    ),
    Claim(
        statement=f"With BN a mini-batch of {BATCH_SIZES[0]} is biased: its squared bias is at least a tenth of the "
        "squared gradient",
        where=_NOISE,
        kind=CONTROL,
        value=_bias_of_smallest,
        above=0.1,
        scale="log",
        unit=" of the squared gradient",
        note=f"{SMALL_NET}; against the gradient of the whole batch",
    ),
    RatioClaim(
        statement="At initialization the deep network without BN has at least 100 times the noise of that with BN",
        where="arguments 2 and 4",
        kind=CONTROL,
        value=_deep_noise_ratio,
        above=100,
        note="variance of a mini-batch's gradient, paired by seed: more noise cannot be better across networks",
        scope=DEEP,
    ),
    RatioClaim(
        statement="Weight gradients without BN are at least 10 times those with BN, over all convolutions",
        where="beside Figure 2",
        kind=CONTROL,
        value=_weight_gradient_ratio,
        above=10,
        paper="about 100 at layer 55",
        note="geometric mean over layers, paired by seed",
        scope=DEEP,
    ),
]


def _on_main_path(dataset: xr.Dataset) -> xr.Dataset:
    """By `depth` in place of `layer`."""
    return dataset.sel(layer=dataset["depth"].notnull()).swap_dims(layer="depth")


def backward_growth(dataset: xr.Dataset) -> xr.DataArray:
    """The activation gradient at the first convolution over that at the last one, over norm and seed."""
    rms = _on_main_path(dataset)["activation_gradient_rms"]
    return rms.isel(depth=0, drop=True) / rms.isel(depth=-2, drop=True)


def we_saw(dataset: xr.Dataset) -> str:
    """Growth backwards and noise of both networks, geometric means over seeds."""

    def mean(values: xr.DataArray) -> dict[str, str]:
        return {norm: f"{np.exp(np.log(values.sel(norm=norm)).mean()):.2g}" for norm in ("batch", "none")}

    growth, noise = mean(backward_growth(dataset)), mean(dataset["deep_variance"] / dataset["deep_squared_norm"])
    return (
        f"From the last convolution to the first, activation gradients grow {growth['batch']} times with batch norm "
        f"and {growth['none']} times without. The noise of the deep network's mini-batch is {noise['batch']} times its "
        f"squared gradient with batch norm, {noise['none']} times without."
    )


EXHIBIT = Exhibit(
    name="noise",
    title="The noise of a mini-batch's gradient",
    where="Argument 2",
    place=6.7,
    paper_saw=(
        "A step of SGD differs from one along the full gradient by at most α²C/|B| on average, C being the variance of "
        "single examples' gradients. So a larger learning rate, which batch norm allows, means more noise, and the "
        "paper explains better generalization by it. Under batch norm itself an example has no gradient of its own."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
)
