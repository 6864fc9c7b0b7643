"""Batch norm taken apart: the rungs from no norm to batch norm, what is measured of each, and what was predicted.

Every effect is told as a share of batch norm's own: with E(rung) the effect's value, on its own scale,

    share = (E(rung) − E(none)) / (E(batch) − E(none)),

paired by seed. A rung *buys* an effect if its share is above one half, and does not if it is below. One threshold for
all, so that none could be chosen to fit. What a rung has at the start by construction is not predicted: a part with
batch norm's forward pass has its activations and outputs on the first batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from normscope.statistics.claim import Claim, Scope
from normscope.statistics.verdict import CONTROL

RUNGS = {
    "none": "no norm",
    "batch": "batch norm",
    "batch_mean": "centring alone",
    "batch_std": "scaling alone",
    "batch_detached": "statistics as constants backwards",
    "batch_running": "running averages",
    "batch_first": "the first batch's statistics for ever",
    "batch_ghost": "ghost batches of 16",
    "group": "group norm",
    "layer": "layer norm",
    "rms": "RMS norm",
    "instance": "instance norm",
    "tanh": "dynamic tanh",
    "weight_mean": "weight norm, mean-only batch norm",
    "weight_std": "scaled weight standardization",
    "depth_scaled": "branches scaled by 1/√depth",
    "zero_residual": "zeros at the end of branches",
    "skipinit": "SkipInit",
    "fixup": "Fixup",
}
"""By name, in the order in which they are measured and shown."""


def at_start_of_sentence(rung: str) -> str:
    """Its words with a capital letter."""
    return RUNGS[rung][0].upper() + RUNGS[rung][1:]


HALF = 0.5
"""Of batch norm's effect: the one threshold of all shares."""


@dataclass(frozen=True)
class Effect:
    """Something that batch norm changes."""

    words: str
    """As in "buys more than half of batch norm's effect on ..."."""
    value: Callable[[xr.Dataset], xr.DataArray]
    """Of a result, (norm, seed), on the scale on which shares are taken, with the sign that batch norm is to raise it:
    where it does not, there is nothing to share."""


def log_of(name: str, **at: Any) -> Callable[[xr.Dataset], xr.DataArray]:
    """The logarithm of a variable, at a place along its other dims; NaN where it is not positive, and where the loss
    never passed, which is no step size."""

    def value(dataset: xr.Dataset) -> xr.DataArray:
        of = dataset[name].sel(at)
        return xr.apply_ufunc(np.log, of.where((of > 0) & np.isfinite(of)))

    return value


def _deepest_cancellation(dataset: xr.Dataset) -> xr.DataArray:
    """log (a/b)/√n of table 1, a mean over the last third of the convolutions on the main path."""
    log = log_of("normalized_ratio")(dataset)
    deep = log["depth"] > 2 / 3 * float(log["depth"].max())
    return log.isel(depth=np.flatnonzero(deep.values)).mean("depth", skipna=False)


def backward_growth(dataset: xr.Dataset) -> xr.DataArray:
    """log of the rms of the activations' gradient at the first convolution over that at the last."""
    log = log_of("activation_gradient_rms")(dataset)
    return log.isel(depth=0, drop=True) - log.isel(depth=-1, drop=True)


EFFECTS = {
    "step0": Effect("how far the first step can go", log_of("divergence_step_size", update=0)),
    "step1": Effect("how far the step after one update can go", log_of("divergence_step_size", update=1)),
    "step10": Effect("how far the step after ten updates can go", log_of("divergence_step_size", update=10)),
    "slope": Effect("the growth of activations with depth (figure 5)", lambda dataset: -dataset["std_slope"]),
    "common": Effect("the gradient's common part (figure 6)", lambda dataset: -dataset["common_part"]),
    "confidence": Effect("the confidence in one class (figure 6)", lambda dataset: -dataset["confidence"]),
    "cancellation": Effect("cancellation in deep kernels, (a/b)/√n (table 1)", _deepest_cancellation),
    "backward": Effect("the growth of gradients backwards", backward_growth),
    "recommended": Effect("the rate to train at", log_of("lr_recommended")),
    "usable": Effect("the largest usable rate", log_of("lr_usable")),
    "stable": Effect("the largest stable rate", log_of("lr_stable")),
    "edge": Effect("the edge of stability, 2(1+μ)/λ₁", log_of("edge_lr")),
}
"""By name."""

AT_THE_START = ("step0", "step1", "step10", "slope", "common", "confidence", "cancellation", "backward")

OF_RATES = ("recommended", "usable", "stable", "edge")

PREDICTED = "28 November 2026"
"""When the predictions were written, before any rung but batch norm and none had been measured on anything."""

PREDICTIONS: dict[str, dict[str, bool]] = {
    "step0": {
        **{"batch_mean": False, "batch_std": True},
        **{"batch_detached": True, "batch_running": True, "batch_first": False},
        **{"group": True, "layer": True, "rms": True, "instance": True, "tanh": True},
        **{"weight_mean": True, "weight_std": True, "depth_scaled": True, "skipinit": True, "fixup": True},
    },
    "step1": {"batch_mean": False, "batch_std": True},
    "step10": {"batch_mean": False, "batch_std": True},
    "slope": {"batch_mean": False, "batch_std": True, "weight_mean": True, "weight_std": False},
    "common": {
        **{"batch_mean": True, "batch_std": False},
        **{"group": False, "layer": False, "rms": False, "weight_mean": True, "weight_std": True},
    },
    "confidence": {"batch_mean": False, "batch_std": True, "layer": True},
    "cancellation": {"batch_mean": True, "batch_std": False, "batch_detached": False, "layer": False},
    "backward": {"batch_mean": False, "batch_std": True, "batch_detached": True},
    "recommended": {"batch_mean": False, "batch_std": True},
    "usable": {
        **{"batch_mean": False, "batch_std": True},
        **{"batch_detached": True, "batch_running": True, "batch_first": False},
        **{"group": True, "layer": True, "rms": True, "instance": True, "tanh": True},
        **{"weight_mean": True, "weight_std": True, "depth_scaled": False, "skipinit": False, "fixup": False},
        "zero_residual": False,  # added on the same day, before any rate on this ladder was measured
    },
    "stable": {"batch_mean": False, "batch_std": True},
    "edge": {"batch_mean": False, "batch_std": True},
}
"""By effect and rung: whether the rung buys more than half of what batch norm does."""


def share_of(dataset: xr.Dataset, effect: str, rung: str) -> tuple[np.ndarray, np.ndarray]:
    """A rung's part of an effect and batch norm's whole, both against no norm: (seed,) each."""
    return share_of_effect(EFFECTS[effect].value(dataset), rung, whole="batch")


def share_of_effect(value: xr.DataArray, rung: str, *, whole: str) -> tuple[np.ndarray, np.ndarray]:
    """A rung's part and the whole of one norm, both against no norm: (seed,) each, of a value over norm and seed."""
    value = value.transpose("norm", "seed")
    none = value.sel(norm="none").values
    return value.sel(norm=rung).values - none, value.sel(norm=whole).values - none


def has(*rungs: str) -> Scope:
    """Results that hold these rungs."""
    return Scope("", lambda dataset: set(rungs) <= set(dataset["norm"].values.tolist()))


def claims(effects: tuple[str, ...]) -> list[Claim]:
    """The predictions about these effects."""
    return [
        half_of_effect(
            rung,
            EFFECTS[effect].words,
            buys,
            PREDICTED,
            value=partial(share_of, effect=effect, rung=rung),
            scope=has("none", "batch", rung),
        )
        for effect in effects
        for rung, buys in PREDICTIONS[effect].items()
    ]


def half_of_effect(rung: str, effect: str, buys: bool, predicted: str, **more: Any) -> Claim:
    """The prediction, of this day, that a rung buys more than half of batch norm's effect, or less."""
    return Claim(
        statement=f"{at_start_of_sentence(rung)} ({rung}) buys {'more' if buys else 'less'} than half of batch norm's "
        f"effect on {effect}",
        where="not in the paper",
        kind=CONTROL,
        of="share",
        above=HALF if buys else None,
        below=None if buys else HALF,
        note=f"predicted on {predicted}, paired by seed",
        **more,
    )


def _ghost_over_batch(dataset: xr.Dataset) -> np.ndarray:
    """The usable rate with the noise of ghost batches of 16 over that without it."""
    usable = dataset["lr_usable"]
    return (usable.sel(norm="batch_ghost") / usable.sel(norm="batch")).values


def edge_rank(dataset: xr.Dataset) -> list[float]:
    """Spearman's correlation over rungs of 2(1+μ)/λ₁ with the largest stable rate, one a seed; NaN where one of the two
    is not known."""
    edge, stable = (dataset[name].transpose("seed", "norm").values for name in ("edge_lr", "lr_stable"))
    return [
        float(np.corrcoef(rankdata(a), rankdata(b))[0, 1]) if not np.isnan([*a, *b]).any() else float("nan")
        for a, b in zip(edge, stable, strict=True)
    ]


OF_NOISE_AND_EDGE = [
    Claim(
        statement="The noise of the batch neither buys the rate nor costs it: ghost batches of 16 have batch norm's "
        "largest usable rate within a factor 2",
        where="not in the paper",
        kind=CONTROL,
        value=_ghost_over_batch,
        equals=1.0,
        margin=2.0,
        scale="log",
        unit=" times",
        note=f"predicted on {PREDICTED}, paired by seed",
        scope=has("batch", "batch_ghost"),
    ),
    Claim(
        statement="The curvature at the start tells the stable rate: rank correlation over rungs of 2(1+μ)/λ₁ with it "
        "above 0.5",
        where="not in the paper",
        kind=CONTROL,
        value=edge_rank,
        above=0.5,
        note=f"predicted on {PREDICTED}, one correlation a seed",
    ),
]
"""Two predictions that are no shares."""
