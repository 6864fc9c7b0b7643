"""Batch norm in front of the last layer alone: how much of what batch norm brings does it bring?"""

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.style import figure_of, legend_once
from normscope.paper.exhibit import Exhibit, Setting
from normscope.paper.exhibits.figure1 import at_the_end, best_lr, draw_ends, learns, learnt_by_all, trained
from normscope.paper.published import PUBLISHED
from normscope.paper.scale import scale_of
from normscope.results import attribute
from normscope.statistics.claim import Bounded, Claim, RatioClaim

NORMS = ("batch", "none", "final")


def measure(setting: Setting) -> xr.Dataset:
    """The three networks at every rate of the scale; those of figure 1 are trained once for both."""
    return trained(setting, NORMS)


def best(dataset: xr.Dataset) -> xr.DataArray:
    """Test accuracy at the end of every norm at its own best rate, in per cent, over `norm` and `seed`."""
    end = at_the_end(dataset)
    return xr.concat([end.sel(norm=norm, lr=best_lr(dataset, norm)).drop_vars("lr") for norm in NORMS], "norm")


def _largest_lr(dataset: xr.Dataset, norm: str) -> xr.DataArray:
    """The largest rate at which a seed learns, seed by seed; NaN where there is none."""
    return dataset["lr"].where(learns(dataset, norm)).max("lr")


def _rate_gained(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """How many times larger the largest rate is with the one batch norm than without, seed by seed, and whether that is
    a lower bound only: where the largest rate tried is learnt with it, or not even the smallest without it.

    Minus infinity where it is lower, by a factor that is not known: learnt at no rate, where without it one is, or not
    at the largest, where without it that is."""
    over, under = _largest_lr(dataset, "final"), _largest_lr(dataset, "none")
    lowest, highest = dataset["lr"].min(), dataset["lr"].max()
    ratio = over / under.fillna(lowest)
    lower = (over.isnull() & under.notnull()) | ((under == highest) & (over < highest))
    ratio = ratio.where(~lower, -np.inf).where((over < highest) | (under != highest))
    return ratio, (ratio > 0) & ((over == highest) | under.isnull())


def share_recovered(statement: str, accuracy: Callable[[xr.Dataset], xr.DataArray], rates: str) -> Claim:
    """The claim on the share of batch norm's gain that batch norm before the last layer recovers; `accuracy` gives that
    of every norm, `rates` says for the note at which rate."""

    def gains(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
        gain = accuracy(dataset) - accuracy(dataset).sel(norm="none")
        return gain.sel(norm="final"), gain.sel(norm="batch")

    published = PUBLISHED["variants"]["test_accuracy_percent"]
    share = (published["final"] - published["none"]) / (published["batch"] - published["none"])
    return Claim(
        statement=statement,
        of="share",
        value=gains,
        above=0.5,
        paper=f"about {share:.2g}",
        note=f"share of the gain in test accuracy, {rates}; paired by seed",
    )


CLAIMS = [
    share_recovered(
        "Batch norm before the last layer alone recovers at least half of the accuracy that batch norm brings",
        best,
        "each network at its best rate, chosen on held-out training images",
    ),
    RatioClaim(
        statement="With it the network learns at rates at least 3 times larger than without",
        value=lambda dataset: Bounded(*_rate_gained(dataset)),
        above=2.9,
        paper=f"trains at {PUBLISHED['variants']['final_lr']:g}",
        note="the rates tried lie about a factor 3 apart",
        no_value="without a ratio: neither learns at any of the rates, or both at all",
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """Means over seeds, in words."""
    accuracy = best(dataset).mean("seed")
    at = {norm: f"{float(accuracy.sel(norm=norm)):.1f} % at {best_lr(dataset, norm):g}" for norm in NORMS}
    reached = {norm: learnt_by_all(dataset, norm) for norm in NORMS}
    return (
        f"At their best rates: {at['none']} without, {at['final']} with batch norm before the last layer alone, "
        f"{at['batch']} with batch norm everywhere. Every seed learns {reached['none']} without, "
        f"{reached['final']} with it before the last layer and {reached['batch']} with it everywhere. "
        f"{scale_of(attribute(dataset, 'scale')).reduced}"
    )


def draw(dataset: xr.Dataset) -> Figure:
    """Test accuracy at the end against the learning rate, one point a seed."""
    figure, axes = figure_of(1, 1, panel=(5.2, 3.4))
    draw_ends(axes[0, 0], dataset)
    legend_once(axes[0, 0])
    return figure


EXHIBIT = Exhibit(
    name="final",
    title="Batch norm before the last layer alone",
    where="Variants",
    place=1.5,
    paper_saw=(
        "A single batch norm in front of the last layer already recovers about two thirds of what batch norm in every "
        "layer brings: from about 83 to 90 of 93 per cent. With it the network trains at a rate of 0.03."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    trains=True,
)
