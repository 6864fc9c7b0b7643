"""Figure 3: relative loss against step size along the gradient, at mini-batches 1, 4 and 7 of training."""

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure

from normscope.descent.loop import descend
from normscope.descent.step_line import crossing
from normscope.figures.relative_loss import plot_relative_loss
from normscope.figures.style import COLORS, figure_of, legend_once
from normscope.paper.exhibit import Exhibit, Setting, joined, on_paper_setting, over_networks
from normscope.paper.published import PUBLISHED
from normscope.probes.relative_loss import relative_loss
from normscope.statistics.verdict import Verdict, judge

LEARNING_RATE = {"batch": 0.1, "none": 1e-4}
MINI_BATCHES = (1, 4, 7)
STEP_SIZES = np.concatenate([np.geomspace(1.5e-5, 0.2, 25), np.geomspace(0.4, 100, 7)])
"""The paper's range, about six a decade, and on to where batch norm gives way too."""


def measure(setting: Setting) -> xr.Dataset:
    """Train as the paper did and take the probe before the steps on mini-batches 1, 4 and 7.

    SGD with momentum 0.9 and weight decay 5e-4, learning rate 0.1 with batch norm and 1e-4 without.
    """

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        net = setting.build(norm, seed)
        sgd = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE[norm], momentum=0.9, weight_decay=5e-4)
        probed = [
            relative_loss(net, step.batch, step_sizes=STEP_SIZES)
            for step in descend(net, sgd, setting.batches(seed), steps=MINI_BATCHES[-1])
            if step.index + 1 in MINI_BATCHES
        ]
        return joined(probed, "mini_batch", MINI_BATCHES, long_name="mini-batch of training")

    return over_networks(setting, "figure3", measure_one, learning_rate=LEARNING_RATE)


def we_saw(dataset: xr.Dataset) -> str:
    """Medians over seeds at the first mini-batch, in words."""
    first = dataset.sel(mini_batch=1)
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
    """The paper's arrangement: one panel a mini-batch, both networks in each, every seed a line."""
    figure, axes = figure_of(1, len(dataset["mini_batch"]), sharey=True)
    published = PUBLISHED["figure3"]
    for ax, mini_batch in zip(axes.flat, dataset["mini_batch"].values.tolist(), strict=True):
        plot_relative_loss(dataset.sel(mini_batch=mini_batch), ax=ax)
        ax.set_title(f"mini-batch {mini_batch}")
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
            legend_once(ax)
        else:
            ax.set_ylabel("")
            ax.get_legend().remove()
    return figure


def verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """How far one step can go with and without batch norm; on the paper's data, beside where it went for them."""
    result = step_verdicts(dataset)
    if on_paper_setting(dataset):
        result += published_verdicts(dataset)
    return result


def step_verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """Claims that can hold or fail on any data."""
    published = PUBLISHED["figure3"]["batch"]
    largest = dataset["relative_loss"].sel(norm="batch", step_size=slice(None, 0.201)).max("step_size", skipna=False)
    divergence, end = dataset["divergence_step_size"], float(dataset["step_size"].max())
    result = []
    for mini_batch in MINI_BATCHES:
        result.append(
            judge(
                f"With BN, mini-batch {mini_batch}: relative loss stays under 10 up to α = 0.2",
                "Figure 3",
                largest.sel(mini_batch=mini_batch),
                below=10,
                scale="log",
                paper=f"{10 ** published[str(mini_batch)]['at_0.2_log10']:.2g} at α = 0.2",
            )
        )
    for mini_batch in MINI_BATCHES:
        with_bn, without = (divergence.sel(norm=norm, mini_batch=mini_batch) for norm in ("batch", "none"))
        result.append(
            judge(
                f"Mini-batch {mini_batch}: BN takes a step at least 100 times larger before the loss diverges",
                "Figure 3",
                with_bn.clip(max=end) / without.where(np.isfinite(without)),
                above=100,
                lower_bound=np.isinf(with_bn),
                scale="log",
                paper="more than 30: no divergence up to 0.2",
                unit=" times",
                note="paired by seed",
            )
        )
    return result


def published_verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """Where the loss diverges without batch norm, which the paper's figure shows for CIFAR-10 and ResNet-110."""
    published = PUBLISHED["figure3"]["none"]
    result = [
        judge(
            "Without BN, mini-batch 1: relative loss passes 10³ between α = 5e-4 and 4e-3",
            "Figure 3",
            dataset["divergence_step_size"].sel(norm="none", mini_batch=1),
            equals=float(np.sqrt(5e-4 * 4e-3)),
            margin=float(np.sqrt(4e-3 / 5e-4)),
            scale="log",
            paper="10⁶ passed at 2.7e-3",
        )
    ]
    for mini_batch in MINI_BATCHES:
        rows: np.ndarray = dataset["relative_loss"].sel(norm="none", mini_batch=mini_batch).values
        paper = published[str(mini_batch)]["above_1e6"]
        result.append(
            judge(
                f"Without BN, mini-batch {mini_batch}: the loss grows 10⁶ times within a factor 3 of the published α",
                "Figure 3",
                [crossing(dataset["step_size"].values, row, 1e6) for row in rows],
                equals=paper,
                margin=3,
                scale="log",
                paper=paper,
            )
        )
    return result


EXHIBIT = Exhibit(
    name="figure3",
    title="How far one gradient step can go",
    where="Figure 3",
    place=3,
    paper_saw=(
        "Take a mini-batch's gradient and walk along it: with batch norm the loss falls and is still of its own "
        "size at α = 0.2, without it the loss falls only to α ≈ 2e-4 and passes a million times its start by 3e-3 to "
        "7e-3. A large learning rate is out of reach in the very first updates."
    ),
    measure=measure,
    draw=draw,
    verdicts=verdicts,
    we_saw=we_saw,
)
