"""One variant of a check, measured: the model as it is with what limits it, or with a repair."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import xarray as xr

from normscope.checkup.budget import Budget
from normscope.checkup.repairs import Repair
from normscope.checkup.rows import AS_IT_IS
from normscope.descent.recipe import Recipe, scheduled_rates
from normscope.diagnosis.diagnose import TRIAL_STEPS, diagnosis
from normscope.diagnosis.finding import findings_dataset
from normscope.diagnosis.first_pass import FirstPass
from normscope.diagnosis.profile import profile
from normscope.model.build import ModelOrBuild, instance_of
from normscope.rates.best import best_lr
from normscope.rates.evaluated import has_running_averages, losses_by_mode
from normscope.rates.judged import own_rate_datasets
from normscope.rates.stable_lr import HIGHEST_LR, LOWEST_LR, name_of, stable_lr
from normscope.rates.starting_point import Starts
from normscope.results import attribute
from normscope.runtime.bounded import bounded
from normscope.runtime.progress import Bar

Nodes = dict[str, xr.Dataset]
"""Of the check's tree, by their path."""


@dataclass(frozen=True)
class Variants:
    """What all variants of a check have in common."""

    source: ModelOrBuild
    starts: Starts
    recipe: Recipe
    first: FirstPass
    budget: Budget
    told: Mapping[str, Any]
    """What `stable_lr` is told of all, but warmup and clipping, which a repair may change."""
    train_steps: int | None
    cooldown: bool
    lr: float | None
    """The rate that is to be judged."""
    repairs: tuple[Repair, ...]

    @property
    def judges_only(self) -> bool:
        """Whether a rate is judged and no other looked for."""
        return self.lr is not None and not self.repairs and self.train_steps is None

    def as_it_is(self, bar: Bar) -> Nodes:
        """The rates of the model as it is, and what limits them."""
        nodes: Nodes = {}
        recipe, seconds = self.recipe, self.budget.for_rates(alone=not self.repairs)
        whole, short = replace(recipe, scheduler=None), min(recipe.steps, TRIAL_STEPS)
        schedule = scheduled_rates(recipe, self.starts.model(0))
        diagnosed = partial(diagnosis, self.starts, first=self.first, schedule=schedule)
        if self.first.hopeless:
            return _with_diagnosis(nodes, diagnosed(replace(whole, steps=short)))
        if self.lr is not None:
            with bar.part("your rate"):
                how = {"seeds": self.told["seeds"], "optimizer": name_of(self.told["optimizer"])}
                own, tried = own_rate_datasets(self.starts, recipe, self.lr, **how, budget_seconds=seconds)
                nodes |= {"own_rate": own, "as_it_is/rates": tried}
        if not self.judges_only:
            with bar.part(AS_IT_IS):
                models = self.source if self.starts.from_instance else self.starts.model  # none is built twice
                tried = self._rates(models, None, seconds)
                nodes["as_it_is/rates"] = self._in_evaluation(models, None, tried)
        if attribute(nodes["as_it_is/rates"], "interrupted"):
            return {**nodes, "findings": findings_dataset([]).assign_attrs(cut="true")}
        # With a rate of the user's own the program is trained as they train it; else briefly, at the best one found. A
        # range of the user's own may hold none: then the diagnosis looks for one itself.
        trained, at = whole, self.lr
        if self.lr is None:
            trained = replace(whole, steps=short, warmup=0)
            usual = tuple(self.told["lr_range"]) == (LOWEST_LR, HIGHEST_LR)
            at = best_lr(nodes["as_it_is/rates"]) if usual else None
        try:
            with bar.part("what limits it"), bounded(self.budget.alarm()) as in_time:
                nodes = _with_diagnosis(nodes, diagnosed(trained, lr=at, own=self.lr is not None))
        except KeyboardInterrupt:
            return {**nodes, "findings": findings_dataset([]).assign_attrs(cut="true", interrupted="true")}
        if not in_time.kept:
            nodes["findings"] = findings_dataset([]).assign_attrs(cut="true")
        return nodes

    def repaired(self, one: Repair, title: str, bar: Bar) -> Nodes | None:
        """The rates of the model with a repair, and what of the evidence is drawn; None where no time was left."""
        with bar.part(title):
            if self.budget.is_used_up:
                return None
            nodes: Nodes = {}
            batch, loss_fn = self.starts.first_batches(0, 1)[0], self.recipe.loss_fn
            with bounded(self.budget.alarm()) as in_time:
                made = one.applied_to(self.source, batch=batch, loss_fn=loss_fn)
                shown = profile(instance_of(made), batch, recipe=replace(self.recipe, warmup=0, scheduler=None))
                nodes = {f"repairs/{one.name}/{name}": n.to_dataset() for name, n in shown.children.items()}
                nodes[f"repairs/{one.name}/rates"] = tried = self._rates(made, one, self.budget.left())
            if not in_time.kept:
                return None
            nodes[f"repairs/{one.name}/rates"] = self._in_evaluation(made, one, tried)
            return nodes

    def _recipe_with(self, repair: Repair | None) -> Recipe:
        """The recipe with what a repair changes of it."""
        warmup, clip_norm = (repair.warmup, repair.clip_norm) if repair else (0, None)
        return replace(self.recipe, warmup=warmup or self.recipe.warmup, clip_norm=clip_norm or self.recipe.clip_norm)

    def _rates(self, measured: ModelOrBuild, repair: Repair | None, seconds: float | None) -> xr.Dataset:
        trained = self._recipe_with(repair)
        return stable_lr(
            measured,
            self.starts.batches,
            **self.told,
            warmup=trained.warmup,
            clip_norm=trained.clip_norm,
            budget_seconds=seconds,
            keep_interrupted=True,
            train_steps=None if repair else self.train_steps,
            cooldown=self.cooldown and not repair,
        )

    def _in_evaluation(self, measured: ModelOrBuild, repair: Repair | None, tried: xr.Dataset) -> xr.Dataset:
        """The rates' Dataset, with the loss in evaluation mode where the model keeps running averages."""
        steps, loss_fn = self.recipe.steps, self.recipe.loss_fn
        good, mine = best_lr(tried), Starts(measured, self.starts.batches, steps, loss_fn=loss_fn, fine_tuning=False)
        seconds = self.budget.alarm()
        if good is None or not has_running_averages(mine.model(0)) or (seconds is not None and seconds <= 0):
            return tried
        with bounded(seconds):
            evaluated, trained = losses_by_mode(mine, self._recipe_with(repair), good)
            tried = tried.assign(
                eval_loss=((), evaluated, {"long_name": "loss in evaluation mode", "units": "1"}),
                train_mode_loss=((), trained, {"long_name": "loss in training mode", "units": "1"}),
            )
        return tried


def _with_diagnosis(nodes: Nodes, found: xr.DataTree) -> Nodes:
    """The nodes with a diagnosis: its findings on top, what they rest on beside the rates."""
    kept = {f"as_it_is/{name}": found[name] for name in found.children if name != "findings"}
    if training := kept.pop("as_it_is/training", None):
        kept |= {f"as_it_is/training/{name}": node for name, node in training.children.items()}
    findings = found["findings"].to_dataset()
    return {**nodes, **{name: node.to_dataset() for name, node in kept.items()}, "findings": findings}


def was_interrupted(node: xr.Dataset) -> bool:
    """Whether Ctrl-C ended these trials."""
    return bool(attribute(node, "interrupted")) if "interrupted" in node.attrs else False
