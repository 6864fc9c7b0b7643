"""Which rate to train at, how large a one the network takes, what stops it, and what would help? Measured, and measured
again repaired."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from normscope.checkup.answer import AS_IT_IS, LEFT_OUT, MEASURED, NOT_TRIED, REFUSED
from normscope.checkup.first_look import first_look
from normscope.checkup.notebook import CheckTree
from normscope.checkup.repairs import Repair, fitting_repairs, repairs
from normscope.descent.optimizers import OptimizerFactory, own_lr
from normscope.descent.recipe import Recipe, SchedulerFactory, scheduled_rates
from normscope.diagnosis.diagnose import TRIAL_STEPS, diagnosis
from normscope.diagnosis.finding import findings_dataset
from normscope.diagnosis.profile import profile
from normscope.errors import InvalidConfig, NormscopeError
from normscope.model.build import ModelOrBuild, eager, instance_of
from normscope.model.contract import instrument
from normscope.model.loss import LossFn
from normscope.model.mini_batches import Batches
from normscope.rates.best import best, best_lr
from normscope.rates.evaluated import has_running_averages, losses_by_mode
from normscope.rates.judged import own_rate_datasets
from normscope.rates.longer import longest
from normscope.rates.stable_lr import HIGHEST_LR, LOWEST_LR, name_of, recipe_of, stable_lr
from normscope.rates.starting_point import Starts
from normscope.results import attribute, labelled, provenance, with_attributes
from normscope.runtime.bounded import bounded
from normscope.runtime.jobs import side_by_side, usable_workers
from normscope.runtime.progress import Bar, progress

BUDGET_SHARE = 0.5
"""Of a budget, the rates of the model as it is get at most this share."""

GRACE = 0.05
"""Of a budget, and at most a second: what has not ended by then is left where it stands."""

LEAST_SHARE = 0.1
"""A repair is not begun with less of the budget left than this share."""


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
    begun = time.monotonic()
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
    only_own = lr is not None and not asked and train_steps is None

    half = None if budget_seconds is None else (1 if not asked else BUDGET_SHARE) * budget_seconds
    least = 0.0 if budget_seconds is None else LEAST_SHARE * budget_seconds

    def left() -> float | None:
        return None if budget_seconds is None else budget_seconds - (time.monotonic() - begun)

    def alarm() -> float | None:
        """A little later than the searches end themselves."""
        seconds = left()
        return None if seconds is None or budget_seconds is None else seconds + min(1.0, GRACE * budget_seconds)

    def recipe_with(repair: Repair | None) -> Recipe:
        """The recipe with what a repair changes of it."""
        return replace(
            recipe,
            warmup=repair.warmup if repair and repair.warmup else warmup,
            clip_norm=repair.clip_norm if repair and repair.clip_norm else clip_norm,
        )

    def rates(measured: Any, repair: Repair | None, seconds: float | None) -> xr.Dataset:
        trained = recipe_with(repair)
        return stable_lr(
            measured,
            starts.batches,
            **told,
            warmup=trained.warmup,
            clip_norm=trained.clip_norm,
            budget_seconds=seconds,
            keep_interrupted=True,
            train_steps=None if repair else train_steps,
            cooldown=cooldown and not repair,
        )

    def in_evaluation(measured: Any, repair: Repair | None, tried: xr.Dataset) -> xr.Dataset:
        """The rates' Dataset, with the loss in evaluation mode where the model keeps running averages."""
        good, mine = best_lr(tried), Starts(measured, starts.batches, steps, loss_fn=loss_fn, fine_tuning=False)
        seconds = alarm()
        if good is None or not has_running_averages(mine.model(0)) or (seconds is not None and seconds <= 0):
            return tried
        with bounded(seconds):
            evaluated, trained = losses_by_mode(mine, recipe_with(repair), good)
            tried = tried.assign(
                eval_loss=((), evaluated, {"long_name": "loss in evaluation mode", "units": "1"}),
                train_mode_loss=((), trained, {"long_name": "loss in training mode", "units": "1"}),
            )
        return tried

    def as_it_is(bar: Bar) -> dict[str, xr.Dataset]:
        nodes: dict[str, xr.Dataset] = {}
        whole, short = replace(recipe, scheduler=None), min(steps, TRIAL_STEPS)
        diagnosed = partial(diagnosis, starts, first=first, schedule=scheduled_rates(recipe, starts.model(0)))
        if first.hopeless:
            return with_diagnosis(nodes, diagnosed(replace(whole, steps=short)))
        if lr is not None:
            with bar.part("your rate"):
                own, tried = own_rate_datasets(
                    starts, recipe, lr, seeds=seeds, optimizer=name_of(optimizer), budget_seconds=half
                )
                nodes |= {"own_rate": own, "as_it_is/rates": tried}
        if not only_own:
            with bar.part(AS_IT_IS):
                nodes["as_it_is/rates"] = in_evaluation(source, None, rates(source, None, half))
        if attribute(nodes["as_it_is/rates"], "interrupted"):
            return {**nodes, "findings": findings_dataset([]).assign_attrs(cut="true")}
        # With a rate of the user's own the program is trained as they train it; else briefly, at the best one found. A
        # range of the user's own may hold none: then the diagnosis looks for one itself.
        trained, at = whole, lr
        if lr is None:
            trained = replace(whole, steps=short, warmup=0)
            at = best_lr(nodes["as_it_is/rates"]) if tuple(lr_range) == (LOWEST_LR, HIGHEST_LR) else None
        try:
            with bar.part("what limits it"), bounded(alarm()) as in_time:
                nodes = with_diagnosis(nodes, diagnosed(trained, lr=at, own=lr is not None))
        except KeyboardInterrupt:
            return {**nodes, "findings": findings_dataset([]).assign_attrs(cut="true", interrupted="true")}
        if not in_time.kept:
            nodes["findings"] = findings_dataset([]).assign_attrs(cut="true")
        return nodes

    def repaired(one: Repair, bar: Bar) -> dict[str, xr.Dataset] | None:
        """None where no time was left."""
        with bar.part(titles[one.name]):
            seconds = left()
            if seconds is not None and seconds < least:
                return None
            nodes: dict[str, xr.Dataset] = {}
            with bounded(alarm()) as in_time:
                made = one.applied_to(source, batch=batch, loss_fn=loss_fn)
                instance = instance_of(made)
                shown = profile(instance, batch, recipe=replace(recipe, warmup=0, scheduler=None))
                nodes = {f"repairs/{one.name}/{name}": n.to_dataset() for name, n in shown.children.items()}
                nodes[f"repairs/{one.name}/rates"] = tried = rates(made, one, left())
            if not in_time.kept:
                return None
            nodes[f"repairs/{one.name}/rates"] = in_evaluation(made, one, tried)
            return nodes

    jobs = [as_it_is, *(partial(repaired, one) for one in asked)]
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
    rows = [(AS_IT_IS, AS_IT_IS, NOT_TRIED if first.hopeless else MEASURED, first.hopeless)]
    nodes: dict[str, xr.Dataset] = ended[0]
    interrupted = any(isinstance(r, dict) and any(map(was_interrupted, r.values())) for r in ended.values())
    for place, one in enumerate(asked, 1):
        result = ended.get(place)
        if isinstance(result, NormscopeError):
            rows.append((one.name, titles[one.name], REFUSED, str(result)))
        elif result is None:
            rows.append((one.name, titles[one.name], LEFT_OUT, "interrupted" if interrupted else "out of time"))
        else:
            rows.append((one.name, titles[one.name], MEASURED, ""))
            nodes |= result
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
        seconds=round(time.monotonic() - begun, 1),
        different_batches=starts.num_batches,
        parameters=sum(p.numel() for p in starts.model(0).parameters()),
        model=model or _name(source, starts.model(0)),
        data=data,
        notes=[*notes, *([ONE_BATCH] if starts.num_batches == 1 else [])],
    )
    return CheckTree.from_dict({"/": with_attributes(summary(rows, nodes), **config), **nodes})


def with_diagnosis(nodes: dict[str, xr.Dataset], found: xr.DataTree) -> dict[str, xr.Dataset]:
    """The nodes with a diagnosis: its findings on top, what they rest on beside the rates."""
    kept = {f"as_it_is/{name}": found[name] for name in found.children if name != "findings"}
    if training := kept.pop("as_it_is/training", None):
        kept |= {f"as_it_is/training/{name}": node for name, node in training.children.items()}
    findings = found["findings"].to_dataset()
    return {**nodes, **{name: node.to_dataset() for name, node in kept.items()}, "findings": findings}


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


def was_interrupted(node: xr.Dataset) -> bool:
    """Whether Ctrl-C ended these trials."""
    return bool(attribute(node, "interrupted")) if "interrupted" in node.attrs else False


def _name(source: Any, model: nn.Module) -> str:
    return type(model).__name__ if isinstance(source, nn.Module) else getattr(source, "__name__", type(model).__name__)
