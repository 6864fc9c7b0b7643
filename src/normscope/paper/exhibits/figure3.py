"""Figure 3: relative loss against step size, along the gradient and along the optimizer's own update, at mini-batches
1, 4 and 7 of training."""

from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import nn

from normscope.descent.loop import descend
from normscope.descent.step_line import crossing
from normscope.figures.relative_loss import plot_relative_loss
from normscope.figures.style import COLORS, figure_of, legend_once
from normscope.model.batch import Batch
from normscope.paper.exhibit import (
    DEEP,
    ON_PAPER_SETTING,
    Exhibit,
    Setting,
    joined,
    on_paper_setting,
    over_networks,
)
from normscope.paper.published import PUBLISHED
from normscope.probes.relative_loss import relative_loss
from normscope.statistics.claim import Bounded, Claim, RatioClaim, Scope
from normscope.statistics.verdict import CONTROL

LEARNING_RATE = {"batch": 0.1, "none": 1e-4}
MINI_BATCHES = (1, 4, 7)
DIRECTIONS = ("gradient", "update")
"""The mini-batch's own gradient; and what SGD would do next, its momentum buffer and weight decay included."""

FIRST_FRESH = 5
"""The direction was chosen on seeds 0 to 4: what is measured here are networks of later ones."""

STEP_SIZES = np.concatenate([np.geomspace(1.5e-5, 0.2, 17), np.geomspace(0.2, 1e4, 10)[1:]])
"""The paper's range, four a decade, and on to where batch norm gives way too."""


def measure(setting: Setting) -> xr.Dataset:
    """Train as the paper did and take the probe before the steps on mini-batches 1, 4 and 7, in both directions.

    SGD with momentum 0.9 and weight decay 5e-4, learning rate 0.1 with batch norm and 1e-4 without. Before the first
    step there is no momentum: the two directions differ by the weight decay alone, 5e-4 of the weights, and the second
    is not walked along. The seeds are those of the setting, five later each.
    """
    fresh = replace(setting, seeds=tuple(seed + FIRST_FRESH for seed in setting.seeds))

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        net = setting.build(norm, seed)
        sgd = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE[norm], momentum=0.9, weight_decay=5e-4)
        probed = [
            _both_directions(net, sgd, step.batch)
            for step in descend(net, sgd, setting.batches(seed), steps=MINI_BATCHES[-1])
            if step.index + 1 in MINI_BATCHES
        ]
        return joined(probed, "mini_batch", MINI_BATCHES, long_name="mini-batch of training")

    return over_networks(fresh, "figure3", measure_one, {"norm": ("none", "batch")}, learning_rate=LEARNING_RATE)


def _both_directions(net: nn.Module, sgd: torch.optim.SGD, batch: Batch) -> xr.Dataset:
    """The relative loss along the gradient and along the next update, over `direction` and `step_size`."""
    along_gradient = relative_loss(net, batch, step_sizes=STEP_SIZES)
    has_momentum = any("momentum_buffer" in of for of in sgd.state.values())
    along_update = relative_loss(net, batch, step_sizes=STEP_SIZES, optimizer=sgd) if has_momentum else along_gradient
    return joined([along_gradient, along_update], "direction", DIRECTIONS, long_name="direction of the step")


def we_saw(dataset: xr.Dataset) -> str:
    """Medians over seeds at the first mini-batch, in words."""
    first = along(dataset, "gradient").sel(mini_batch=1)
    diverges = first["divergence_step_size"].median("seed")
    lowest = first["lowest_step_size"].median("seed")
    end = float(dataset["step_size"].max())

    def passes(norm: str) -> str:
        step = float(diverges.sel(norm=norm))
        return f"at α = {step:.2g}" if np.isfinite(step) else f"nowhere up to α = {end:.3g}"

    return (
        f"On the first mini-batch the loss without batch norm is lowest at α = {float(lowest.sel(norm='none')):.2g} "
        f"and passes a thousand times its start {passes('none')}; with it, it is lowest at "
        f"α = {float(lowest.sel(norm='batch')):.2g} and passes a thousand times its start {passes('batch')} "
        "(medians over seeds)."
    )


def draw(dataset: xr.Dataset) -> Figure:
    """The paper's arrangement: one panel a mini-batch, both networks in each, every seed a line; along the update above
    and along the gradient below."""
    directions = [name for name in DIRECTIONS if name == "gradient" or "direction" in dataset.dims]
    mini_batches = dataset["mini_batch"].values.tolist()
    figure, axes = figure_of(len(directions), len(mini_batches), sharey=True)
    published = PUBLISHED["figure3"]
    for ax, (direction, mini_batch) in zip(axes.flat, product(directions[::-1], mini_batches), strict=True):
        plot_relative_loss(along(dataset, direction).sel(mini_batch=mini_batch), ax=ax)
        of = {"update": "along the update", "gradient": "along the gradient"}[direction]
        ax.set_title(f"mini-batch {mini_batch}, {of}")
        batch, none = published["batch"][str(mini_batch)], published["none"][str(mini_batch)]
        marks = [
            (0.2, 10 ** batch["at_0.2_log10"], COLORS["batch"]),
            (none["above_1e6"], 1e6, COLORS["none"]),
        ]
        if "min" in none:
            marks += [(none["argmin"], none["min"], COLORS["none"]), (none["back_at_1"], 1.0, COLORS["none"])]
        for x, y, color in marks:
            ax.plot(x, y, "o", mfc="none", mec=color, ms=8, label="published, CIFAR-10")
        if ax is axes.flat[0]:
            legend_once(ax, loc="lower right")
        else:
            ax.set_ylabel("")
            ax.get_legend().remove()
    return figure


def along(dataset: xr.Dataset, direction: str) -> xr.Dataset:
    """What was measured in a direction; older results went along the gradient alone."""
    if "direction" in dataset.dims:
        return dataset.sel(direction=direction)
    return dataset if direction == "gradient" else xr.full_like(dataset, np.nan)


def _papers_direction(dataset: xr.Dataset) -> xr.Dataset:
    """Along the update, as the paper did; of older results along the gradient."""
    return along(dataset, "update" if "direction" in dataset.dims else "gradient")


def _at_largest_step(dataset: xr.Dataset) -> xr.DataArray:
    """The relative loss at the end of the paper's range, α = 0.2, with batch norm, over `seed` and `mini_batch`."""
    of = _papers_direction(dataset)["relative_loss"].sel(norm="batch")
    return of.sel(step_size=0.2, method="nearest").transpose("seed", "mini_batch")


def _largest_with_bn(dataset: xr.Dataset, mini_batch: int) -> xr.DataArray:
    """The largest relative loss up to α = 0.2 with batch norm."""
    of = _papers_direction(dataset)["relative_loss"].sel(norm="batch", mini_batch=mini_batch)
    return of.sel(step_size=slice(None, 0.201)).max("step_size", skipna=False)


def _step_gained(dataset: xr.Dataset, mini_batch: int) -> Bounded:
    """How many times larger a step may be with batch norm before the loss diverges; a bound where it never does."""
    divergence = _papers_direction(dataset)["divergence_step_size"].sel(mini_batch=mini_batch)
    with_bn, without = divergence.sel(norm="batch"), divergence.sel(norm="none")
    end = float(dataset["step_size"].max())
    return Bounded(with_bn.clip(max=end) / without.where(np.isfinite(without)), np.isinf(with_bn))


def _passes_a_million(dataset: xr.Dataset, direction: str) -> np.ndarray:
    """Where the loss without batch norm passes 10⁶ times its start, (seed, mini_batch)."""
    of = along(dataset, direction)["relative_loss"].sel(norm="none").transpose("seed", "mini_batch", "step_size")
    steps = dataset["step_size"].values
    return np.array([[crossing(steps, row, 1e6) if np.isfinite(row).any() else np.nan for row in s] for s in of.values])


def _of_mini_batches(values: np.ndarray, dataset: xr.Dataset, wanted: tuple[int, ...]) -> np.ndarray:
    """The columns of these mini-batches."""
    return values[:, [dataset["mini_batch"].values.tolist().index(one) for one in wanted]]


_WITH, _WITHOUT = PUBLISHED["figure3"]["batch"], PUBLISHED["figure3"]["none"]

WIDEST = 30
"""A band of step sizes wider than this factor says nothing."""

WALKED_ALONG_UPDATE = Scope(
    "ResNet-110 on CIFAR-10", lambda dataset: on_paper_setting(dataset) and "direction" in dataset.dims
)

CLAIMS = [
    *(
        Claim(
            statement=f"With BN, mini-batch {mini_batch}: relative loss stays under 10 up to α = 0.2",
            value=partial(_largest_with_bn, mini_batch=mini_batch),
            below=10,
            scale="log",
            paper=f"{10 ** _WITH[str(mini_batch)]['at_0.2_log10']:.2g} at α = 0.2",
            in_sample=mini_batch == 1,
            scope=DEEP,
        )
        for mini_batch in MINI_BATCHES
    ),
    *(
        RatioClaim(
            statement=f"Mini-batch {mini_batch}: BN takes a step at least 30 times larger before the loss diverges",
            value=partial(_step_gained, mini_batch=mini_batch),
            above=30,
            paper="more than 30: no divergence up to 0.2",
            note="paired by seed",
            scope=DEEP,
        )
        for mini_batch in MINI_BATCHES
    ),
    Claim(
        statement="With BN, the published loss at α = 0.2 could be one more seed's, at mini-batches 4 and 7",
        of="band",
        value=lambda dataset: _of_mini_batches(_at_largest_step(dataset).values, dataset, (4, 7)),
        published=[10 ** _WITH[one]["at_0.2_log10"] for one in ("4", "7")],
        points="published losses",
        scale="log",
        widest=10,
        paper="1.4 and 1.0",
        scope=ON_PAPER_SETTING,
    ),
    Claim(
        statement="Without BN, mini-batch 1: the α at which the published loss passes 10⁶ could be one more seed's",
        of="band",
        value=lambda dataset: _of_mini_batches(_passes_a_million(dataset, "gradient"), dataset, (1,)),
        published=[_WITHOUT["1"]["above_1e6"]],
        points="the published α",
        scale="log",
        widest=WIDEST,
        paper=_WITHOUT["1"]["above_1e6"],
        in_sample=True,
        scope=ON_PAPER_SETTING,
    ),
    Claim(
        statement="Without BN, along the optimizer's own update: the α at which the published losses of mini-batches 4 "
        "and 7 pass 10⁶ could be one more seed's",
        of="band",
        value=lambda dataset: _of_mini_batches(_passes_a_million(dataset, "update"), dataset, (4, 7)),
        published=[_WITHOUT[one]["above_1e6"] for one in ("4", "7")],
        points="published α",
        scale="log",
        widest=WIDEST,
        paper=", ".join(f"{_WITHOUT[one]['above_1e6']:g}" for one in ("4", "7")),
        note="direction chosen on five earlier seeds",
        scope=WALKED_ALONG_UPDATE,
    ),
    *(
        RatioClaim(
            statement=f"Mini-batch {mini_batch}: along the gradient alone the loss passes 10⁶ at an α at least 3 times "
            "larger",
            where="beside Figure 3",
            kind=CONTROL,
            value=lambda dataset, one=mini_batch: _of_mini_batches(
                _passes_a_million(dataset, "gradient") / _passes_a_million(dataset, "update"), dataset, (one,)
            ),
            above=3,
            note="without BN, paired by seed: the buffer still carries the first gradients, which were larger",
            scope=WALKED_ALONG_UPDATE,
        )
        for mini_batch in MINI_BATCHES[1:]
    ),
]


EXHIBIT = Exhibit(
    name="figure3",
    title="How far one step can go",
    where="Figure 3",
    place=3,
    paper_saw=(
        "Walk along one step of training: with batch norm the loss falls and is still of its own size at α = 0.2, "
        "without it the loss falls only to α ≈ 2e-4 and passes a million times its start by 3e-3 to 7e-3. A large "
        "learning rate is out of reach in the very first updates. The paper says that it walks along the gradient; its "
        "curves are those along the optimizer's own update, momentum included."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    protocol=2,
)
