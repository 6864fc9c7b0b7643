"""The map of batch norm's ladder: rungs downwards, effects to the right, in each cell the share of batch norm's own."""

import math

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.style import figure_of
from normscope.paper.ladder import EFFECTS, HALF, PREDICTIONS, RUNGS, share_of
from normscope.statistics.intervals import ratio_interval

HEADS = {
    "step0": "first step",
    "step1": "step after\n1 update",
    "step10": "step after\n10 updates",
    "slope": "no growth\nof activations",
    "common": "gradients\ndiffer",
    "confidence": "no early\nconfidence",
    "cancellation": "kernels'\ngradients cancel",
    "backward": "growth of\ngradients",
    "recommended": "rate to\ntrain at",
    "usable": "usable\nrate",
    "stable": "stable\nrate",
    "edge": "edge\n2(1+μ)/λ₁",
}
"""What stands above a column."""


def shares(dataset: xr.Dataset, effects: tuple[str, ...]) -> xr.Dataset:
    """`share` over (norm, effect), a ratio of means over seeds, and its interval `low`, `high` (Fieller's, 95 %). NaN
    where a seed has no value, and where batch norm does not raise the effect itself."""
    norms = dataset["norm"].values.tolist()
    found = np.full((3, len(norms), len(effects)), math.nan)
    for row, norm in enumerate(norms):
        for column, effect in enumerate(effects):
            part, whole = share_of(dataset, effect, norm)
            if np.isfinite([part, whole]).all():
                found[:, row, column] = _interval(part, whole)
    coords = {"norm": norms, "effect": list(effects)}
    return xr.Dataset(
        {name: (("norm", "effect"), values) for name, values in zip(("share", "low", "high"), found, strict=True)},
        coords,
    )


def _interval(part: np.ndarray, whole: np.ndarray) -> tuple[float, float, float]:
    if len(part) > 1:
        return ratio_interval(part, whole)
    return (float(part[0] / whole[0]), -math.inf, math.inf) if whole[0] > 0 else (math.nan, -math.inf, math.inf)


def draw_map(dataset: xr.Dataset, effects: tuple[str, ...]) -> Figure:
    """One cell a rung and effect: the share in it, its colour that of the share between 0 and 1. Bold: the whole
    interval over seeds lies on one side of a half. ▲ and ▼: predicted to be above and below it. Empty: batch norm
    itself has no such effect here, or a seed has no value."""
    table = shares(dataset, effects)
    norms = table["norm"].values.tolist()
    figure, axes = figure_of(1, 1, panel=(2.6 + 0.95 * len(effects), 1.2 + 0.36 * len(norms)))
    ax = axes[0, 0]
    values = table["share"].values
    ax.imshow(np.clip(values, 0, 1), cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for row, norm in enumerate(norms):
        for column, effect in enumerate(effects):
            cell = table.isel(norm=row, effect=column)
            if not math.isfinite(float(cell["share"])):
                continue
            sure = float(cell["low"]) > HALF or float(cell["high"]) < HALF
            predicted = PREDICTIONS[effect].get(norm)
            mark = "" if predicted is None else " ▲" if predicted else " ▼"
            ax.text(
                column,
                row,
                f"{float(cell['share']):.2f}{mark}",
                ha="center",
                va="center",
                fontsize="small",
                fontweight="bold" if sure and norm not in ("none", "batch") else "normal",
                color="white" if float(cell["share"]) > 0.75 else "black",
            )
    ax.set_xticks(range(len(effects)), [HEADS[effect] for effect in effects], fontsize="small")
    ax.set_yticks(range(len(norms)), [RUNGS.get(norm, norm) for norm in norms])
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.grid(visible=False)
    ax.set_title(
        "share of batch norm's effect; ▲ ▼ predicted above, below one half; bold: sure", fontsize="small", pad=34
    )
    return figure


def in_words(
    dataset: xr.Dataset, effects: tuple[str, ...], rungs: tuple[str, ...] = ("batch_mean", "batch_std")
) -> str:
    """The shares of some rungs, in a sentence."""
    table = shares(dataset, effects)
    sentences = []
    for rung in ("batch_mean", "batch_std"):
        if rung not in table["norm"]:
            continue
        named = [
            f"{float(table['share'].sel(norm=rung, effect=effect)):.2g} of {EFFECTS[effect].words}"
            for effect in effects
            if math.isfinite(float(table["share"].sel(norm=rung, effect=effect)))
        ]
        words = RUNGS[rung]
        sentences.append(f"{words[0].upper()}{words[1:]} buys {', '.join(named) or 'nothing that is known'}.")
    return " ".join(sentences)
