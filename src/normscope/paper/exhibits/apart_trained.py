"""Batch norm taken apart and trained to the end: what accuracy does each part buy, and at which rate?

The protocol is that of `figure1_reduced`, ResNet-20, and its runs are used where they are the same. Written on 29
November 2026, when of these runs only batch norm's and no norm's at 0.1 and 0.01 had been seen (50.3, 46.1, 41.2 and
46.1 % of the test images over all their seeds). Nothing here asks for the gate: a network that does not learn at a rate
has what it has there, and one that diverges has guessing's 10 %.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.descent.outcome import Outcome
from normscope.figures.style import figure_of
from normscope.nets.names import BRANCH_INITS
from normscope.paper.exhibit import Exhibit
from normscope.paper.exhibits import figure1_reduced
from normscope.paper.exhibits.figure1_reduced import CHANCE, SCALE, finished, said_of
from normscope.paper.ladder import RUNGS, half_of_effect, share_of_effect
from normscope.paper.ladder_map import draw_cells
from normscope.paper.reduced import Arm
from normscope.statistics.claim import Claim

NET, SEEDS = "resnet20", 3

TRAINED = ("none", "batch", "batch_mean", "batch_std", "batch_detached", "skipinit")
"""Rungs of `paper.ladder`."""

LRS = (0.1, 0.3, 0.01)
"""The same for all rungs, in the order in which they are trained: what is at stake is the large ones."""

ARMS = tuple(
    Arm(NET, "none", lr, SEEDS, init=rung) if rung in BRANCH_INITS else Arm(NET, rung, lr, SEEDS)
    for lr in LRS
    for rung in TRAINED
)

EFFECTS = {
    "0.1": "test accuracy, trained at 0.1",
    "0.3": "test accuracy, trained at 0.3",
    "best": "test accuracy, trained at the best of three rates",
}
"""By name, as in "buys more than half of batch norm's effect on ..."; the best is that on held-out images."""

PREDICTED = "29 November 2026"

PREDICTIONS: dict[str, dict[str, bool]] = {
    effect: {"batch_mean": False, "batch_std": True, "batch_detached": True, "skipinit": False} for effect in EFFECTS
}
"""By effect and rung, whether it buys more than half of what batch norm does: as predicted of the usable rate."""


def name_of(rung: str, lr: float) -> str:
    """Of an arm."""
    return f"{NET} {rung}@{lr:g}"


def accuracy(dataset: xr.Dataset, kind: str, rung: str, lr: float) -> np.ndarray:
    """At the end in per cent, "test" or "held_out", one a seed: guessing's where it diverged, NaN if not finished."""
    of = dataset.sel(arm=name_of(rung, lr))
    values = of[f"{kind}_accuracy"].where(of["outcome"] != Outcome.DIVERGED.value, CHANCE)
    return values.where(finished(of)).values


def best_lr(dataset: xr.Dataset, rung: str) -> float:
    """The rate with the highest mean accuracy of the held-out images; NaN before all runs of the rung are finished."""
    means = {lr: float(accuracy(dataset, "held_out", rung, lr).mean()) for lr in LRS}
    return math.nan if np.isnan(list(means.values())).any() else max(means, key=means.__getitem__)


def end(dataset: xr.Dataset, effect: str, rung: str) -> np.ndarray:
    """A rung's test accuracy that an effect is about, one a seed."""
    lr = best_lr(dataset, rung) if effect == "best" else float(effect)
    return np.full(dataset.sizes["seed"], np.nan) if math.isnan(lr) else accuracy(dataset, "test", rung, lr)


def share(dataset: xr.Dataset, effect: str, rung: str) -> tuple[np.ndarray, np.ndarray]:
    """A rung's part of an effect and batch norm's whole, both against no norm: (seed,) each."""
    ends = [end(dataset, effect, one) for one in TRAINED]
    value = xr.DataArray(np.array(ends), dims=("norm", "seed"), coords={"norm": list(TRAINED)})
    return share_of_effect(value, rung, whole="batch")


def _claim(effect: str, rung: str) -> Claim:
    rates = LRS if effect == "best" else (float(effect),)
    return half_of_effect(
        rung,
        EFFECTS[effect],
        PREDICTIONS[effect][rung],
        PREDICTED,
        value=partial(share, effect=effect, rung=rung),
        no_value="not finished",
        awaits=True,
        detail=partial(said_of, [name_of(one, lr) for one in ("none", "batch", rung) for lr in rates]),
    )


def we_saw(dataset: xr.Dataset) -> str:
    """How much is finished, and the accuracies of every rung."""
    there = finished(dataset)
    said = []
    for rung in TRAINED:
        at = [
            f"{np.nanmean(values):.1f} at {lr:g}"
            for lr in sorted(LRS)
            if np.isfinite(values := accuracy(dataset, "test", rung, lr)).any()
        ]
        said += [f"{RUNGS[rung]} {', '.join(at)}"] if at else []
    return (
        f"{int(there.sum())} of {there.size} runs finished. Test accuracy at the end, in per cent: "
        f"{'; '.join(said) or 'none yet'}."
    )


def draw(dataset: xr.Dataset) -> Figure:
    """Test accuracies over the rate, a mean and one point a seed, beside the shares of batch norm's effects."""
    figure, axes = figure_of(1, 2, panel=(5.2, 3.8))
    for place, rung in enumerate(TRAINED):
        points = np.array([accuracy(dataset, "test", rung, lr) for lr in sorted(LRS)])
        lrs = np.array(sorted(LRS)) * 1.04 ** (place - len(TRAINED) / 2)
        axes[0, 0].plot(lrs, points, ".", color=f"C{place}")
        axes[0, 0].plot(lrs, points.mean(1), color=f"C{place}", label=RUNGS[rung])
    axes[0, 0].set(xscale="log", xlabel="learning rate", ylabel="test accuracy at the end [%]")
    axes[0, 0].legend(fontsize="x-small")
    cells = {(rung, effect): share(dataset, effect, rung) for rung in TRAINED for effect in EFFECTS}
    heads = {"0.1": "accuracy\nat 0.1", "0.3": "accuracy\nat 0.3", "best": "accuracy at\nthe best rate"}
    draw_cells(axes[0, 1], cells, TRAINED, heads, PREDICTIONS, reference=("none", "batch"))
    return figure


EXHIBIT = Exhibit(
    name="apart_trained",
    title="Which part of batch norm buys the accuracy, trained to the end?",
    where="not in the paper",
    place=8.15,
    paper_saw=(
        "The paper says that batch norm's accuracy comes from its large rate. Here each part alone, and SkipInit in "
        "its place, is trained to the end at the same three rates, and its accuracy is told as a share of batch "
        "norm's gain over no norm."
    ),
    measure=partial(figure1_reduced.measure, arms=ARMS),
    draw=draw,
    claims=[_claim(effect, rung) for effect, predicted in PREDICTIONS.items() for rung in predicted],
    we_saw=we_saw,
    trains=True,
    scales=(SCALE,),
    complete=lambda dataset: bool(finished(dataset).all()),
    by_name=True,
)
