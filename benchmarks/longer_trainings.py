"""Is the rate told for N steps the one to train N steps at? Against a grid, N being 5 and 10 times a trial's steps.

The trainings of `training_tasks`, trials of 50 steps on seeds 0 and 1. The truth is the loss after N steps on fresh
seeds, 100 and 101: four rates a decade around the rate told and the one for the trials alone, until the lowest has
higher neighbours. `regret` is as in `recommended_lr`, of the rate told for N and of the one for 50 steps. The prior of
the drift was set before any of these was measured. It resumes.

    python -m benchmarks.longer_trainings [rows.json [task, ...]]
"""

import json
import math
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.machine import about, headline, write_json
from benchmarks.training_tasks import TASKS, Task
from normscope.descent.outcome import Outcome, reference_loss
from normscope.rates.longer import COOLDOWN
from normscope.rates.lowest_loss import end_loss
from normscope.rates.search import cell_of, lr_of
from normscope.rates.stable_lr import recipe_of, stable_lr
from normscope.rates.starting_point import Starts

STEPS, SEEDS, FRESH = 50, 2, (100, 101)
TIMES = (5, 10)
GRID = 3
"""Cells between the grid's rates."""


class Truth:
    """The loss at the end of whole trainings on fresh seeds, each once."""

    def __init__(self, task: Task, steps: int, cooldown: bool) -> None:
        self.starts = Starts(task.build, task.batches, steps, loss_fn=task.loss_fn, fine_tuning=None)
        self.stem = round(steps / (1 + COOLDOWN)) if cooldown else steps
        self.recipe = recipe_of(optimizer=task.optimizer, steps=self.stem, loss_fn=task.loss_fn)
        self.steps, self.cooldown = steps, cooldown
        self.made: dict[int, float] = {}
        self.start = math.nan

    def loss(self, cell: int) -> float:
        if cell not in self.made:
            ends = []
            for seed in FRESH:
                descent = self.starts.descent(lr_of(cell), seed, self.recipe, may_go_on=True)
                trial = descent.go_on()
                if self.cooldown and trial.outcome is not Outcome.DIVERGED:
                    trial = descent.cooled_down(self.steps - self.stem)
                self.start = reference_loss(float(trial.losses[0]), self.starts.constant_loss(seed))
                ends.append(math.inf if trial.outcome is Outcome.DIVERGED else end_loss(trial.losses, 0.05))
            self.made[cell] = float(np.mean(ends))
        return self.made[cell]

    def best(self, *around: int) -> int:
        for cell in around:
            self.loss(cell)
        while True:
            best = min(self.made, key=lambda c: self.made[c])
            near = [c for c in (best - GRID, best + GRID) if not any(abs(c - k) < GRID - 1 for k in self.made)]
            if not near:
                return best
            self.loss(near[0])


def compare(name: str, task: Task, times: int, cooldown: bool) -> dict[str, Any]:
    steps = times * STEPS
    ours = stable_lr(
        task.build,
        task.batches,
        optimizer=task.optimizer,
        steps=STEPS,
        seeds=SEEDS,
        loss_fn=task.loss_fn,
        train_steps=steps,
        cooldown=cooldown,
    )
    told = [float(ours[f"lr_for_training{end}"]) for end in ("", "_low", "_high")]
    short = float(ours["lr_recommended"])
    truth = Truth(task, steps, cooldown)
    cells = [cell_of(told[0], 0), cell_of(short, 0)]
    best = truth.best(*cells)
    gain = truth.start - truth.loss(best)
    return {
        "name": name,
        "aside": task.aside,
        "steps": steps,
        "cooldown": cooldown,
        "lr": told[0],
        "low": told[1],
        "high": told[2],
        "short": short,
        "best": lr_of(best),
        "regret": (truth.loss(cells[0]) - truth.loss(best)) / gain,
        "regret_short": (truth.loss(cells[1]) - truth.loss(best)) / gain,
        "holds": told[1] <= lr_of(best) <= told[2],
        "lengths": ours["length"].values.tolist(),
        "lrs": ours["lr_at_length"].values.tolist(),
    }


def line(r: dict[str, Any]) -> str:
    where = f"{r['lr']:9.2g}{r['low']:9.2g}{r['high']:9.2g}{r['best']:9.2g}"
    return f"{r['name']:24}{r['steps']:6}{where}{r['regret']:8.3f}{r['short']:9.2g}{r['regret_short']:8.3f}"


def summary(rows: list[dict[str, Any]]) -> str:
    lines = []
    for steps, cooldown in sorted({(r["steps"], r["cooldown"]) for r in rows}):
        chosen = [r for r in rows if (r["steps"], r["cooldown"]) == (steps, cooldown)]
        ours, short = ([math.inf if r[k] is None else r[k] for r in chosen] for k in ("regret", "regret_short"))
        holds = f"{sum(r['holds'] for r in chosen)} of {len(chosen)}"
        lines.append(
            f"{steps} steps{' with a cooldown' if cooldown else ''}: regret {median(ours):.3f} (median), "
            f"{max(ours):.3f} (most); of the rate for {STEPS} steps {median(short):.3f}, {max(short):.3f}; "
            f"the best lies in the interval in {holds}"
        )
    return "\n".join(lines)


def main() -> None:
    print((__doc__ or "").split("\n")[0])
    print(headline())
    torch.set_num_threads(1)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path and path.exists() else []
    known = {(r["name"], r["steps"], r["cooldown"]) for r in rows}
    described = about()
    print(f"{'':30}{'told':>9}{'from':>9}{'to':>9}{'best':>9}{'regret':>8}{'short':>9}{'regret':>8}")
    for times, cooldown in ((TIMES[1], False), (TIMES[0], False), (TIMES[1], True)):
        for name in sys.argv[2:] or sorted(TASKS, key=lambda n: not TASKS[n].aside):
            if (name, times * STEPS, cooldown) in known:
                continue
            rows.append(compare(name, TASKS[name], times, cooldown))
            print(line(rows[-1]), flush=True)
            if path:
                write_json(path, {**described, "rows": rows})
    print(summary(rows))


if __name__ == "__main__":
    main()
