"""How large a rate does my network take, what stops it, and what would help? Measured, and measured again repaired."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from normscope.checkup.answer import AS_IT_IS, LEFT_OUT, MEASURED, REFUSED
from normscope.checkup.repairs import CLIP_NORM, DEFAULT_REPAIRS, Repair, repairs
from normscope.descent.optimizers import OptimizerFactory, optimizer_factory
from normscope.descent.recipe import Recipe
from normscope.diagnosis.diagnose import TRIAL_STEPS, diagnosis, refuse_one_batch
from normscope.diagnosis.profile import profile
from normscope.errors import InvalidConfig, NormscopeError
from normscope.model.build import eager, instance_of
from normscope.model.contract import instrument
from normscope.model.loss import LossFn
from normscope.rates.best import best, best_lr
from normscope.rates.stable_lr import stable_lr
from normscope.rates.starting_point import Starts
from normscope.results import labelled, provenance, with_attributes
from normscope.runtime.jobs import side_by_side, usable_workers
from normscope.runtime.progress import Bar, progress

BUDGET_SHARE = 0.5
"""Of a budget, the rates of the model as it is get at most this share."""

LEAST_SHARE = 0.1
"""A repair is not begun with less of the budget left than this share."""


@instrument
def check(
    model_or_build: Any,
    batches: Any,
    *,
    optimizer: str | OptimizerFactory = "momentum",
    repair: Sequence[str] = DEFAULT_REPAIRS,
    steps: int = 100,
    seeds: int = 3,
    loss_fn: LossFn | None = None,
    clip_norm: float = CLIP_NORM,
    warmup: int | None = None,
    budget_seconds: float | None = None,
    workers: int | None = None,
    model: str = "",
    data: str = "",
    notes: Sequence[str] = (),
) -> xr.DataTree:
    """The rates that a network takes, what limits them, and the same rates measured again with each repair.

    Args:
        model_or_build, batches, optimizer, steps, seeds, loss_fn: as for `stable_lr`. Models that are compiled or
            wrapped for several devices are measured as the module inside.
        repair: names as in `normscope.checkup.repairs.REPAIRS`: `final` (batch norm before the last layer), norms
            everywhere or in the place of those there (`batch`, `group`, `layer`, `rms`, `instance`, `tanh`),
            initializations (`xavier_uniform`, `xavier_normal`, `kaiming_normal`, `orthogonal`, `zero_residual`), and
            `warmup`, `clipping`, `both`; joined by `+` for several at once.
        clip_norm: of the repairs that clip.
        warmup: steps of the repairs that warm up; a fifth of `steps` if None.
        budget_seconds: what does not fit is left out, and said so; the diagnosis is always made.
        workers: how many variants are measured at once, each in a forked process with one thread; 1: one after the
            other, in this process. By default as `jobs.usable_workers` says.
        model, data, notes: for the answer and the report: their names, and sentences on how it was measured.

    Returns:
        Tree. At the top a Dataset over `variant`, "as it is" and each repair: `title`, `status` ("measured", "refused",
        "left out") and its `reason`; `lr_stable`, `lr_usable` and how each was found; `best_low` and `best_high`, the
        rates not told apart from the lowest loss at the horizon; `horizon_loss`, the lowest, mean over seeds. Below it
        `findings` (see `diagnose`); `as_it_is` with `rates` (see `stable_lr`), `evidence` and `output_gradients`; and
        under `repairs/NAME` the same, with what of the evidence is drawn.

    Raises:
        NormscopeError: one line, where the model cannot be measured as it is; a repair that cannot be made or measured
            is refused in the tree instead.
    """
    asked = repairs(repair, steps=steps, clip_norm=clip_norm, warmup=warmup)
    if budget_seconds is not None and not budget_seconds > 0:
        raise InvalidConfig(f"budget_seconds is {budget_seconds:g}: give a positive time, or None for all it takes")
    begun = time.monotonic()
    source = eager(model_or_build)
    recipe = Recipe(optimizer_factory(optimizer), min(steps, TRIAL_STEPS), loss_fn)
    starts = Starts(source, batches, steps, loss_fn=loss_fn, fine_tuning=None)
    refuse_one_batch(starts)
    batch = starts.first_batches(0, 1)[0]
    titles = {one.name: one.title(starts.model(0)) for one in asked}

    half = None if budget_seconds is None else BUDGET_SHARE * budget_seconds
    least = 0.0 if budget_seconds is None else LEAST_SHARE * budget_seconds

    def left() -> float | None:
        return None if budget_seconds is None else budget_seconds - (time.monotonic() - begun)

    def rates(measured: Any, repair: Repair | None, seconds: float | None) -> xr.Dataset:
        return stable_lr(
            measured,
            starts.batches,
            optimizer=optimizer,
            steps=steps,
            seeds=seeds,
            loss_fn=loss_fn,
            warmup=repair.warmup if repair else 0,
            clip_norm=repair.clip_norm if repair else None,
            budget_seconds=seconds,
        )

    def as_it_is(bar: Bar) -> dict[str, xr.Dataset]:
        nodes = {}
        with bar.part(AS_IT_IS):
            nodes["as_it_is/rates"] = rates(source, None, half)
        with bar.part("what limits it"):
            found = diagnosis(starts, recipe, lr=best_lr(nodes["as_it_is/rates"]))
        nodes |= {f"as_it_is/{name}": found[name].to_dataset() for name in ("evidence", "output_gradients")}
        return {**nodes, "findings": found["findings"].to_dataset()}

    def repaired(one: Repair, bar: Bar) -> dict[str, xr.Dataset] | None:
        """None where no time was left."""
        with bar.part(titles[one.name]):
            seconds = left()
            if seconds is not None and seconds < least:
                return None
            made = one.applied_to(source, batch=batch, loss_fn=loss_fn)
            instance = instance_of(made)
            shown = profile(instance, batch, recipe=replace(recipe, clip_norm=one.clip_norm))
            nodes = {f"repairs/{one.name}/rates": rates(made, one, left())}
            return nodes | {f"repairs/{one.name}/{name}": n.to_dataset() for name, n in shown.children.items()}

    jobs = [as_it_is, *(partial(repaired, one) for one in asked)]
    at_once = usable_workers(workers, len(jobs))
    ended: dict[int, Any] = {}
    with side_by_side(jobs, at_once) as results, progress("check", total=2 + len(asked)) as bar:
        for place, result in results(bar):
            if place == 0 and isinstance(result, NormscopeError):
                raise result
            ended[place] = result
    rows = [(AS_IT_IS, AS_IT_IS, MEASURED, "")]
    nodes: dict[str, xr.Dataset] = ended[0]
    for place, one in enumerate(asked, 1):
        result = ended[place]
        if isinstance(result, NormscopeError):
            rows.append((one.name, titles[one.name], REFUSED, str(result)))
        elif result is None:
            rows.append((one.name, titles[one.name], LEFT_OUT, "no time was left for it"))
        else:
            rows.append((one.name, titles[one.name], MEASURED, ""))
            nodes |= result
    parameter = next(p for p in starts.model(0).parameters() if p.requires_grad)
    config = provenance(
        device=parameter.device,
        dtype=parameter.dtype,
        optimizer=nodes["as_it_is/rates"].attrs["optimizer"],
        steps=steps,
        seeds=seeds,
        clip_norm=clip_norm,
        budget_seconds=budget_seconds,
        workers=at_once,
        seconds=round(time.monotonic() - begun, 1),
        different_batches=starts.num_batches,
        parameters=sum(p.numel() for p in starts.model(0).parameters()),
        model=model or _name(source, starts.model(0)),
        data=data,
        notes=list(notes),
    )
    return xr.DataTree.from_dict({"/": with_attributes(summary(rows, nodes), **config), **nodes})


def summary(rows: Sequence[tuple[str, str, str, str]], nodes: dict[str, xr.Dataset]) -> xr.Dataset:
    """What each variant came to, over `variant`, from name, title, status and reason of each and all rates."""
    numbers: dict[str, list[float]] = {name: [] for name in NUMBERS}
    found: dict[str, list[str]] = {name: [] for name in FOUND}
    for name, _, status, _ in rows:
        dataset = (
            nodes["as_it_is/rates" if name == AS_IT_IS else f"repairs/{name}/rates"] if status == MEASURED else None
        )
        low, high, loss = best(dataset) if dataset is not None else (np.nan,) * 3
        values = {"best_low": low, "best_high": high, "horizon_loss": loss}
        for key in NUMBERS:
            numbers[key].append(
                values[key] if key in values else float(dataset[key]) if dataset is not None else np.nan
            )
        for key in FOUND:
            found[key].append(str(dataset[key].values) if dataset is not None else "")
    texts = {"title": "what was done", "status": "what became of it", "reason": "why"}
    return labelled(
        {
            **{
                key: ("variant", [row[i + 1] for row in rows], name, "1") for i, (key, name) in enumerate(texts.items())
            },
            **{key: ("variant", numbers[key], name, unit) for key, (name, unit) in NUMBERS.items()},
            **{key: ("variant", found[key], name, "1") for key, name in FOUND.items()},
        },
        {"variant": ([row[0] for row in rows], "variant", "1")},
    )


NUMBERS = {
    "lr_stable": ("largest rate below the first divergence", "1"),
    "lr_usable": ("largest rate at which every seed learns", "1"),
    "best_low": ("lowest rate not told apart from the lowest loss", "1"),
    "best_high": ("highest rate not told apart from the lowest loss", "1"),
    "horizon_loss": ("lowest loss at the horizon, mean over seeds", "nat"),
}
FOUND = {
    "lr_stable_found": "how the search for the stable rate ended",
    "lr_usable_found": "how the search for the usable rate ended",
}


def _name(source: Any, model: nn.Module) -> str:
    return type(model).__name__ if isinstance(source, nn.Module) else getattr(source, "__name__", type(model).__name__)
