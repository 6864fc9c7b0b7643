"""All tries and both boundaries as one labelled Dataset."""

import math
from typing import Any

import numpy as np
import xarray as xr

from normscope.rates.bracket import monotone
from normscope.rates.first_step import FirstStep
from normscope.rates.longer import LongerTraining
from normscope.rates.recommended import Recommended
from normscope.rates.search import Boundary, Found, Search, stays_finite, usable_monotone
from normscope.rates.starting_point import Starts
from normscope.results.schema import OF_LOSS, Variable, arranged, coord, variable

NOT_TRIED = "not tried"
"""The `outcome` of a rate and seed that the search passed over."""

LEFT = "left early"
"""The `outcome` of one that others had beaten before its end, or that time ended."""


def _boundary(name: str, long_name: str, monotone_name: str) -> list[Variable]:
    """A boundary's value, its bracket, and how it was found."""
    return [
        variable(name, "", long_name),
        variable(
            f"{name}_bracket", "end", f"bracket of the {long_name}", "the rates between which it lies: passed, failed"
        ),
        variable(
            f"{name}_found",
            "",
            f"how the search for the {long_name} ended",
            '"bracketed", "above the range" (inf), "below the range", "nowhere" (NaN) or "unfinished"',
        ),
        variable(f"{name}_monotone", "", monotone_name),
    ]


OF_LONGER = (
    Variable("length", ("length",), "length of the training", "steps", is_coord=True, optional=True),
    variable("lr_for_training", "", "rate for the whole training", optional=True),
    variable("lr_for_training_low", "", "low end of its 90 % interval", optional=True),
    variable("lr_for_training_high", "", "high end of its 90 % interval", optional=True),
    variable("lr_at_length", "length", "rate of the lowest loss", optional=True),
    variable("loss_at_length", "length", "loss at that rate", units=OF_LOSS, optional=True),
)
"""With `train_steps`."""

VARIABLES = (
    coord("lr", "learning rate", "the rates tried"),
    coord("seed", "seed"),
    coord("step", "step"),
    coord("end", "end of the bracket"),
    coord("first_lr", "learning rate of one step"),
    variable(
        "outcome",
        "lr seed",
        "outcome",
        'diverged, dead, stalled, learns, "left early" (beaten before its end), "not tried"',
    ),
    variable("steps_taken", "lr seed", "mini-batches until the end or the divergence"),
    variable("order", "lr seed", "place among the tries", "place among the tries, −1: not tried"),
    variable("steps_skipped", "lr seed", "steps whose gradient overflowed in float16"),
    variable("horizon_loss", "lr seed", "loss at the horizon", "mean of the last tenth, or NaN", units=OF_LOSS),
    variable(
        "loss",
        "lr seed step",
        "training loss",
        "of the mini-batch before the step; NaN from `steps_taken` on",
        units=OF_LOSS,
    ),
    variable("best_at_horizon", "lr", "not told apart from the lowest loss"),
    variable("lr_recommended", "", "rate to train at"),
    variable("lr_recommended_low", "", "lowest rate tied with the one to train at"),
    variable("lr_recommended_high", "", "highest rate tied with the one to train at"),
    variable("lr_recommended_loss", "", "loss at the horizon at the rate to train at", units=OF_LOSS),
    variable(
        "lr_recommended_found",
        "",
        "what is sure of the rate to train at",
        '"learns on every seed", "learns on some seeds", "lowers the loss", "unfinished" or "nowhere"',
    ),
    *_boundary("lr_stable", "largest rate below the first divergence", "no seed is stable above a diverging rate"),
    *_boundary(
        "lr_usable", "largest rate at which every seed learns", "no seed learns above a rate at which it does not"
    ),
    variable("relative_loss", "first_lr", "relative loss after one step", "after one step of the optimizer, seed 0"),
    variable("constant_loss", "seed", "loss of the best constant output", units=OF_LOSS),
    variable("train_steps", "", "training steps of all tries"),
    variable("probe_passes", "", "forward passes beside the tries"),
    *OF_LONGER,
)


def as_dataset(
    search: Search, stable: Boundary, usable: Boundary, curve: FirstStep, starts: Starts, recommended: Recommended
) -> xr.Dataset:
    """The Dataset that `stable_lr` describes, without its attributes."""
    cells = sorted({cell for cell, _ in (*search.tries, *search.short)})
    seeds = list(search.seeds)
    shape = len(cells), len(seeds)
    outcomes = np.full(shape, NOT_TRIED, dtype=object)
    steps_taken, order = np.zeros(shape, dtype=int), np.full(shape, -1)
    horizon, loss = np.full(shape, np.nan), np.full((*shape, search.steps), np.nan)
    skipped = np.zeros(shape, dtype=int)
    for place, ((cell, seed), t) in enumerate([*search.tries.items(), *search.short.items()]):
        at = cells.index(cell), seeds.index(seed)
        outcomes[at], steps_taken[at], order[at] = t.outcome.value if t.outcome else LEFT, len(t.losses), place
        horizon[at] = t.horizon_loss if t.outcome else math.nan
        loss[at][: len(t.losses)], skipped[at] = t.losses, t.skipped
    best = search.best()
    values = {
        "lr": [search.lr(cell) for cell in cells],
        "seed": seeds,
        "step": np.arange(search.steps),
        "end": ["low", "high"],
        "first_lr": curve.lrs,
        "outcome": outcomes.astype(str),
        "steps_taken": steps_taken,
        "order": order,
        "steps_skipped": skipped,
        "horizon_loss": horizon,
        "loss": loss,
        "best_at_horizon": np.asarray([cell in best for cell in cells], dtype=bool),
        "lr_recommended": recommended.lr,
        "lr_recommended_low": recommended.low,
        "lr_recommended_high": recommended.high,
        "lr_recommended_loss": recommended.loss,
        "lr_recommended_found": recommended.found.value,
        **_of_boundary("lr_stable", stable, search),
        **_of_boundary("lr_usable", usable, search),
        "lr_stable_monotone": monotone(search.passed(stays_finite)),
        "lr_usable_monotone": usable_monotone(search),
        "relative_loss": curve.relative_loss,
        "constant_loss": [starts.constant_loss(seed) for seed in seeds],
        "train_steps": search.train_steps,
        "probe_passes": starts.forward_passes + len(curve.lrs) + 1,
    }
    return arranged(VARIABLES, values, loss_units=starts.loss_units)


def with_longer(longer: LongerTraining, starts: Starts) -> xr.Dataset:
    """The rate for a longer training, and what was measured on the way."""
    values = {
        "length": [one.steps for one in longer.lengths],
        "lr_for_training": longer.lr,
        "lr_for_training_low": longer.low,
        "lr_for_training_high": longer.high,
        "lr_at_length": [one.lr for one in longer.lengths],
        "loss_at_length": [one.loss for one in longer.lengths],
    }
    return arranged(OF_LONGER, values, loss_units=starts.loss_units)


def _of_boundary(name: str, boundary: Boundary, search: Search) -> dict[str, Any]:
    low, high = boundary.edge
    ends = (0.0 if low is None else search.lr(low)), (math.inf if high is None else search.lr(high))
    value = math.nan if low is None else ends[0]
    if boundary.found is Found.ABOVE_RANGE:
        value = math.inf
    if boundary.found is Found.NOWHERE:
        ends = math.nan, math.nan
    return {name: value, f"{name}_bracket": ends, f"{name}_found": boundary.found.value}
