"""The best rate: the one of the lowest loss at the horizon, and those that are tied with it."""

import numpy as np
import xarray as xr


def best(rates: xr.Dataset) -> tuple[float, float, float]:
    """The lowest and the highest rate that cannot be told apart from the lowest loss at the horizon, and that loss, the
    mean over seeds; where no rate learns, the loss is the lowest of those that did not diverge."""
    if not rates.sizes["lr"]:
        return float("nan"), float("nan"), float("nan")
    losses = rates["horizon_loss"]
    tried = rates["order"] >= 0
    chosen = rates["best_at_horizon"].values
    finite = (losses.notnull() | ~tried).all("seed")
    if chosen.any():
        complete = tried.sum("seed") == tried.where(rates["best_at_horizon"]).sum("seed").max()
        finite = finite & complete & rates["best_at_horizon"]
    pool = losses.mean("seed").where(finite)
    loss = float(pool.min()) if bool(pool.notnull().any()) else float("nan")
    if not chosen.any():
        return float("nan"), float("nan"), loss
    lrs = rates["lr"].values[chosen]
    return float(lrs.min()), float(lrs.max()), loss


def best_lr(rates: xr.Dataset) -> float | None:
    """The rate of the lowest loss at the horizon; None where none learns."""
    if not rates["best_at_horizon"].values.any():
        return None
    losses = rates["horizon_loss"].mean("seed").where(rates["best_at_horizon"])
    return float(rates["lr"].values[int(np.nanargmin(losses.values))])
