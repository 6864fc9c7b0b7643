"""Rates from initialization alone: an interval for the stable rate and the one to train at, from ten passes.

The rates of small networks, and what one step tells of them (`one_step`), were measured once and are a table in the
package. A ridge regression on it predicts a rate; how far it was off on networks that it was not fitted on, one left
out at a time, gives the interval (conformal, each architecture counts the same) and the probability that a rate
diverges. Updates that grow with the gradient have a regression of their own.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import xarray as xr

from normscope.descent.optimizers import OptimizerFactory, make_optimizer
from normscope.errors import InvalidConfig
from normscope.model.build import ModelOrBuild
from normscope.model.contract import instrument
from normscope.model.loss import LossFn
from normscope.model.mini_batches import Batches
from normscope.rates.one_step import FEATURES, OneStep, one_step
from normscope.rates.stable_lr import name_of, recipe_of
from normscope.rates.starting_point import Starts
from normscope.results import labelled, provenance, with_attributes

TABLE = "measured_rates.json"
"""The rows that are fitted: written by `python -m benchmarks.predicted_rates fit`."""

COVERAGE = 0.9
"""Of the interval, over architectures."""

RIDGE = 1.0
"""Weight of the penalty, on standardized features, in rows: few rows must not be fitted too closely."""

OUTSIDE = 0.5
"""How far outside of what was fitted, in widths of that range (one decade at least), a feature may lie."""

SMOOTHING = 0.05
"""Decades over which the probability of one residual is spread."""

MEASURED = ("SGD", "Adam", "AdamW")
"""Classes of the optimizers in the table."""

TARGETS = ("lr_stable", "lr_recommended")


@dataclass(frozen=True)
class Fit:
    """The regression of one target, with what it was off by on architectures left out."""

    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    """(feature + 1,): of the standardized features, and the constant."""
    low: np.ndarray
    high: np.ndarray
    """(feature,): the range that was fitted."""
    residuals: np.ndarray
    """(row,): log10 of the measured rate less the predicted one, its architecture left out."""
    shares: np.ndarray
    """(row,): each architecture's share, divided among its rows."""
    architectures: int

    def __call__(self, features: np.ndarray) -> float:
        """log10 of the rate."""
        return float(np.append((features - self.centre) / self.scale, 1.0) @ self.weights)

    def outside(self, features: np.ndarray) -> list[str]:
        """The features that lie too far from what was fitted."""
        margin = OUTSIDE * np.maximum(self.high - self.low, 1.0)
        far = (features < self.low - margin) | (features > self.high + margin)
        return [name for name, one in zip(FEATURES, far, strict=True) if one]

    def interval(self, features: np.ndarray) -> tuple[float, float]:
        """log10 of its ends."""
        order = np.argsort(np.abs(self.residuals))
        reached = np.cumsum(self.shares[order]) * self.architectures / (self.architectures + 1)
        enough = np.flatnonzero(reached >= COVERAGE)
        half = float(np.abs(self.residuals)[order][enough[0]]) if len(enough) else math.inf
        return self(features) - half, self(features) + half

    def probability_below(self, features: np.ndarray, x: float) -> float:
        """That the rate lies below 10^x: never 0 or 1, for one architecture more could be off further."""
        z = np.clip((x - self(features) - self.residuals) / SMOOTHING, -50, 50)
        share = float(self.shares @ (1 / (1 + np.exp(-z))))
        return (share * self.architectures + 0.5) / (self.architectures + 1)


def fit(features: np.ndarray, rates: np.ndarray, architectures: np.ndarray) -> Fit:
    """Of (row, feature) features to (row,) log10 rates."""
    names, counts = np.unique(architectures, return_counts=True)
    count = dict(zip(names.tolist(), counts.tolist(), strict=True))
    residuals = np.empty(len(rates))
    for name in names:
        out = architectures == name
        left = _ridge(features[~out], rates[~out])
        residuals[out] = rates[out] - [_apply(left, x) for x in features[out]]
    centre, scale, weights = _ridge(features, rates)
    shares = np.asarray([1 / count[str(name)] / len(names) for name in architectures])
    return Fit(centre, scale, weights, features.min(0), features.max(0), residuals, shares, len(names))


def _ridge(features: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    centre, scale = features.mean(0), np.maximum(features.std(0), 1e-3)
    x = np.column_stack([(features - centre) / scale, np.ones(len(features))])
    penalty = RIDGE * np.diag([1.0] * features.shape[1] + [0.0])
    return centre, scale, np.linalg.solve(x.T @ x + penalty, x.T @ rates)


def _apply(made: tuple[np.ndarray, np.ndarray, np.ndarray], features: np.ndarray) -> float:
    centre, scale, weights = made
    return float(np.append((features - centre) / scale, 1.0) @ weights)


def fits(rows: list[Mapping[str, Any]]) -> dict[tuple[str, bool], Fit]:
    """By target, and whether updates grow with the gradient."""
    found = {}
    for target in TARGETS:
        for grows in (True, False):
            told = [
                r for r in rows if r["grows_with_gradient"] == grows and r[target] and np.isfinite(r["features"]).all()
            ]
            found[target, grows] = fit(
                np.asarray([r["features"] for r in told]),
                np.log10([r[target] for r in told]),
                np.asarray([r["architecture"] for r in told]),
            )
    return found


@cache
def packaged_fits() -> dict[tuple[str, bool], Fit]:
    """Of the table in the package."""
    table = json.loads((files("normscope.rates") / TABLE).read_text(encoding="utf-8"))
    return fits(table["rows"])


def _unknown_because(seen: OneStep, optimizer: str) -> str:
    """Why nothing can be predicted; empty where it can."""
    if optimizer not in MEASURED:
        return f"{optimizer} was not measured, only {', '.join(MEASURED)}"
    if not math.isfinite(seen.edge):
        return "along the first update the loss does not fall and then rise"
    outside = packaged_fits()["lr_stable", seen.growth.with_gradient].outside(seen.features)
    return f"nothing like it was measured ({', '.join(outside)})" if outside else ""


@instrument
def predict_lr(
    model_or_build: ModelOrBuild,
    batches: Batches,
    *,
    optimizer: str | OptimizerFactory | torch.optim.Optimizer,
    lr: float | None = None,
    loss_fn: LossFn | None = None,
) -> xr.Dataset:
    """The stable rate and the one to train at, predicted from ten passes on one mini-batch, before any training.

    What is predicted is what `stable_lr` would find in 100 steps without warmup, schedule or clipping. The model comes
    back bit for bit as it was.

    Args:
        model_or_build, batches, optimizer, loss_fn: as for `stable_lr`; the first mini-batch is used.
        lr: a rate whose probability to diverge is asked for.

    Returns:
        Dataset of scalars: `lr_stable`, `lr_recommended`, and of each `..._low` and `..._high`, an interval that holds
        it for 9 of 10 of the architectures fitted, each left out, and for about 2 of 3 of other kinds; `edge` and
        `top`, the rates at which one step no longer lowers the loss, and at which it diverges; `diverges`, the
        probability that a seed diverges at `lr` within 100 steps (NaN without one); `known`, whether anything can be
        told, and else `reason`: then what is predicted is NaN. `passes`, forward and backward: at most 10.

    Raises:
        InvalidConfig, InvalidModel, InvalidBatch, DataError, DeviceError: one line each.
    """
    if lr is not None and not 0 < lr < math.inf:
        raise InvalidConfig(f"lr is {lr:g}: give a positive rate")
    recipe = recipe_of(optimizer=optimizer, steps=2, loss_fn=loss_fn)
    starts = Starts(model_or_build, batches, 1, loss_fn=loss_fn, fine_tuning=False)
    model = starts.model(0)
    seen = one_step(model, starts.first_batches(0, 1)[0], recipe)
    parameter = next(p for p in model.parameters() if p.requires_grad)
    kind = type(make_optimizer(recipe.optimizer, model, lr or 1e-3)).__name__
    described = provenance(device=parameter.device, dtype=parameter.dtype, optimizer=name_of(optimizer))
    return with_attributes(
        foretold(seen, kind, lr), **described, parameters=sum(p.numel() for p in model.parameters()), lr=lr
    )


def foretold(seen: OneStep, optimizer: str, lr: float | None = None) -> xr.Dataset:
    """The Dataset of `predict_lr`, for an optimizer of this class."""
    reason = _unknown_because(seen, optimizer)
    values: dict[str, Any] = {}
    for target, name in zip(TARGETS, ("largest rate below the first divergence", "rate to train at"), strict=True):
        low = middle = high = math.nan
        if not reason:
            made = packaged_fits()[target, seen.growth.with_gradient]
            low, high = (10.0**x for x in made.interval(seen.features))
            middle = 10.0 ** made(seen.features)
        values[target] = ((), middle, f"{name}, predicted", "1")
        values[f"{target}_low"] = ((), low, f"{name}, lower end of the interval", "1")
        values[f"{target}_high"] = ((), high, f"{name}, upper end of the interval", "1")
    diverges = math.nan
    if lr is not None and not reason:
        diverges = packaged_fits()["lr_stable", seen.growth.with_gradient].probability_below(
            seen.features, math.log10(lr)
        )
    return labelled(
        {
            **values,
            "edge": ((), 10.0**seen.edge, "rate at which one step no longer lowers the loss", "1"),
            "top": ((), 10.0**seen.top, "rate at which one step diverges", "1"),
            "diverges": ((), diverges, "probability that a seed diverges", "1"),
            "known": ((), not reason, "whether it can be told", "1"),
            "reason": ((), reason, "why it cannot be told", "1"),
            "passes": ((), seen.passes, "forward and backward passes", "1"),
        },
        {},
    )
