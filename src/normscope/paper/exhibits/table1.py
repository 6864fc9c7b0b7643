"""Table 1: cancellation in a kernel's gradient at initialization, with the control of frozen batch statistics."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.gradient_cancellation import plot_gradient_cancellation
from normscope.figures.style import COLORS, figure_of
from normscope.paper.exhibit import DEEP, ON_PAPER_SETTING, Exhibit, Setting, on_paper_setting, over_networks
from normscope.paper.published import PUBLISHED
from normscope.probes.gradient_cancellation import gradient_cancellation
from normscope.statistics.claim import Claim, RatioClaim
from normscope.statistics.verdict import CONTROL

NETWORKS = ("batch", "frozen", "none")
"""Batch norm, the same with its statistics as constants, and no norm."""
PAPER_DEPTH = 110
PAPER_LAYERS = PUBLISHED["table1"]["layer"]


def scaled_layer(layer: int, depth: int) -> int:
    """The layer of a network of another depth in the place that `layer` has in the paper's: in the same stage, as far
    along it, and the same convolution of its block."""
    place = 2 * round(layer // 2 * depth / PAPER_DEPTH) + layer % 2
    return min(max(place, 1), depth)


def measure(setting: Setting) -> xr.Dataset:
    """The sums of every layer on the first mini-batch of training, before any step."""

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        net = setting.build("none" if norm == "none" else "batch", seed)
        return gradient_cancellation(net, setting.first_batch(seed), frozen_statistics=norm == "frozen")

    return over_networks(setting, "table1", measure_one, {"norm": NETWORKS})


def paper_layers(dataset: xr.Dataset) -> xr.Dataset:
    """The table's three layers, by their `depth`; the paper's numbering as the coordinate `paper_layer`."""
    main_path = dataset.sel(layer=dataset["depth"].notnull()).swap_dims(layer="depth")
    places = [scaled_layer(layer, int(main_path["depth"].max())) for layer in PAPER_LAYERS]
    return main_path.sel(depth=places).assign_coords(paper_layer=("depth", PAPER_LAYERS))


def draw(dataset: xr.Dataset) -> Figure:
    """a/b on the left and (a/b)/√n on the right, for every layer and network; the paper's table hollow."""
    figure, axes = figure_of(1, 2, panel=(3.7, 3.4))
    published = PUBLISHED["table1"]["ratio"] if on_paper_setting(dataset) else {}
    handles: dict[str, Any] = {}
    for ax, quantity in zip(axes.flat, ("ratio", "normalized_ratio"), strict=True):
        plot_gradient_cancellation(dataset, quantity=quantity, ax=ax)
        for norm, ratio in published.items():
            of_norm = np.array(ratio) / (1 if quantity == "ratio" else np.sqrt(paper_num_terms()))
            ax.plot(PAPER_LAYERS, of_norm, "o", mfc="none", mec=COLORS[norm], ms=8, label="published, about")
        handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        ax.get_legend().remove()
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def paper_num_terms() -> np.ndarray:
    """n at the three layers in the paper: 128 images of 32, 16 and 8 pixels a side."""
    return 128 * np.array([32, 16, 8]) ** 2


def _over_layers(dataset: xr.Dataset, norm: str, name: str) -> xr.DataArray:
    """A quantity of one network at the table's three layers, over `seed` and `depth`."""
    return paper_layers(dataset)[name].sel(norm=norm)


def _smallest_quotient(dataset: xr.Dataset) -> xr.DataArray:
    """a/b with batch norm over that without, at the layer where it is smallest."""
    quotient = _over_layers(dataset, "batch", "ratio") / _over_layers(dataset, "none", "ratio")
    return quotient.min("depth", skipna=False)


_PUBLISHED = PUBLISHED["table1"]["ratio"]
_QUOTIENTS = [b / n for b, n in zip(_PUBLISHED["batch"], _PUBLISHED["none"], strict=True)]

CLAIMS = [
    Claim(
        statement="With BN the summands cancel like independent signs: (a/b)/√n is at least 0.25 in the places of "
        "layers 18, 54, 90",
        value=lambda dataset: _over_layers(dataset, "batch", "normalized_ratio").min("depth", skipna=False),
        above=0.25,
        paper=f"about {min(np.array(_PUBLISHED['batch']) / np.sqrt(paper_num_terms())):.2g}",
        note="the smallest of the three layers, seed by seed",
        scope=DEEP,
    ),
    Claim(
        statement="Without BN they share their sign: a/b is at most 5 at those layers",
        value=lambda dataset: _over_layers(dataset, "none", "ratio").max("depth", skipna=False),
        below=5,
        scale="log",
        paper=f"about {max(_PUBLISHED['none'])}",
        note="the largest of the three layers, seed by seed",
        scope=DEEP,
    ),
    RatioClaim(
        statement="a/b with BN is at least 5 times that without, at those layers",
        value=_smallest_quotient,
        above=5,
        paper=f"about {min(_QUOTIENTS):.0f}",
        note="the smallest of the three layers, paired by seed",
        scope=DEEP,
    ),
    *(
        Claim(
            statement=f"In the place of layer {layer}, not by BN's backward pass alone: with frozen statistics "
            "(a/b)/√n is at least 0.25",
            where="beside Table 1",
            kind=CONTROL,
            value=lambda dataset, one=place: _over_layers(dataset, "frozen", "normalized_ratio").isel(depth=one),
            above=0.25,
            note="with frozen statistics the backward pass centres nothing",
            scope=DEEP,
        )
        for place, layer in enumerate(PAPER_LAYERS)
    ),
    *(
        Claim(
            statement=f"Layer {layer}: a/b with BN is of the published size, within a factor 2",
            value=lambda dataset, one=place: _over_layers(dataset, "batch", "ratio").isel(depth=one),
            equals=_PUBLISHED["batch"][place],
            margin=2,
            scale="log",
            paper=f"about {_PUBLISHED['batch'][place]}",
            scope=ON_PAPER_SETTING,
        )
        for place, layer in enumerate(PAPER_LAYERS)
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """a/b of the three networks at the three layers, geometric means over seeds."""
    table = paper_layers(dataset)
    means = np.exp(np.log(table["ratio"].transpose("norm", "seed", "depth").values).mean(1))
    rows = {norm: ", ".join(f"{value:.3g}" for value in row) for norm, row in zip(NETWORKS, means, strict=True)}
    places = ", ".join(str(int(depth)) for depth in table["depth"])
    return (
        f"a/b at layers {places}: {rows['batch']} with batch norm, {rows['frozen']} with the same statistics as "
        f"constants, {rows['none']} without (geometric means over {dataset.sizes['seed']} seeds)."
    )


EXHIBIT = Exhibit(
    name="table1",
    title="Whether a gradient's summands cancel",
    where="Table 1",
    place=6.5,
    paper_saw=(
        "A kernel's gradient is a sum over images and positions. With batch norm the sum of absolute values is about a "
        "hundred times the absolute value of the sum: the terms cancel. Without it only about twice: they share their "
        "sign, whatever the image, and push the network in one direction."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
)
