"""Which learning rate to train at, and how large a one does this network take? Short descents from the same start.

The rate to train at is that of the lowest loss at the horizon. A rate is *stable* if no seed diverges at it, and
*usable* if every seed learns at it (see `outcome`): both boundaries are the first failure going up, bracketed by two
neighbours of the lattice 10^(k/10).
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from normscope.descent.optimizers import OptimizerFactory, optimizer_factory, own_state
from normscope.descent.outcome import Outcome
from normscope.descent.precision import autocast
from normscope.descent.recipe import Recipe, SchedulerFactory
from normscope.errors import InvalidConfig
from normscope.model.build import ModelOrBuild
from normscope.model.contract import instrument
from normscope.model.loss import LossFn
from normscope.model.mini_batches import Batches
from normscope.rates.first_step import first_step
from normscope.rates.labels import as_dataset, with_longer
from normscope.rates.longer import COOLDOWN, longer_training, longest
from normscope.rates.plan import find_all, find_both
from normscope.rates.recommended import NOT_LOOKED_FOR, recommendation
from normscope.rates.search import CELLS_A_DECADE, Search, cell_of, lr_of
from normscope.rates.starting_point import Starts
from normscope.rates.trial import Descent, Trial
from normscope.results import provenance, with_attributes
from normscope.runtime.progress import Bar, progress

LOWEST_LR, HIGHEST_LR = 1e-7, 1e3
"""The range searched by default: beyond either end nobody trains."""

CURVE_POINTS_A_DECADE = 3
"""Of the one relative-loss curve that the search starts from."""

MOST_TRIES_A_SEED, MOST_WITH_RECOMMENDED = 4.9, 8.0
"""Full-length trials a seed that the search may cost by default: for the boundaries alone, and with the rate to train
at. Fewer than three seeds have the budget of three, since most of it goes into finding the place, on one seed."""

MOST_BEYOND = 20
"""Steps × seeds that trials beyond the horizon may cost."""

KEPT_BYTES = 2**30
"""Trials that may go on keep their weights and their optimizer's state, up to this much together: 1 GiB."""


@instrument
def stable_lr(
    model_or_build: ModelOrBuild,
    batches: Batches,
    *,
    optimizer: str | OptimizerFactory | torch.optim.Optimizer,
    steps: int = 100,
    seeds: int = 3,
    loss_fn: LossFn | None = None,
    warmup: int = 0,
    clip_norm: float | None = None,
    scheduler: SchedulerFactory | None = None,
    accumulate: int = 1,
    precision: str = "fp32",
    optimizer_state: Mapping[str, Any] | None = None,
    recommend: bool = True,
    train_steps: int | None = None,
    cooldown: bool = False,
    fine_tuning: bool | None = None,
    lr_range: tuple[float, float] = (LOWEST_LR, HIGHEST_LR),
    max_train_steps: int | None = None,
    budget_seconds: float | None = None,
    keep_interrupted: bool = False,
) -> xr.Dataset:
    """The rate to train at, and the largest rates at which a network stays stable and at which it learns.

    Every trial is a descent of `steps` mini-batches in training mode from the same start, stopped at once when it
    diverges. The same seed sees the same mini-batches and random numbers at every rate. Models come back bit for bit as
    they were.

    Args:
        model_or_build: `build(seed) -> nn.Module` for a fresh model a seed (`build()` is called with torch's
            generators at the seed), or a model: every try then starts from its weights, and seeds change only the order
            of batches.
        batches: a list, a DataLoader or an iterator, of which the first `steps` batches are kept and walked in an order
            of each seed's own (again and again where there are fewer); or a function `seed -> iterator`, called for
            every try. Tensors are moved to the model's device.
        optimizer: "sgd", "momentum" (SGD with 0.9), "adam", "adamw", any class of `torch.optim` by its name, with
            options as in "adamw,betas=0.9:0.95,weight_decay=0.1"; a function `(params, lr) -> optimizer`, whose first
            argument may be called `model` or `named_parameters` and is then given that; or the optimizer that trains
            the model, with its options, groups and, where it has taken steps, state.
        steps: length of a try, in mini-batches: the horizon.
        seeds: how many, from 0.
        loss_fn: `loss_fn(model, batch)`; by default by the type of the batch, see `loss.default_loss`.
        warmup: steps over which the rate rises linearly.
        clip_norm: the gradient is clipped to this Euclidean norm.
        scheduler: `scheduler(optimizer)` gives an `LRScheduler`, stepped after every step; in place of `warmup`. The
            rates told are those that the optimizer is made with.
        accumulate: mini-batches whose mean gradient is one step's.
        precision: of the forward pass, "fp32", "bf16" or "fp16" (with torch's GradScaler) under autocast.
        optimizer_state: a state_dict, with whose state every trial starts.
        recommend: whether to look for the rate to train at; without, only the boundaries are searched, at less cost.
        train_steps: of the training that the rate is for, where that is longer than `steps`: the best trials go on to
            2 and 4 times the steps, and how the best rate moves is extrapolated. Of a loader's batches as many are then
            kept.
        cooldown: whether that training's rate falls linearly to 0 over its last fifth, after `warmup`; else it is
            constant.
        fine_tuning: whether to learn means only not to end above the start. By default yes for a model (not a build)
            whose loss already starts 3 % or more below that of the best constant output.
        lr_range: rates are searched between these two.
        max_train_steps: of all trials together, at most; 8 · steps · seeds by default (of three seeds at least), 4.9
            without `recommend`. Where that is not enough, the boundary is "unfinished". Longer trials for
            `train_steps` come on top, at most 20 · steps · seeds.
        budget_seconds: no step is made after this long; the attribute `out_of_time` says whether that ended the search.
        keep_interrupted: whether Ctrl-C ends the search with what it has, and the attribute `interrupted` says so.

    Returns:
        Dataset over `lr` (the rates tried), `seed` and `step`:

        - `lr_recommended`: the rate to train at; `lr_recommended_low`, `lr_recommended_high`: the rates around it that
          are tied with it; `lr_recommended_loss`: its loss at the horizon, mean over seeds; `lr_recommended_found`:
          "learns on every seed", "learns on some seeds", "lowers the loss" (too little to be called learning),
          "unfinished", or "nowhere" (NaN).
        - `outcome(lr, seed)`: diverged, dead, stalled, learns, "left early" (beaten before its end) or "not tried";
          `steps_taken(lr, seed)`: mini-batches until the end or the divergence (0: not tried); `loss(lr, seed, step)`:
          NaN from `steps_taken` on; `horizon_loss(lr, seed)`: mean of the last tenth, NaN where diverged; `order(lr,
          seed)`: place among the trials, -1: not tried; `steps_skipped(lr, seed)`: whose gradient overflowed in
          float16.
        - with `train_steps`: `lr_for_training`, `lr_for_training_low`, `lr_for_training_high`: the rate for that
          training and an interval of 90 %, NaN where no length was measured; and over `length`, in steps,
          `lr_at_length` and `loss_at_length`: where the loss is lowest after so many.
        - `lr_stable`: the largest rate below the first divergence going up; `lr_stable_bracket(end)`: the rates at
          which no seed and at least one diverges; `lr_stable_found`: "bracketed", "above the range" (nothing diverged:
          `lr_stable` is inf, and the bracket's low end is the bound), "below the range" (NaN) or "unfinished".
        - `lr_usable`, `lr_usable_bracket(end)`, `lr_usable_found`: the same for the rates at which every seed learns,
          from the one of the lowest loss up; "nowhere" (NaN): no rate was found at which all do.
        - `lr_stable_monotone`, `lr_usable_monotone`: whether no seed passes at a rate above one at which it fails.
        - `best_at_horizon(lr)`: the rates tried that cannot be told apart from the lowest loss at the horizon, see
          `statistics.ties`.
        - `relative_loss(first_lr)`: after one step of the optimizer, seed 0; `constant_loss(seed)`: L_c; `train_steps`:
          what all tries took together; `probe_passes`: forward passes beside them.

    Raises:
        InvalidConfig, InvalidModel, InvalidBatch, DataError, DeviceError: one line each, before any search where the
        first mini-batch already shows it.

    Example:
        Descent on ℓ(w) = w² is stable below a rate of 1.

        >>> squares = lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> batches = [(torch.ones(4, 1), torch.zeros(4, 1))] * 2
        >>> model = nn.Linear(1, 1, bias=False)
        >>> dataset = ns.stable_lr(model, batches, optimizer="sgd", seeds=1, loss_fn=squares)
        >>> low, high = dataset["lr_stable_bracket"].values
        >>> bool(low <= 1.0 <= high)
        True
    """
    lowest, highest = _cells(lr_range)
    if seeds < 1:
        raise InvalidConfig(f"seeds is {seeds}: give how many, at least 1")
    begun = time.monotonic()
    recipe = recipe_of(
        optimizer=optimizer,
        steps=steps,
        loss_fn=loss_fn,
        warmup=warmup,
        clip_norm=clip_norm,
        scheduler=scheduler,
        accumulate=accumulate,
        precision=precision,
        optimizer_state=optimizer_state,
    )
    _check_longer(train_steps, steps, cooldown, recipe, recommend)
    starts = Starts(
        model_or_build,
        batches,
        steps,
        loss_fn=loss_fn,
        fine_tuning=fine_tuning,
        accumulate=accumulate,
        longest=longest(steps, train_steps or steps),
    )
    share = MOST_WITH_RECOMMENDED if recommend else MOST_TRIES_A_SEED
    most_steps = round(share * steps * max(seeds, 3)) if max_train_steps is None else max_train_steps
    curve = first_step(starts.model(0), starts.first_batches(0, 1)[0], recipe, _curve_lrs(lowest, highest), seed=0)
    with progress("stable_lr", total=most_steps) as bar:
        search = search_of(
            starts,
            recipe,
            bar,
            seeds=range(seeds),
            lowest=lowest,
            highest=highest,
            most_steps=most_steps,
            deadline=math.inf if budget_seconds is None else begun + budget_seconds,
            keep_interrupted=keep_interrupted,
            most_beyond=0 if train_steps is None else MOST_BEYOND * steps * seeds,
        )
        cells = {
            "stable": cell_of(curve.diverging_lr, highest),
            "usable": cell_of(curve.useful_lr, (lowest + highest) // 2),
        }
        if recommend:
            stable, usable = find_all(search, **cells, grows_with_gradient=curve.growth.with_gradient)
        else:
            stable, usable = find_both(search, **cells)
        recommended = recommendation(search) if recommend else NOT_LOOKED_FOR
        dataset = as_dataset(search, stable, usable, curve, starts, recommended)
        attributes = described(search, starts, recipe)
        if train_steps is not None:
            longer = longer_training(search, recommended.lr, train_steps, cooldown=cooldown)
            dataset = dataset.merge(with_longer(longer, starts))
            attributes |= {
                "train_steps": train_steps,
                "cooldown": cooldown,
                "longer_cut": search.stopped and not longer.complete,
            }
            attributes["interrupted"] = search.interrupted
    return with_attributes(
        dataset,
        **attributes,
        optimizer=name_of(optimizer),
        lr_range=list(lr_range),
        max_train_steps=most_steps,
        budget_seconds=budget_seconds,
    )


def described(search: Search, starts: Starts, recipe: Recipe) -> dict[str, Any]:
    """How trials were made: a Dataset's attributes."""
    parameter = next(p for p in starts.model(0).parameters() if p.requires_grad)
    scheduler = recipe.scheduler
    return provenance(
        device=parameter.device,
        dtype=parameter.dtype,
        steps=recipe.steps,
        warmup=recipe.warmup,
        clip_norm=recipe.clip_norm,
        scheduler=None if scheduler is None else getattr(scheduler, "__qualname__", type(scheduler).__name__),
        accumulate=recipe.accumulate,
        precision=recipe.precision,
        optimizer_state=recipe.state is not None,
        start="the model given" if starts.from_instance else "a fresh build a seed",
        seeds_vary="the order of batches" if starts.from_instance else "initialization and the order of batches",
        fine_tuning=starts.fine_tuning,
        different_batches=starts.num_batches,
        out_of_time=search.stopped and not search.interrupted,
        interrupted=search.interrupted,
    )


def recipe_of(
    *,
    optimizer: str | OptimizerFactory | torch.optim.Optimizer,
    steps: int,
    loss_fn: LossFn | None = None,
    warmup: int = 0,
    clip_norm: float | None = None,
    scheduler: SchedulerFactory | None = None,
    accumulate: int = 1,
    precision: str = "fp32",
    optimizer_state: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of these settings.

    Raises:
        InvalidConfig: what cannot be, in one line.
    """
    _check_counts(steps, warmup, clip_norm, accumulate)
    if warmup and scheduler is not None:
        raise InvalidConfig("warmup and scheduler are both given: let the scheduler warm up")
    autocast(precision, "cpu")
    state = own_state(optimizer) if optimizer_state is None else optimizer_state
    factory = optimizer_factory(optimizer)
    return Recipe(factory, steps, loss_fn, warmup, clip_norm, scheduler, accumulate, precision, state)


def search_of(
    starts: Starts,
    recipe: Recipe,
    bar: Bar,
    *,
    seeds: Sequence[int],
    lowest: int,
    highest: int,
    most_steps: float = math.inf,
    deadline: float = math.inf,
    origin: float = 1.0,
    keep_interrupted: bool = False,
    most_beyond: float = 0,
) -> Search:
    """A search without trials yet, which makes them from these starts; the bar moves by training steps."""
    descents: dict[tuple[int, int], Descent] = {}
    may_go_on = most_beyond > 0

    def descent_of(cell: int, seed: int) -> Descent:
        key = cell, seed
        if key not in descents:
            descents[key] = starts.descent(search.lr(cell), seed, recipe, may_go_on=may_go_on)
        return descents[key]

    def run_beyond(cell: int, seed: int, until: int, cooldown: int) -> Trial:
        known = search.tries.get((cell, seed))
        if known is not None and known.outcome is Outcome.DIVERGED:
            return known
        descent = descent_of(cell, seed)
        begun = len(descent.losses)
        t = descent.go_on(until, deadline)
        made = len(t.losses) - begun
        if cooldown and t.outcome not in (None, Outcome.DIVERGED):
            t = descent.cooled_down(cooldown, deadline)
            made += cooldown
        search.steps_beyond += made
        bar.advance(f"lr {t.lr:.2g}, seed {seed}: {until + cooldown} steps", by=made)
        return t

    def run(cell: int, seed: int, until: int) -> Trial:
        key = cell, seed
        descent = descent_of(cell, seed)
        known = len(search.short[key].losses) if key in search.short else 0
        search.repeated += known - len(descent.losses)
        begun = len(descent.losses)
        t = descent.go_on(
            until, deadline, KEPT_BYTES - sum(one.nbytes for one in descents.values() if one is not descent)
        )
        bar.advance(f"lr {t.lr:.2g}, seed {seed}: {t.outcome or 'so far'}", by=len(t.losses) - begun)
        if t.outcome is Outcome.DIVERGED or (t.outcome is not None and not may_go_on):
            del descents[key]
        elif not descent.nbytes:
            descent.forget()
        return t

    search = Search(
        run, seeds, lowest, highest, recipe.steps, most_steps, deadline, starts.constant_loss(seeds[0]), origin=origin
    )
    search.keep_interrupted = keep_interrupted
    search.run_beyond, search.most_beyond = run_beyond, most_beyond
    return search


def name_of(optimizer: Any) -> str:
    """What an optimizer is called in words."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return type(optimizer).__name__
    return optimizer if isinstance(optimizer, str) else getattr(optimizer, "__qualname__", repr(optimizer))


def _cells(lr_range: tuple[float, float]) -> tuple[int, int]:
    low, high = map(float, lr_range)
    if not 0 < low < high < math.inf:
        raise InvalidConfig(f"lr_range is ({low:g}, {high:g}): give two positive rates, the lower first")
    return math.ceil(math.log10(low) * CELLS_A_DECADE - 1e-9), math.floor(math.log10(high) * CELLS_A_DECADE + 1e-9)


def _check_longer(train_steps: int | None, steps: int, cooldown: bool, recipe: Recipe, recommend: bool) -> None:
    if train_steps is None:
        if cooldown:
            raise InvalidConfig("cooldown asks how the training ends: give its train_steps too")
        return
    least = math.ceil(steps * (1 + COOLDOWN)) if cooldown else steps
    if train_steps < least:
        raise InvalidConfig(
            f"train_steps is {train_steps}: give {least} or more, for a trial has {steps} steps already"
        )
    if recipe.scheduler is not None:
        raise InvalidConfig("train_steps goes with a constant rate, warmup and cooldown: leave out the scheduler")
    if not recommend:
        raise InvalidConfig("train_steps starts from the rate to train at: leave out recommend=False")


def _check_counts(steps: int, warmup: int, clip_norm: float | None, accumulate: int) -> None:
    if accumulate < 1:
        raise InvalidConfig(f"accumulate is {accumulate}: give how many mini-batches make a step, at least 1")
    if steps < 2:
        raise InvalidConfig(f"steps is {steps}: a trial needs two or more")
    if not 0 <= warmup < steps:
        raise InvalidConfig(f"warmup is {warmup}: it must be shorter than the {steps} steps of a try")
    if clip_norm is not None and not clip_norm > 0:
        raise InvalidConfig(f"clip_norm is {clip_norm:g}: give a positive norm, or None not to clip")


def _curve_lrs(lowest: int, highest: int) -> list[float]:
    points = max(2, round((highest - lowest) / CELLS_A_DECADE * CURVE_POINTS_A_DECADE) + 1)
    return np.geomspace(lr_of(lowest), lr_of(highest), points).tolist()
