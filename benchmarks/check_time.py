"""How long does `check` take beside the bare training steps that it makes, and does it keep its budget?

*Steps*: a character GPT of 0.8 million parameters is checked without repairs in this process, on all threads; its steps
are counted by its optimizer. The floor is a plain loop of as many, timed before and after it.

*Budgets*: five models are checked with the default repairs within 10, 30 and 120 s, and without a limit. A budget is
kept where it is overstepped by at most a tenth, or 2 s. What the answer of a cut check says must not be contradicted by
the whole one: rates tied with the best, and brackets of the boundaries, may be wider and must overlap within a cell of
10^0.1; a fault that it names is named by the whole one too; a repair that it calls a gain is no loss there.

    python -m benchmarks.check_time [rows.json [model, ...]]
"""

import json
import math
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import xarray as xr

import normscope as ns
from benchmarks.machine import about, headline, write_json
from benchmarks.training_tasks import TASKS, CharGPT, Task, characters, digits, named, seeded
from normscope.checkup.conclusion import helps
from normscope.checkup.headline import NEIGHBOUR
from normscope.checkup.limits import HEALTHY, limits_title
from normscope.checkup.rows import rows as rows_of
from normscope.cli.target import load_target
from normscope.diagnosis.finding import as_findings

BUDGETS = (10.0, 30.0, 120.0)
SLACK, SLACK_SECONDS = 0.1, 2.0
FLOOR_STEPS = 200
"""Of the plain loop, before and after; the floor is the mean of both, times the steps counted."""

DEEP_CNN = "deep CNN, momentum"
GPT = Task(seeded(lambda: CharGPT(norm=True, width=128, layers=6)), characters, "adamw")
MODELS = {
    DEEP_CNN: Task(load_target("examples/deep_cnn.py:net"), digits(), "momentum"),
    "ResNet 20, momentum": Task(named("resnet20", "none", 16), digits(), "momentum"),
    "char-GPT 0.8M, AdamW": GPT,
    "LSTM, Adam": TASKS["LSTM, Adam"],
    "U-Net, Adam": TASKS["U-Net, Adam"],
}


def plain_step() -> float:
    """Seconds of one step of a plain loop."""
    model = GPT.build(0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    batches = list(islice(GPT.batches(0), FLOOR_STEPS))
    begun = time.perf_counter()
    for inputs, targets in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    return (time.perf_counter() - begun) / FLOOR_STEPS


def against_bare_steps() -> dict[str, Any]:
    """A check without repairs, beside a plain loop of as many steps as it made."""
    steps: list[int] = []

    def counted(params: Any, lr: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(params, lr)
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        return optimizer

    plain_step()
    before = plain_step()
    begun = time.perf_counter()
    ns.check(GPT.build, GPT.batches, optimizer=counted, repair=(), workers=1)
    seconds = time.perf_counter() - begun
    step = (before + plain_step()) / 2
    return {"seconds": seconds, "steps": len(steps), "plain_step": step, "ratio": seconds / (len(steps) * step)}


def checked(task: Task, budget: float | None) -> tuple[xr.DataTree, float]:
    """The tree, and the seconds it took."""
    begun = time.perf_counter()
    told = {"optimizer": task.optimizer, "steps": task.steps, "loss_fn": task.loss_fn, "budget_seconds": budget}
    tree = ns.check(task.build, task.batches, **told)
    return tree, time.perf_counter() - begun


def apart(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two intervals of rates lie more than a cell apart; one that is not known lies nowhere."""
    if any(map(math.isnan, (*one, *other))):
        return False
    return one[0] > other[1] * NEIGHBOUR * 1.01 or other[0] > one[1] * NEIGHBOUR * 1.01


def contradictions(cut: xr.DataTree, whole: xr.DataTree) -> list[str]:
    """What the answer of a cut check says and the whole one denies."""
    found = []
    (mine, *my_repairs), (full, *full_repairs) = rows_of(cut), rows_of(whole)
    intervals = {
        "rate to train at": [(row.best_low, row.best_high) for row in (mine, full)],
        "stable rate": [(row.lr_stable, row.lr_stable_high) for row in (mine, full)],
        "usable rate": [(row.lr_usable, row.lr_usable_high) for row in (mine, full)],
    }
    found += [f"{name}: {one} and {other}" for name, (one, other) in intervals.items() if apart(one, other)]
    faults, known = ({f.name for f in as_findings(tree["findings"].to_dataset()) if f.fault} for tree in (cut, whole))
    found += [f"fault {name}" for name in sorted(faults - known)]
    if HEALTHY in limits_title(cut) and known:
        found.append(f"no fault, but {', '.join(sorted(known))}")
    wholes = {row.variant: row for row in full_repairs}
    for row in my_repairs:
        other = wholes.get(row.variant)
        if other and row.comparable and mine.comparable and helps(row, mine) and helps(full, other):
            found.append(f"{row.variant} helps, and costs")
    return found


def main() -> None:
    print((__doc__ or "").split("\n")[0])
    print(headline())
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path and path.exists() else {}
    described = about()

    def keep(name: str, row: dict[str, Any]) -> None:
        rows[name] = row
        if path:
            write_json(path, {"about": described, "rows": rows})

    chosen = sys.argv[2:] or ["steps", *MODELS]
    if "steps" in chosen and "steps" not in rows:
        keep("steps", against_bare_steps())
    if row := rows.get("steps"):
        print(f"char-GPT of 0.8M: {row['seconds']:.0f} s for {row['steps']} steps, {row['ratio']:.2f} times plain ones")
    print(f"{'':24}{'within':>8}{'took':>8}{'kept':>6}  contradicted by the whole check")
    for name in [name for name in chosen if name in MODELS]:
        whole: xr.DataTree | None = None
        for budget in (None, *BUDGETS):
            key = f"{name}, {budget:g} s" if budget else name
            if key in rows:
                continue
            tree, seconds = checked(MODELS[name], budget)
            if budget is None:
                whole = tree
                keep(key, {"seconds": seconds, "answer": ns.answer(tree)})
                print(f"{name:24}{'':8}{seconds:8.1f}", flush=True)
                continue
            if whole is None:
                whole, _ = checked(MODELS[name], None)
            kept = seconds <= budget + max(SLACK * budget, SLACK_SECONDS)
            row = {"seconds": seconds, "kept": kept, "contradictions": contradictions(tree, whole)}
            keep(key, {**row, "answer": ns.answer(tree)})
            print(f"{name:24}{budget:8.0f}{seconds:8.1f}{'yes' if kept else 'no':>6}  ", end="")
            print("; ".join(row["contradictions"]) or "nothing", flush=True)


if __name__ == "__main__":
    main()
