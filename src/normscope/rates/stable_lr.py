"""How large a learning rate does this network take? Short descents from the same start, at rates found by bisection.

A rate is *stable* if no seed diverges at it, and *usable* if every seed learns at it (see `outcome`). Both boundaries
are the first failure going up, bracketed by two neighbours of the lattice 10^(k/10).
"""

import math
import time
from typing import Any

import numpy as np
import xarray as xr

from normscope.descent.optimizers import OptimizerFactory, optimizer_factory
from normscope.descent.recipe import Recipe
from normscope.errors import InvalidConfig
from normscope.model.contract import instrument
from normscope.model.loss import LossFn
from normscope.rates.first_step import first_step
from normscope.rates.labels import as_dataset
from normscope.rates.search import CELLS_A_DECADE, Search, cell_of, find_both, lr_of
from normscope.rates.starting_point import Starts
from normscope.rates.trial import Trial
from normscope.results import provenance, with_attributes
from normscope.runtime.progress import progress

LOWEST_LR, HIGHEST_LR = 1e-7, 1e3
"""The range searched by default: beyond either end nobody trains."""

CURVE_POINTS_A_DECADE = 3
"""Of the one relative-loss curve that the search starts from."""

MOST_TRIES_A_SEED = 4.9
"""Full-length tries a seed that the search may cost by default; fewer than three seeds have the budget of three, since
most of it goes into finding the place, on one seed."""


@instrument
def stable_lr(
    model_or_build: Any,
    batches: Any,
    *,
    optimizer: str | OptimizerFactory,
    steps: int = 100,
    seeds: int = 3,
    loss_fn: LossFn | None = None,
    warmup: int = 0,
    clip_norm: float | None = None,
    fine_tuning: bool | None = None,
    lr_range: tuple[float, float] = (LOWEST_LR, HIGHEST_LR),
    max_train_steps: int | None = None,
    budget_seconds: float | None = None,
) -> xr.Dataset:
    """The largest rates at which a network stays stable, and at which it learns, each bracketed to a factor 10^0.1.

    Every try is a descent of `steps` mini-batches in training mode from the same start, stopped at once when it
    diverges. The same seed sees the same mini-batches and random numbers at every rate. Models come back bit for bit as
    they were.

    Args:
        model_or_build: `build(seed) -> nn.Module` for a fresh model a seed (`build()` is called with torch's
            generators at the seed), or a model: every try then starts from its weights, and seeds change only the order
            of batches.
        batches: a list, a DataLoader or an iterator, of which the first `steps` batches are kept and walked in an order
            of each seed's own (again and again where there are fewer); or a function `seed -> iterator`, called for
            every try. Tensors are moved to the model's device.
        optimizer: "sgd", "momentum" (SGD with 0.9), "adam", "adamw", or a function `(params, lr) -> optimizer`.
        steps: length of a try, in mini-batches: the horizon.
        seeds: how many, from 0.
        loss_fn: `loss_fn(model, batch)`; by default by the type of the batch, see `loss.default_loss`.
        warmup: steps over which the rate rises linearly.
        clip_norm: the gradient is clipped to this Euclidean norm.
        fine_tuning: whether to learn means only not to end above the start. By default yes for a model (not a build)
            whose loss already starts 3 % or more below that of the best constant output.
        lr_range: rates are searched between these two.
        max_train_steps: of all tries together, at most; 4.9 · steps · seeds by default (of three seeds at least).
            Where that is not enough, the boundary is "unfinished".
        budget_seconds: no try is begun after this long.

    Returns:
        Dataset over `lr` (the rates tried), `seed` and `step`:

        - `outcome(lr, seed)`: diverged, dead, stalled, learns, or "not tried"; `steps_taken(lr, seed)`: mini-batches
          until the end or the divergence (0: not tried); `loss(lr, seed, step)`: NaN from `steps_taken` on;
          `horizon_loss(lr, seed)`: mean of the last tenth, NaN where diverged; `order(lr, seed)`: place among the
          tries, -1: not tried.
        - `lr_stable`: the largest rate below the first divergence going up; `lr_stable_bracket(end)`: the rates at
          which no seed and at least one diverges; `lr_stable_found`: "bracketed", "above the range" (nothing diverged:
          `lr_stable` is inf, and the bracket's low end is the bound), "below the range" (NaN) or "unfinished".
        - `lr_usable`, `lr_usable_bracket(end)`, `lr_usable_found`: the same for the rates at which every seed learns,
          from the one of the lowest loss up; "nowhere" (NaN): no rate was found at which all do.
        - `lr_stable_monotone`, `lr_usable_monotone`: whether no seed passes at a rate above one at which it fails.
        - `best_at_horizon(lr)`: the rates tried that cannot be told apart from the lowest loss at the horizon, see
          `check.best.indistinguishable`.
        - `relative_loss(first_lr)`: after one step of the optimizer, seed 0; `constant_loss(seed)`: L_c; `train_steps`:
          what all tries took together; `probe_passes`: forward passes beside them.

    Raises:
        InvalidConfig, InvalidModel, InvalidBatch, DataError, DeviceError: one line each, before any search where the
        first mini-batch already shows it.
    """
    lowest, highest = _cells(lr_range)
    _check_counts(steps, seeds, warmup, clip_norm)
    begun = time.monotonic()
    recipe = Recipe(optimizer_factory(optimizer), steps, loss_fn, warmup, clip_norm)
    starts = Starts(model_or_build, batches, steps, loss_fn=loss_fn, fine_tuning=fine_tuning)
    most_steps = round(MOST_TRIES_A_SEED * steps * max(seeds, 3)) if max_train_steps is None else max_train_steps
    curve = first_step(starts.model(0), starts.first_batches(0, 1)[0], recipe, _curve_lrs(lowest, highest), seed=0)
    with progress("stable_lr", total=most_steps) as bar:

        def run(cell: int, seed: int) -> Trial:
            t = starts.try_at(lr_of(cell), seed, recipe)
            bar.advance(f"lr {t.lr:.2g}, seed {seed}: {t.outcome}", by=len(t.losses))
            return t

        search = Search(
            run,
            range(seeds),
            lowest,
            highest,
            steps,
            most_steps,
            math.inf if budget_seconds is None else begun + budget_seconds,
        )
        stable, usable = find_both(
            search,
            stable=cell_of(curve.diverging_lr, highest),
            usable=cell_of(curve.useful_lr, (lowest + highest) // 2),
        )
    parameter = next(p for p in starts.model(0).parameters() if p.requires_grad)
    return with_attributes(
        as_dataset(search, stable, usable, curve, starts),
        **provenance(
            device=parameter.device,
            dtype=parameter.dtype,
            optimizer=optimizer if isinstance(optimizer, str) else getattr(optimizer, "__qualname__", repr(optimizer)),
            steps=steps,
            warmup=warmup,
            clip_norm=clip_norm,
            lr_range=list(lr_range),
            max_train_steps=most_steps,
            budget_seconds=budget_seconds,
            start="the model given" if starts.from_instance else "a fresh build a seed",
            seeds_vary="the order of batches" if starts.from_instance else "initialization and the order of batches",
            fine_tuning=starts.fine_tuning,
            different_batches=starts.num_batches,
        ),
    )


def _cells(lr_range: tuple[float, float]) -> tuple[int, int]:
    low, high = map(float, lr_range)
    if not 0 < low < high < math.inf:
        raise InvalidConfig(f"lr_range is ({low:g}, {high:g}): give two positive rates, the lower first")
    return math.ceil(math.log10(low) * CELLS_A_DECADE - 1e-9), math.floor(math.log10(high) * CELLS_A_DECADE + 1e-9)


def _check_counts(steps: int, seeds: int, warmup: int, clip_norm: float | None) -> None:
    if steps < 2:
        raise InvalidConfig(f"steps is {steps}: a try needs two mini-batches or more")
    if seeds < 1:
        raise InvalidConfig(f"seeds is {seeds}: give how many, at least 1")
    if not 0 <= warmup < steps:
        raise InvalidConfig(f"warmup is {warmup}: it must be shorter than the {steps} steps of a try")
    if clip_norm is not None and not clip_norm > 0:
        raise InvalidConfig(f"clip_norm is {clip_norm:g}: give a positive norm, or None not to clip")


def _curve_lrs(lowest: int, highest: int) -> list[float]:
    points = max(2, round((highest - lowest) / CELLS_A_DECADE * CURVE_POINTS_A_DECADE) + 1)
    return np.geomspace(lr_of(lowest), lr_of(highest), points).tolist()
