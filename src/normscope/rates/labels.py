"""All tries and both boundaries as one labelled Dataset."""

import math

import numpy as np
import xarray as xr

from normscope.rates.bracket import monotone
from normscope.rates.first_step import FirstStep
from normscope.rates.longer import LongerTraining
from normscope.rates.recommended import Recommended
from normscope.rates.search import Boundary, Found, Search, stays_finite, usable_monotone
from normscope.rates.starting_point import Starts
from normscope.results import Variable, labelled

NOT_TRIED = "not tried"
"""The `outcome` of a rate and seed that the search passed over."""

LEFT = "left early"
"""The `outcome` of one that others had beaten before its end, or that time ended."""


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
    pair = ("lr", "seed")
    return labelled(
        {
            "outcome": (pair, outcomes.astype(str), "outcome", "1"),
            "steps_taken": (pair, steps_taken, "mini-batches until the end or the divergence", "1"),
            "order": (pair, order, "place among the tries", "1"),
            "steps_skipped": (pair, skipped, "steps whose gradient overflowed in float16", "1"),
            "horizon_loss": (pair, horizon, "loss at the horizon", "nat"),
            "loss": ((*pair, "step"), loss, "loss of the mini-batch before the step", "nat"),
            "best_at_horizon": (
                "lr",
                np.asarray([cell in best for cell in cells], dtype=bool),
                "not told apart from the lowest loss",
                "1",
            ),
            "lr_recommended": ((), recommended.lr, "rate to train at", "1"),
            "lr_recommended_low": ((), recommended.low, "lowest rate tied with the one to train at", "1"),
            "lr_recommended_high": ((), recommended.high, "highest rate tied with the one to train at", "1"),
            "lr_recommended_loss": ((), recommended.loss, "loss at the horizon at the rate to train at", "nat"),
            "lr_recommended_found": ((), recommended.found.value, "what is sure of the rate to train at", "1"),
            **boundary_variables("lr_stable", "largest rate below the first divergence", stable, search),
            **boundary_variables("lr_usable", "largest rate at which every seed learns", usable, search),
            "lr_stable_monotone": (
                (),
                monotone(search.passed(stays_finite)),
                "no seed is stable above a diverging rate",
                "1",
            ),
            "lr_usable_monotone": (
                (),
                usable_monotone(search),
                "no seed learns above a rate at which it does not",
                "1",
            ),
            "relative_loss": ("first_lr", curve.relative_loss, "relative loss after one step", "1"),
            "constant_loss": (
                "seed",
                [starts.constant_loss(seed) for seed in seeds],
                "loss of the best constant output",
                "nat",
            ),
            "train_steps": ((), search.train_steps, "training steps of all tries", "1"),
            "probe_passes": ((), starts.forward_passes + len(curve.lrs) + 1, "forward passes beside the tries", "1"),
        },
        {
            "lr": ([search.lr(cell) for cell in cells], "learning rate", "1"),
            "seed": (seeds, "seed", "1"),
            "step": (np.arange(search.steps), "step", "1"),
            "end": (["low", "high"], "end of the bracket", "1"),
            "first_lr": (curve.lrs, "learning rate of one step", "1"),
        },
    )


def with_longer(longer: LongerTraining) -> xr.Dataset:
    """The rate for a longer training, and what was measured on the way."""
    return labelled(
        {
            "lr_for_training": ((), longer.lr, "rate for the whole training", "1"),
            "lr_for_training_low": ((), longer.low, "low end of its 90 % interval", "1"),
            "lr_for_training_high": ((), longer.high, "high end of its 90 % interval", "1"),
            "lr_at_length": ("length", [one.lr for one in longer.lengths], "rate of the lowest loss", "1"),
            "loss_at_length": ("length", [one.loss for one in longer.lengths], "loss at that rate", "nat"),
        },
        {"length": ([one.steps for one in longer.lengths], "length of the training", "1")},
    )


def boundary_variables(name: str, long_name: str, boundary: Boundary, search: Search) -> dict[str, Variable]:
    """The boundary's value, its bracket, and how it was found."""
    low, high = boundary.edge
    ends = (0.0 if low is None else search.lr(low)), (math.inf if high is None else search.lr(high))
    value = math.nan if low is None else ends[0]
    if boundary.found is Found.ABOVE_RANGE:
        value = math.inf
    if boundary.found is Found.NOWHERE:
        ends = math.nan, math.nan
    return {
        name: ((), value, long_name, "1"),
        f"{name}_bracket": ("end", ends, f"bracket of the {long_name}", "1"),
        f"{name}_found": ((), boundary.found.value, f"how the search for the {long_name} ended", "1"),
    }
