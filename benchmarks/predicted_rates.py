"""Rates from initialization alone: how far off are they, and does the interval hold what it says?

    python -m benchmarks.predicted_rates measure ROWS.json [zoo|tasks]     # resumes; minutes to an hour
    python -m benchmarks.predicted_rates look ROWS.json                    # makes the ten passes alone again
    python -m benchmarks.predicted_rates fit ROWS.json                     # writes the package's own table
    python -m benchmarks.predicted_rates judge ROWS.json[,ROWS.json] [JUDGEMENT.json]

`measure` searches the rates of every network with every optimizer, 100 steps and two seeds, and makes the ten passes
that `predict_lr` makes. Networks of `rate_zoo` are what is fitted; those of `training_tasks` are only judged.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import about, headline, write_json
from benchmarks.rate_zoo import OPTIMIZERS, ZOO
from benchmarks.training_tasks import TASKS, Task
from normscope.rates import predicted
from normscope.rates.one_step import FEATURES, one_step
from normscope.rates.stable_lr import recipe_of, stable_lr

NEAR = 1.0
"""Decades from the edge within which trials are to be told apart."""

STEPS, SEEDS = 100, 2
MOST_STEPS = 8 * STEPS * SEEDS


def measured(name: str, task: Task, optimizer: str, aside: bool) -> dict[str, Any]:
    """The rates that the search finds, the features of seed 0, and every trial's outcome."""
    found = stable_lr(
        task.build,
        task.batches,
        optimizer=optimizer,
        steps=STEPS,
        seeds=SEEDS,
        loss_fn=task.loss_fn,
        max_train_steps=MOST_STEPS,
    )
    recipe = recipe_of(optimizer=optimizer, steps=STEPS, loss_fn=task.loss_fn)
    seen = one_step(task.build(0), next(iter(task.batches(0))), recipe)
    trials = [
        [float(lr), int(seed), outcome]
        for lr in found["lr"].values
        for seed in found["seed"].values
        if (outcome := str(found["outcome"].sel(lr=lr, seed=seed).values)) not in ("not tried", "left early")
    ]
    return {
        "architecture": name,
        "optimizer": optimizer,
        "fitted": not aside,
        "grows_with_gradient": seen.growth.with_gradient,
        "features": [round(float(x), 4) for x in seen.features],
        "passes": seen.passes,
        "lr_stable": number(found["lr_stable"]),
        "lr_stable_found": str(found["lr_stable_found"].values),
        "lr_recommended": number(found["lr_recommended"]),
        "lr_recommended_found": str(found["lr_recommended_found"].values),
        "trials": trials,
        "train_steps": int(found["train_steps"]),
    }


def number(value: Any) -> float | None:
    """None where it is not finite: JSON has no NaN."""
    return float(f"{float(value):.4g}") if math.isfinite(float(value)) else None


def look_again(path: Path) -> None:
    """Make the ten passes of every row again."""
    told = json.loads(path.read_text())
    for row in told["rows"]:
        task = {**ZOO, **TASKS}[row["architecture"]]
        recipe = recipe_of(optimizer=row["optimizer"], steps=STEPS, loss_fn=task.loss_fn)
        seen = one_step(task.build(0), next(iter(task.batches(0))), recipe)
        row |= {"features": [round(float(x), 4) for x in seen.features], "passes": seen.passes}
    write_json(path, told)


def measure(path: Path, which: str) -> None:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    known = {(row["architecture"], row["optimizer"]) for row in rows}
    for optimizer in OPTIMIZERS:
        for name, task in (ZOO if which == "zoo" else TASKS).items():
            if (name, optimizer) in known:
                continue
            try:
                rows.append(measured(name, task, optimizer, which != "zoo"))
            except Exception as error:
                print(f"{name} with {optimizer}: {error}", flush=True)
                continue
            print(f"{name:26}{optimizer[:10]:12}{rows[-1]['lr_stable']} {rows[-1]['lr_recommended']}", flush=True)
            write_json(path, {**about(), "rows": rows})


def write_table(rows: list[dict[str, Any]]) -> None:
    """The rows of networks to fit, in the package."""
    kept = ("architecture", "optimizer", "grows_with_gradient", "features", "lr_stable", "lr_recommended")
    lines = [json.dumps({key: row[key] for key in kept}, ensure_ascii=False) for row in rows if row["fitted"]]
    about_it = (
        f"python -m benchmarks.predicted_rates fit; {STEPS} steps, {SEEDS} seeds; features: {', '.join(FEATURES)}"
    )
    text = f'{{"about": {json.dumps(about_it)},\n"rows": [\n' + ",\n".join(lines) + "\n]}\n"
    (Path(predicted.__file__).parent / predicted.TABLE).write_text(text, encoding="utf-8")
    print(f"{len(lines)} rows of {len({row['architecture'] for row in rows if row['fitted']})} architectures")


@dataclass(frozen=True)
class Judged:
    """One network with one optimizer, foretold without any of its architecture's rows."""

    architecture: str
    optimizer: str
    fitted: bool
    known: bool
    off: dict[str, float]
    """log10 of the measured over the foretold rate."""
    width: dict[str, float]
    """Decades of the interval."""
    holds: dict[str, bool]
    trials: list[tuple[float, bool, float, float]]
    """log10 of a rate within a decade of the edge, whether it diverged, the probability foretold, and the rate
    over the edge of one step."""


def judged(rows: list[dict[str, Any]], row: dict[str, Any]) -> Judged:
    made = predicted.fits([r for r in rows if r["fitted"] and r["architecture"] != row["architecture"]])
    grows, features = row["grows_with_gradient"], np.asarray(row["features"])
    stable = made["lr_stable", grows]
    known = bool(np.isfinite(features).all()) and not stable.outside(features)
    off, width, holds = {}, {}, {}
    for target in predicted.TARGETS:
        if not row[target]:
            continue
        one, rate = made[target, grows], math.log10(row[target])
        low, high = one.interval(features)
        off[target], width[target], holds[target] = rate - one(features), high - low, low <= rate <= high
    trials = []
    if row["lr_stable"]:
        edge = math.log10(row["lr_stable"])
        for lr, _, outcome in row["trials"]:
            x = math.log10(lr)
            if abs(x - edge) <= NEAR:
                trials.append((x, outcome == "diverged", stable.probability_below(features, x), x - features[0]))
    return Judged(row["architecture"], row["optimizer"], row["fitted"], known, off, width, holds, trials)


def auroc(scores: list[float], positive: list[bool]) -> float:
    """NaN where one kind is missing; ties count half."""
    x, y = np.asarray(scores), np.asarray(positive)
    if y.all() or not y.any():
        return math.nan
    above = (x[y][:, None] > x[~y]) + 0.5 * (x[y][:, None] == x[~y])
    return float(above.mean())


def judge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the tables say."""
    every = [judged(rows, row) for row in rows]
    medians = {
        name: float(np.median([math.log10(r["lr_stable"]) for r in rows if r["optimizer"] == name and r["lr_stable"]]))
        for name in {r["optimizer"] for r in rows}
    }
    told: dict[str, Any] = {}
    for group, chosen in (
        ("one architecture left out", [j for j in every if j.fitted]),
        ("never fitted", [j for j in every if not j.fitted]),
    ):
        if not chosen:
            continue
        known = [j for j in chosen if j.known]
        lines: dict[str, Any] = {
            "pairs": len(chosen),
            "architectures": len({j.architecture for j in chosen}),
            "said to be unknown": len(chosen) - len(known),
        }
        for target in predicted.TARGETS:
            off = [abs(j.off[target]) for j in known if target in j.off]
            holds: dict[str, list[bool]] = {}
            for j in known:
                if target in j.holds:
                    holds.setdefault(j.architecture, []).append(j.holds[target])
            lines[target] = {
                "measured": len(off),
                "within a factor 2": float(np.mean(np.asarray(off) <= math.log10(2))),
                "within a factor 3": float(np.mean(np.asarray(off) <= math.log10(3))),
                "median factor off": 10 ** float(np.median(off)),
                "coverage, mean over architectures": float(np.mean([np.mean(h) for h in holds.values()])),
                "median width, a factor": 10 ** float(np.median([j.width[target] for j in known if target in j.width])),
            }
        lines["by optimizer"] = {
            name: {
                target: {
                    "within a factor 2": float(np.mean([abs(j.off[target]) <= math.log10(2) for j in mine])),
                    "median width, a factor": 10 ** float(np.median([j.width[target] for j in mine])),
                }
                for target in predicted.TARGETS
                if (mine := [j for j in known if j.optimizer == name and target in j.off])
            }
            for name in sorted({j.optimizer for j in known})
        }
        scores: dict[str, list[float]] = {}
        for name in sorted({j.architecture for j in known}):
            mine = [(j, t) for j in known if j.architecture == name for t in j.trials]
            diverged = [t[1] for _, t in mine]
            rivals = {
                "predict_lr": [t[2] for _, t in mine],
                "the rate alone": [t[0] for _, t in mine],
                "the rate over its optimizer's median edge": [t[0] - medians[j.optimizer] for j, t in mine],
                "the rate over the edge of one step": [t[3] for _, t in mine],
            }
            for rival, values in rivals.items():
                scores.setdefault(rival, []).append(auroc(values, diverged))
        lines["trials near the edge"] = sum(len(j.trials) for j in known)
        lines["of which diverged"] = sum(t[1] for j in known for t in j.trials)
        lines["AUROC within an architecture"] = {rival: float(np.nanmean(values)) for rival, values in scores.items()}
        every_trial = [(j, t) for j in known for t in j.trials]
        lines["AUROC over all"] = {
            "predict_lr": auroc([t[2] for _, t in every_trial], [t[1] for _, t in every_trial]),
            "the rate over its optimizer's median edge": auroc(
                [t[0] - medians[j.optimizer] for j, t in every_trial], [t[1] for _, t in every_trial]
            ),
        }
        told[group] = lines
    return told


def main() -> None:
    print(headline())
    torch.set_num_threads(1)
    what, path, *more = sys.argv[1:]
    if what == "measure":
        return measure(Path(path), *more or ["zoo"])
    if what == "look":
        return look_again(Path(path))
    rows = [row for file in path.split(",") for row in json.loads(Path(file).read_text())["rows"]]
    if what == "fit":
        return write_table(rows)
    found = judge(rows)
    print(json.dumps(found, indent=1, ensure_ascii=False))
    if more:
        write_json(more[0], {**about(), **found})


if __name__ == "__main__":
    main()
