"""Which rate to train at, how large a one the network takes, what stops it, and what would help? Measured, and measured
again repaired."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from normscope.checkup.budget import Budget
from normscope.checkup.first_look import first_look
from normscope.checkup.notebook import CheckTree
from normscope.checkup.repairs import fitting_repairs, repairs
from normscope.checkup.rows import AS_IT_IS, LEFT_OUT, MEASURED, NOT_TRIED, REFUSED
from normscope.checkup.variants import Variants, was_interrupted
from normscope.descent.optimizers import OptimizerFactory, own_lr
from normscope.descent.recipe import SchedulerFactory
from normscope.errors import InvalidConfig, NormscopeError
from normscope.model.build import ModelOrBuild, eager
from normscope.model.contract import instrument
from normscope.model.loss import LossFn
from normscope.model.mini_batches import Batches
from normscope.rates.best import best
from normscope.rates.longer import longest
from normscope.rates.stable_lr import HIGHEST_LR, LOWEST_LR, name_of, recipe_of
from normscope.rates.starting_point import Starts
from normscope.results import attribute, labelled, provenance, with_attributes
from normscope.runtime.jobs import side_by_side, usable_workers
from normscope.runtime.progress import progress


@instrument
def check(
    model_or_build: ModelOrBuild,
    batches: Batches,
    *,
    optimizer: str | OptimizerFactory | torch.optim.Optimizer = "momentum",
    repair: Sequence[str] | None = None,
    lr: float | None = None,
    steps: int = 100,
    seeds: int = 3,
    loss_fn: LossFn | None = None,
    lr_range: tuple[float, float] = (LOWEST_LR, HIGHEST_LR),
    clip_norm: float | None = None,
    warmup: int = 0,
    scheduler: SchedulerFactory | None = None,
    accumulate: int = 1,
    precision: str = "fp32",
    optimizer_state: Mapping[str, Any] | None = None,
    train_steps: int | None = None,
    cooldown: bool = False,
    budget_seconds: float | None = None,
    workers: int | None = None,
    model: str = "",
    data: str = "",
    notes: Sequence[str] = (),
) -> xr.DataTree:
    """The rates that a network takes, what limits them, and the same rates measured again with each repair.

    Args:
        model_or_build, batches, optimizer, steps, seeds, loss_fn: as for `stable_lr`, for the model as it is and with
            every repair. Models that are compiled or wrapped for several devices are measured as the module inside.
        lr_range, clip_norm, warmup, scheduler, accumulate, precision, optimizer_state: as for `stable_lr` too.
        train_steps, cooldown: the training that a rate is wanted for, as for `stable_lr`; of the model as it is.
        lr: the rate that you train with, to be judged; by default that of the optimizer, where that is one and no
            function that makes one. Without `repair` nothing else is then searched, at a third of the cost.
        repair: what fits the model if None, see `repairs.fitting_repairs`; else names as in
            `normscope.checkup.repairs.REPAIRS`: `final` (batch norm before the last layer), norms everywhere or in the
            place of those there (`batch`, `group`, `layer`, `rms`, `instance`, `tanh`), initializations
            (`xavier_uniform`, `xavier_normal`, `kaiming_normal`, `orthogonal`, `zero_residual`), and `warmup`,
            `clipping`, `both`; joined by `+` for several at once.
        budget_seconds: what does not fit is skipped, and said first.
        workers: how many variants are measured at once, each in a forked process with one thread; 1: one after the
            other, in this process. By default as `jobs.usable_workers` says.
        model, data, notes: for the answer and the report: their names, and sentences on how it was measured.

    Returns:
        Tree. At the top a Dataset over `variant`, "as it is" and each repair: `title`, `status` ("measured", "refused",
        "left out") and its `reason`; `lr_recommended`, `lr_stable`, `lr_usable` and how each was found; `best_low` and
        `best_high`, the rates tied with the one to train at; `horizon_loss`, its loss, mean over seeds; `cut`, whether
        time ended its search. Below it `own_rate` where a rate was to be judged (see `own_rate_dataset`); `findings`
        (see `diagnose`); `as_it_is` with `rates` (see `stable_lr`), `evidence` and `output_gradients`; and under
        `repairs/NAME` the same, with what of the evidence is drawn.

    Raises:
        NormscopeError: one line, where the model cannot be measured as it is; a repair that cannot be made or measured
            is refused in the tree instead.
    """
    if budget_seconds is not None and not budget_seconds > 0:
        raise InvalidConfig(f"budget_seconds is {budget_seconds:g}: give a positive time, or None for all it takes")
    lr = own_lr(optimizer) if lr is None else lr
    if lr is not None and not 0 < lr < math.inf:
        raise InvalidConfig(f"lr is {lr:g}: give a positive rate")
    repairs(repair or (), steps=steps)  # a misspelled one is said before anything runs
    budget = Budget(budget_seconds)
    source = eager(model_or_build)
    told: dict[str, Any] = {
        "optimizer": optimizer,
        "steps": steps,
        "seeds": seeds,
        "loss_fn": loss_fn,
        "lr_range": lr_range,
        "scheduler": scheduler,
        "accumulate": accumulate,
        "precision": precision,
        "optimizer_state": optimizer_state,
    }
    own_training = {k: v for k, v in told.items() if k not in ("seeds", "lr_range")}
    recipe = recipe_of(**own_training, warmup=warmup, clip_norm=clip_norm)
    starts = Starts(
        source,
        batches,
        steps,
        loss_fn=loss_fn,
        fine_tuning=None,
        accumulate=accumulate,
        longest=longest(steps, train_steps or steps),
    )
    first, starts = first_look(starts, recipe, budget_seconds)
    batch = starts.first_batches(0, 1)[0]
    fitting = () if repair is not None or lr is not None else fitting_repairs(starts.model(0), batch, loss_fn)
    names = fitting if repair is None else repair
    asked = [] if first.hopeless else repairs(names, steps=steps)
    titles = {one.name: one.title(starts.model(0)) for one in asked}
    variants = Variants(source, starts, recipe, first, budget, told, train_steps, cooldown, lr, tuple(asked))
    jobs = [variants.as_it_is, *(partial(variants.repaired, one, titles[one.name]) for one in asked)]
    at_once = usable_workers(workers, len(jobs))
    ended: dict[int, Any] = {}
    with side_by_side(jobs, at_once) as results, progress("check", total=2 + (lr is not None) + len(asked)) as bar:
        for place, result in results(bar):
            if place == 0 and isinstance(result, NormscopeError):
                raise result
            ended[place] = result
            if at_once == 1 and isinstance(result, dict) and any(map(was_interrupted, result.values())):
                break
    if 0 not in ended:
        raise KeyboardInterrupt
    interrupted = any(isinstance(r, dict) and any(map(was_interrupted, r.values())) for r in ended.values())
    rows = [(AS_IT_IS, AS_IT_IS, NOT_TRIED if first.hopeless else MEASURED, first.hopeless)]
    rows += [
        (one.name, titles[one.name], *_became(ended.get(place), interrupted)) for place, one in enumerate(asked, 1)
    ]
    done = [ended[place] for place in sorted(ended) if isinstance(ended[place], dict)]
    nodes: dict[str, xr.Dataset] = {path: node for found in done for path, node in found.items()}
    parameter = next(p for p in starts.model(0).parameters() if p.requires_grad)
    config = provenance(
        device=parameter.device,
        dtype=parameter.dtype,
        optimizer=name_of(optimizer),
        steps=steps,
        seeds=seeds,
        warmup=warmup,
        clip_norm=clip_norm,
        accumulate=accumulate,
        precision=precision,
        lr=lr,
        interrupted=interrupted,
        budget_seconds=budget_seconds,
        workers=at_once,
        seconds=round(budget.spent, 1),
        different_batches=starts.num_batches,
        parameters=sum(p.numel() for p in starts.model(0).parameters()),
        model=model or _name(source, starts.model(0)),
        data=data,
        notes=[*notes, *([ONE_BATCH] if starts.num_batches == 1 else [])],
    )
    return CheckTree.from_dict({"/": with_attributes(summary(rows, nodes), **config), **nodes})


def _became(result: Any, interrupted: bool) -> tuple[str, str]:
    """Status and reason of a repair, from what its job gave."""
    if isinstance(result, NormscopeError):
        return REFUSED, str(result)
    return (LEFT_OUT, "interrupted" if interrupted else "out of time") if result is None else (MEASURED, "")


def summary(rows: Sequence[tuple[str, str, str, str]], nodes: dict[str, xr.Dataset]) -> xr.Dataset:
    """What each variant came to, over `variant`, from name, title, status and reason of each and all rates."""
    numbers: dict[str, list[float]] = {name: [] for name in NUMBERS}
    found: dict[str, list[str]] = {name: [] for name in FOUND}
    cut: list[bool] = []
    for name, _, status, _ in rows:
        dataset = (
            nodes["as_it_is/rates" if name == AS_IT_IS else f"repairs/{name}/rates"] if status == MEASURED else None
        )
        low, high, loss = best(dataset) if dataset is not None else (np.nan,) * 3
        values = {"best_low": low, "best_high": high, "horizon_loss": loss}
        if dataset is not None:
            values |= {f"{key}_high": float(dataset[f"{key}_bracket"][1]) for key in ("lr_stable", "lr_usable")}
            values |= {key: float(dataset[key]) for key in NUMBERS if key in dataset and key not in values}
        for key in NUMBERS:
            numbers[key].append(values.get(key, np.nan))
        for key in FOUND:
            found[key].append(str(dataset[key].values) if dataset is not None else "")
        cut.append(status == LEFT_OUT or (dataset is not None and ended_early(dataset)))
    texts = {"title": "what was done", "status": "what became of it", "reason": "why"}
    return labelled(
        {
            **{
                key: ("variant", [row[i + 1] for row in rows], name, "1") for i, (key, name) in enumerate(texts.items())
            },
            **{key: ("variant", numbers[key], name, unit) for key, (name, unit) in NUMBERS.items()},
            **{key: ("variant", found[key], name, "1") for key, name in FOUND.items()},
            "cut": ("variant", cut, "whether time ended the search", "1"),
        },
        {"variant": ([row[0] for row in rows], "variant", "1")},
    )


NUMBERS = {
    "lr_recommended": ("rate to train at", "1"),
    "lr_stable": ("largest rate below the first divergence", "1"),
    "lr_usable": ("largest rate at which every seed learns", "1"),
    "best_low": ("lowest rate tied with the one to train at", "1"),
    "best_high": ("highest rate tied with the one to train at", "1"),
    "horizon_loss": ("loss at the horizon at the rate to train at, mean over seeds", "1"),
    "lr_stable_high": ("smallest rate found to diverge above it", "1"),
    "lr_usable_high": ("smallest rate found above it at which a seed does not learn", "1"),
    "eval_loss": ("loss after it in evaluation mode, of models with running averages", "1"),
    "train_mode_loss": ("loss after it in training mode, on the same mini-batches", "1"),
}
FOUND = {
    "lr_recommended_found": "what is sure of the rate to train at",
    "lr_stable_found": "how the search for the stable rate ended",
    "lr_usable_found": "how the search for the usable rate ended",
}

ONE_BATCH = "There is one batch only, as in full-batch training: the rates are those of this batch."


def ended_early(rates: xr.Dataset) -> bool:
    """Whether time or Ctrl-C ended these trials."""
    return bool(attribute(rates, "out_of_time")) or was_interrupted(rates)


def _name(source: Any, model: nn.Module) -> str:
    return type(model).__name__ if isinstance(source, nn.Module) else getattr(source, "__name__", type(model).__name__)
