"""The judgement of somebody's own rate as labelled Datasets, with where a descent at it diverges."""

import math
import time

import numpy as np
import xarray as xr

from normscope.descent.recipe import Recipe
from normscope.rates.bracket import edge
from normscope.rates.divergence import diverging_layer
from normscope.rates.first_step import first_step
from normscope.rates.labels import as_dataset
from normscope.rates.own_rate import MOST_TRIALS_A_SEED, diverged_trial, judge_own
from normscope.rates.recommended import NOT_LOOKED_FOR
from normscope.rates.search import CELLS_A_DECADE, Boundary, Found, learns, stays_finite
from normscope.rates.stable_lr import described, search_of
from normscope.rates.starting_point import Starts
from normscope.results import labelled, with_attributes
from normscope.runtime.progress import progress

WIDTH = 4 * CELLS_A_DECADE
"""Rates are tried at most so far from the one to be judged."""


def own_rate_datasets(
    starts: Starts, recipe: Recipe, lr: float, *, seeds: int, optimizer: str, budget_seconds: float | None = None
) -> tuple[xr.Dataset, xr.Dataset]:
    """Judge a rate, see `own_rate`.

    Returns:
        - scalars: `lr`; `judgement`, one of `own_rate.Judgement`; `passes` and `fails`, the rates between which the
          edge lies; `loss` at the horizon; `better_lr` and `better_loss`, where it is too small; `diverged_step` (-1:
          it does not diverge) and `diverged_layer`; `outcome(seed)`.
        - the trials, as `stable_lr` labels them, with rates that are the judged one times 10^(k/10).
    """
    begun = time.monotonic()
    most = round(MOST_TRIALS_A_SEED * recipe.steps * max(seeds, 3))
    with progress("your rate", total=most) as bar:
        search = search_of(
            starts,
            recipe,
            bar,
            seeds=range(seeds),
            lowest=-WIDTH,
            highest=WIDTH,
            most_steps=most,
            deadline=math.inf if budget_seconds is None else begun + budget_seconds,
            origin=lr,
            keep_interrupted=True,
        )
        own = judge_own(search)
    first = diverged_trial(search)
    layer = "" if first is None else diverging_layer(starts, recipe, lr=lr, seed=first[0], step=first[1])
    outcomes = [*own.outcomes, *[""] * (seeds - len(own.outcomes))]
    dataset = labelled(
        {
            "lr": ((), lr, "learning rate that is judged", "1"),
            "judgement": ((), own.judgement.value, "what is said of it", "1"),
            "passes": ((), own.passes, "largest rate tried below the edge", "1"),
            "fails": ((), own.fails, "smallest rate tried above the edge", "1"),
            "loss": ((), own.loss, "loss at the horizon", starts.loss_units),
            "better_lr": ((), own.better_lr, "rate that gains more", "1"),
            "better_loss": ((), own.better_loss, "loss at the horizon at that rate", starts.loss_units),
            "diverged_step": ((), -1 if first is None else first[1], "step at which it diverges", "1"),
            "diverged_layer": ((), layer, "layer at which it diverges", "1"),
            "outcome": ("seed", outcomes, "outcome", "1"),
        },
        {"seed": (list(range(seeds)), "seed", "1")},
    )
    lrs = np.geomspace(lr / 100, lr * 100, 13).tolist()
    curve = first_step(starts.model(0), starts.first_batches(0, 1)[0], recipe, lrs, seed=0)
    boundaries = [Boundary(Found.UNFINISHED, edge(search.passed(passes))) for passes in (stays_finite, learns)]
    tried = with_attributes(
        as_dataset(search, boundaries[0], boundaries[1], curve, starts, NOT_LOOKED_FOR),
        **described(search, starts, recipe),
        optimizer=optimizer,
        max_train_steps=most,
        budget_seconds=budget_seconds,
    )
    return dataset, tried
