"""Is the rate that `stable_lr` recommends the one to train at? Against a grid, and beside torch-lr-finder.

Fourteen trainings of different kinds (`training_tasks`), 80 or 100 steps, three seeds. The rate is chosen on seeds 0 to
2, and so is the grid's best: two rates a decade over the range, and two cells of 10^0.1 closer on either side of the
lowest. Both are scored on fresh seeds by the loss at the horizon, the mean over the last tenth of the steps:

    regret = (L(rate) − L(best)) / (L(start) − L(best)),    start = min(first loss, L_c)

It is negative where the grid's best is worse on fresh seeds. `cost` is training steps over steps × seeds. Where the
denominator lies under five standard errors over the fresh seeds, the task says nothing and is marked.

torch-lr-finder's range test goes over the same range in as many steps, once on each of the seeds; its suggestion is the
median. Optimizers that ask for no rate (Prodigy, D-Adaptation and DoG at 1; schedule-free AdamW at its default, its
losses at y) are run on the fresh seeds for the same steps in the place of the task's own. Rivals that are not installed
are left out.

    python -m benchmarks.recommended_lr [rows.json [task, ...]]
"""

import contextlib
import copy
import importlib
import io
import math
import sys
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.machine import about, headline, write_json
from benchmarks.training_tasks import TASKS, Task
from normscope.descent.optimizers import make_optimizer, optimizer_factory
from normscope.descent.outcome import reference_loss
from normscope.descent.recipe import Recipe
from normscope.model.loss import default_loss
from normscope.rates.search import lr_of
from normscope.rates.stable_lr import stable_lr
from normscope.rates.starting_point import Starts
from normscope.rates.trial import Trial

SEEDS, FRESH = range(3), range(100, 103)
COARSE, CLOSE = 5, (-3, -2, 2, 3)
"""Cells between the grid's rates, and those beside its lowest."""


class Trials:
    """Every trial once."""

    def __init__(self, task: Task) -> None:
        self.task, self.made = task, dict[tuple[float, int], Trial]()
        self.starts = Starts(task.build, task.batches, task.steps, loss_fn=task.loss_fn, fine_tuning=None)
        self.recipe = Recipe(optimizer_factory(task.optimizer), task.steps, task.loss_fn)

    def at(self, lr: float, seed: int) -> Trial:
        if (lr, seed) not in self.made:
            self.made[lr, seed] = self.starts.try_at(lr, seed, self.recipe)
        return self.made[lr, seed]

    def loss(self, lr: float, seeds: range) -> float:
        return float(np.mean([self.at(lr, seed).horizon_loss for seed in seeds]))


def grids_best(trials: Trials) -> float:
    low, high = (10 * decade for decade in trials.task.decades)
    losses = {cell: trials.loss(lr_of(cell), SEEDS) for cell in range(low, high + 1, COARSE)}
    lowest = min((c for c in losses if math.isfinite(losses[c])), key=lambda c: losses[c])
    losses |= {lowest + c: trials.loss(lr_of(lowest + c), SEEDS) for c in CLOSE}
    return lr_of(min((c for c in losses if math.isfinite(losses[c])), key=lambda c: losses[c]))


def lr_finder(task: Task) -> float:
    """The median of what torch-lr-finder suggests; NaN where it is not installed or does not take the task."""
    try:
        from torch_lr_finder import LRFinder
    except ImportError:
        return math.nan
    suggestions = []
    for seed in SEEDS:
        model = copy.deepcopy(task.build(seed)).train()
        optimizer = make_optimizer(optimizer_factory(task.optimizer), model, 10.0 ** task.decades[0])
        batches = [(batch, torch.zeros(1)) for batch in islice(task.batches(seed), task.steps)]
        loader = torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
        loss_fn = task.loss_fn or default_loss

        class Whole(nn.Module):
            """The finder calls a model on inputs and a criterion on outputs and labels: here the model gives the
            loss."""

            def __init__(self, inner: nn.Module, loss: Any) -> None:
                super().__init__()
                self.inner, self.loss = inner, loss

            def forward(self, batch: Any) -> Any:
                return self.loss(self.inner, batch)

        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            finder = LRFinder(Whole(model, loss_fn), optimizer, lambda loss, _: loss, device="cpu")
            finder.range_test(loader, end_lr=10.0 ** task.decades[1], num_iter=task.steps)
        lrs, losses = finder.history["lr"], finder.history["loss"]
        suggestions.append(lrs[10:-5][int(np.gradient(np.asarray(losses[10:-5])).argmin())])
    return median(suggestions)


def rate_free() -> dict[str, Any]:
    """Optimizers that need no rate, by name, as factories of (params, lr); those that are installed."""
    found: dict[str, Any] = {}
    for name, package, kind, lr in (
        ("Prodigy", "prodigyopt", "Prodigy", 1.0),
        ("D-Adaptation", "dadaptation", "DAdaptAdam", 1.0),
        ("DoG", "dog", "DoG", 1.0),
        ("schedule-free", "schedulefree", "AdamWScheduleFree", 0.0025),
    ):
        with contextlib.suppress(ImportError, AttributeError):
            made = getattr(importlib.import_module(package), kind)
            found[name] = partial(_made, made, lr)
    return found


def _made(kind: Any, lr: float, params: Any, _: float) -> torch.optim.Optimizer:
    made = kind(params, lr=lr)
    if hasattr(made, "train"):
        made.train()  # schedule-free: gradients are taken at its y
    return made


def rivals_losses(task: Task) -> dict[str, float]:
    """The loss at the horizon on the fresh seeds of each; NaN where it diverged or does not take the task."""
    losses: dict[str, float] = {}
    for name, factory in rate_free().items():
        starts = Starts(task.build, task.batches, task.steps, loss_fn=task.loss_fn, fine_tuning=None)
        recipe = Recipe(factory, task.steps, task.loss_fn)
        try:
            losses[name] = float(np.mean([starts.try_at(1.0, seed, recipe).horizon_loss for seed in FRESH]))
        except Exception as error:
            print(f"{name}: {error}")
            losses[name] = math.nan
    return losses


@dataclass(frozen=True)
class Result:
    name: str
    aside: bool
    best: float
    rate: float
    found: str
    regret: float
    gain_in_errors: float
    finder: float
    finder_regret: float
    cost: float
    stable: float
    usable: float
    rivals: dict[str, float]
    """Regret of the optimizers that need no rate."""


def compare(name: str, task: Task) -> Result:
    ours = stable_lr(
        task.build, task.batches, optimizer=task.optimizer, steps=task.steps, seeds=len(SEEDS), loss_fn=task.loss_fn
    )
    trials = Trials(task)
    best, rate, finder = grids_best(trials), float(ours["lr_recommended"]), lr_finder(task)
    starts = [
        reference_loss(float(trials.at(best, seed).losses[0]), trials.starts.constant_loss(seed)) for seed in FRESH
    ]
    gains = np.asarray([start - trials.at(best, seed).horizon_loss for start, seed in zip(starts, FRESH, strict=True)])

    def regret(lr: float) -> float:
        return (trials.loss(lr, FRESH) - trials.loss(best, FRESH)) / float(gains.mean()) if lr > 0 else math.nan

    cost = (int(ours["train_steps"]) + int(ours["probe_passes"]) / 3) / task.steps / len(SEEDS)
    error = float(gains.std(ddof=1) / math.sqrt(len(gains)))
    return Result(
        name,
        task.aside,
        best,
        rate,
        str(ours["lr_recommended_found"].values),
        regret(rate),
        float(gains.mean()) / error,
        finder,
        regret(finder),
        cost,
        float(ours["lr_stable"]),
        float(ours["lr_usable"]),
        {name: (loss - trials.loss(best, FRESH)) / float(gains.mean()) for name, loss in rivals_losses(task).items()},
    )


HEADER = f"{'':24}{'best':>9}{'ours':>9}{'regret':>8}{'cost':>6}{'finder':>10}{'regret':>8}"


def line(r: Result) -> str:
    marks = ("  set aside" if r.aside else "") + ("  gain under five standard errors" if r.gain_in_errors < 5 else "")
    text = f"{r.name:24}{r.best:9.2g}{r.rate:9.2g}{r.regret:8.3f}{r.cost:6.1f}"
    return (
        text
        + (f"{r.finder:10.2g}{r.finder_regret:8.3f}" if r.finder > 0 else f"{'-':>10}{'-':>8}")
        + marks
        + "".join(f"\n{name:>60}{regret:8.3f}" for name, regret in r.rivals.items())
    )


def summary(results: list[Result]) -> str:
    told = [r for r in results if r.gain_in_errors >= 5]
    lines = []
    for name, chosen in (("all", told), ("set aside", [r for r in told if r.aside])):
        if regrets := [math.inf if math.isnan(r.regret) else r.regret for r in chosen]:
            lines.append(
                f"{name}: regret {median(regrets):.3f} (median), {max(regrets):.3f} (most), "
                f"{sum(r <= 0.05 for r in regrets)} of {len(regrets)} under 0.05"
            )
        if finder := [r.finder_regret for r in chosen if r.finder > 0]:
            diverged = sum(map(math.isnan, finder))
            known = [f for f in finder if math.isfinite(f)]
            lines.append(
                f"  torch-lr-finder: {median(known):.3f} (median), {max(known):.3f} (most), {diverged} diverge"
            )
        for rival in sorted({name for r in chosen for name in r.rivals}):
            regrets = [r.rivals[rival] for r in chosen]
            known = [x for x in regrets if math.isfinite(x)]
            lower = sum(r.rivals[rival] < r.regret for r in chosen)
            lines.append(
                f"  {rival}: {median(known):.3f} (median), {max(known):.3f} (most), "
                f"{len(regrets) - len(known)} diverge, lower than ours on {lower} of {len(chosen)}"
            )
    return "\n".join(lines)


def main() -> None:
    print((__doc__ or "").split("\n")[0])
    print(headline())
    print(HEADER)
    results, described = [], about()
    for name in sys.argv[2:] or TASKS:
        results.append(compare(name, TASKS[name]))
        print(line(results[-1]), flush=True)
        if len(sys.argv) > 1:
            write_json(sys.argv[1], {**described, "rows": [asdict(result) for result in results]})
    print(summary(results))


if __name__ == "__main__":
    main()
