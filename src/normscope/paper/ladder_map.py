"""The map of batch norm's ladder: rungs downwards, effects to the right, in each cell the share of batch norm's own."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normscope.figures.style import figure_of
from normscope.paper.ladder import EFFECTS, HALF, PREDICTIONS, RUNGS, at_start_of_sentence, share_of
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
    found = np.array([[interval(*share_of(dataset, effect, norm)) for effect in effects] for norm in norms])
    variables = {name: (("norm", "effect"), found[..., place]) for place, name in enumerate(("share", "low", "high"))}
    return xr.Dataset(variables, {"norm": norms, "effect": list(effects)})


def interval(part: np.ndarray, whole: np.ndarray) -> tuple[float, float, float]:
    """The share and its interval; all NaN where a seed has no value, and a share of NaN where the whole is negative."""
    if not np.isfinite([part, whole]).all():
        return math.nan, math.nan, math.nan
    if len(part) > 1:
        return ratio_interval(part, whole)
    return (float(part[0] / whole[0]), -math.inf, math.inf) if whole[0] > 0 else (math.nan, -math.inf, math.inf)


def draw_map(dataset: xr.Dataset, effects: tuple[str, ...]) -> Figure:
    """One cell a rung and effect, see `draw_cells`: shares of batch norm's effects."""
    norms = dataset["norm"].values.tolist()
    figure, axes = figure_of(1, 1, panel=(2.6 + 0.95 * len(effects), 1.2 + 0.36 * len(norms)))
    cells = {(norm, effect): share_of(dataset, effect, norm) for norm in norms for effect in effects}
    heads = {effect: HEADS[effect] for effect in effects}
    draw_cells(axes[0, 0], cells, norms, heads, PREDICTIONS, reference=("none", "batch"))
    words = "share of batch norm's effect; ▲ ▼: predicted above, below one half; bold: sure"
    axes[0, 0].set_title(words, fontsize="small", pad=34)
    return figure


def draw_cells(
    ax: Axes,
    cells: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]],
    norms: Sequence[str],
    heads: Mapping[str, str],
    predictions: Mapping[str, Mapping[str, bool]],
    *,
    reference: tuple[str, str],
) -> None:
    """One cell a norm and effect, of its part and the whole: the share in it, its colour that of the share from 0 to 1.

    Bold: the whole interval over seeds lies on one side of a half. ▲ and ▼: predicted to be above and below it. Grey,
    without a colour: the whole is not told apart from no effect. Empty: it is none, or a seed has no value.
    """
    table = np.array([[interval(*cells[norm, effect]) for effect in heads] for norm in norms])
    bounded = np.isfinite(table[..., 1])
    ax.imshow(np.where(bounded, np.clip(table[..., 0], 0, 1), np.nan), cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for row, norm in enumerate(norms):
        for column, effect in enumerate(heads):
            share, low, high = table[row, column]
            if not math.isfinite(share):
                continue
            predicted = predictions[effect].get(norm)
            sure = (low > HALF or high < HALF) and norm not in reference
            ax.text(
                column,
                row,
                f"{share:.2f}{'' if predicted is None else ' ▲' if predicted else ' ▼'}",
                ha="center",
                va="center",
                fontsize="small",
                fontweight="bold" if sure else "normal",
                color="0.6" if not math.isfinite(low) else "white" if share > 0.75 else "black",
            )
    ax.set_xticks(range(len(heads)), list(heads.values()), fontsize="small")
    ax.set_yticks(range(len(norms)), [RUNGS.get(norm, norm) for norm in norms])
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.grid(visible=False)


def in_words(dataset: xr.Dataset, effects: tuple[str, ...]) -> str:
    """The shares of centring and of scaling alone, in a sentence."""
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
        sentences.append(f"{at_start_of_sentence(rung)} buys {', '.join(named) or 'nothing that is known'}.")
    return " ".join(sentences)
