"""The rate to train at as `check` tells it, from the Dataset of `stable_lr`."""

import math

import xarray as xr


def best(rates: xr.Dataset) -> tuple[float, float, float]:
    """The lowest and the highest rate that is tied with the one to train at, and its loss at the horizon, mean over
    seeds. Where there is none, NaN, and the lowest loss of the rates at which nothing diverged."""
    low, high = (float(rates[f"lr_recommended_{end}"]) for end in ("low", "high"))
    loss = float(rates["lr_recommended_loss"])
    if math.isnan(loss) and rates.sizes["lr"]:
        ended = rates["outcome"].isin(("learns", "stalled", "dead"))
        tried = rates["outcome"] != "not tried"
        means = rates["horizon_loss"].where(ended).mean("seed").where(ended.any("seed") & (ended | ~tried).all("seed"))
        loss = float(means.min()) if bool(means.notnull().any()) else math.nan
    return low, high, loss


def best_lr(rates: xr.Dataset) -> float | None:
    """The rate to train at; None where none is known."""
    lr = float(rates["lr_recommended"])
    return lr if lr > 0 else None
