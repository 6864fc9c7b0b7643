"""Is what `check --lr` says of somebody's own rate right? Two hundred rates and more, truth by fresh seeds.

Eight rates a training, drawn evenly from the cells of 10^0.1 within a decade of its edge on either side, are judged on
seeds 0 to 2 as `check --lr` does. The truth is `own_rate`'s definitions on seeds 100 to 102, with every cell tried: a
rate *diverges* where one does, is *near* the edge where one does not learn at it or at twice the rate, *too small*
where a larger rate learns and gains a fifth more, else *good*. Rates whose neighbouring cell has another truth are
scored apart, and trainings that learn at no rate within 60 steps left out. `cost` is training steps over steps × seeds.
It resumes.

    python -m benchmarks.own_rate [rows.json]
"""

import json
import math
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import about, headline, write_json
from benchmarks.rate_zoo import OPTIMIZERS, ZOO
from benchmarks.training_tasks import TASKS, Task
from normscope.descent.outcome import reference_loss
from normscope.rates.judged import own_rate_datasets
from normscope.rates.own_rate import TOO_SMALL, TWICE, Judgement
from normscope.rates.search import lr_of
from normscope.rates.stable_lr import recipe_of
from normscope.rates.starting_point import Starts
from normscope.rates.trial import Trial

STEPS, SEEDS, FRESH = 60, 3, (100, 101, 102)
RATES = 8
DECADE = 10
"""Cells."""
COARSE = range(-50, 31, 5)
"""Cells among which the edge is looked for first."""

PAIRS = [
    (name, optimizer)
    for i, name in enumerate([*ZOO, *TASKS])
    if name not in ("fine-tuning, AdamW", "PINN, Adam", "ResNet 8 BN, momentum", "ResNet 8, Adam")
    for optimizer in (OPTIMIZERS[i % len(OPTIMIZERS)],)
]
"""Every network with one optimizer, in turn."""


class Truth:
    """Every cell on fresh seeds, each trial once."""

    def __init__(self, task: Task, optimizer: str) -> None:
        self.starts = Starts(task.build, task.batches, STEPS, loss_fn=task.loss_fn, fine_tuning=None)
        self.recipe = recipe_of(optimizer=optimizer, steps=STEPS, loss_fn=task.loss_fn)
        self.made: dict[tuple[int, int], Trial] = {}

    def at(self, cell: int, seed: int) -> Trial:
        if (cell, seed) not in self.made:
            self.made[cell, seed] = self.starts.try_at(lr_of(cell), seed, self.recipe)
        return self.made[cell, seed]

    def outcomes(self, cell: int) -> set[str]:
        return {str(self.at(cell, seed).outcome) for seed in FRESH}

    def learns(self, cell: int) -> bool:
        return self.outcomes(cell) == {"learns"}

    def loss(self, cell: int) -> float:
        return float(np.mean([self.at(cell, seed).horizon_loss for seed in FRESH]))

    def edge(self) -> int | None:
        """The first cell that fails, going up from the coarse cell of the lowest loss."""
        losses = {c: self.at(c, FRESH[0]).horizon_loss for c in COARSE}
        best = min((c for c in losses if math.isfinite(losses[c])), key=lambda c: losses[c])
        best = next((c for c in range(best, best - DECADE, -1) if self.learns(c)), None)
        if best is None:
            return None
        return next((c for c in range(best + 1, COARSE[-1] + 1) if not self.learns(c)), None)

    def verdict(self, cell: int, edge: int) -> Judgement:
        if "diverged" in self.outcomes(cell):
            return Judgement.DIVERGES
        larger = [c for c in range(cell + 1, edge) if self.learns(c)]
        if not self.learns(cell):
            return Judgement.SMALL if larger else Judgement.NEAR
        if not self.learns(cell + TWICE):
            return Judgement.NEAR
        start = float(np.mean([self.at(cell, seed).losses[0] for seed in FRESH]))
        reference = reference_loss(start, self.starts.constant_loss(FRESH[0]))
        for c in larger:
            gain = reference - self.loss(c)
            if gain > 0 and self.loss(cell) - self.loss(c) > TOO_SMALL * gain:
                return Judgement.SMALL
        return Judgement.GOOD


def judged(name: str, optimizer: str, task: Task) -> list[dict[str, Any]]:
    truth = Truth(task, optimizer)
    edge = truth.edge()
    if edge is None:
        return []
    draw = random.Random(f"{name} {optimizer}")
    rows = []
    for cell in draw.sample(range(edge - DECADE, edge + DECADE + 1), RATES):
        true = truth.verdict(cell, edge)
        starts = Starts(task.build, task.batches, STEPS, loss_fn=task.loss_fn, fine_tuning=None)
        own, tried = own_rate_datasets(starts, truth.recipe, lr_of(cell), seeds=SEEDS, optimizer=optimizer)
        rows.append(
            {
                "architecture": name,
                "optimizer": optimizer,
                "cell": cell,
                "edge": edge,
                "truth": true.value,
                "said": str(own["judgement"].values),
                "boundary": {truth.verdict(c, edge) for c in (cell - 1, cell + 1)} != {true},
                "cost": int(tried["train_steps"]) / STEPS / SEEDS,
            }
        )
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    lines = []
    for title, apart in (("away from a boundary", False), ("within a cell of one", True)):
        chosen = [r for r in rows if r["boundary"] is apart]
        shares, parts = [], []
        for verdict in (Judgement.DIVERGES, Judgement.NEAR, Judgement.GOOD, Judgement.SMALL):
            mine = [r for r in chosen if r["truth"] == verdict.value]
            if mine:
                right = sum(r["said"] == r["truth"] for r in mine)
                wrong = Counter(r["said"] for r in mine if r["said"] != r["truth"])
                shares.append(right / len(mine))
                parts.append(f"  {verdict.value:24}{right:4} of {len(mine):3}  {dict(wrong) or ''}")
        if shares:
            lines += [f"{title}: {len(chosen)} rates, macro over the verdicts {np.mean(shares):.3f}", *parts]
    costs = [r["cost"] for r in rows]
    lines.append(f"cost: median {np.median(costs):.2f}, most {max(costs):.2f} steps × seeds")
    return "\n".join(lines)


def main() -> None:
    print((__doc__ or "").split("\n")[0])
    print(headline())
    torch.set_num_threads(1)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path and path.exists() else []
    known = {(row["architecture"], row["optimizer"]) for row in rows}
    described = about()
    for name, optimizer in PAIRS:
        if (name, optimizer) in known:
            continue
        made = judged(name, optimizer, {**ZOO, **TASKS}[name])
        rows += made
        right = sum(r["said"] == r["truth"] for r in made)
        print(f"{name:26}{optimizer[:8]:10}{right} of {len(made)}", flush=True)
        if path:
            write_json(path, {**described, "rows": rows})
    print(summary(rows))


if __name__ == "__main__":
    main()
