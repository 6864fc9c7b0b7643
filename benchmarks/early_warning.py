"""How many steps ahead does a watch warn of a divergence, and how often does it cry wolf?

Small trainings (`benchmarks.training_runs`) under a watch that measures every 32 steps; the rule is fitted on the
architectures `FITTED` and reported on those of `HELD_OUT`, at the record's own schedule, at every third of its
measurements and at every fifteenth, and without any. A run has *diverged* at the first step above 10³ · max(L_c, best
so far) or not finite, and counts from step 60 on; it is *healthy* where it is never above twice its running minimum (of
at least 2 % of the first loss) for 20 steps. A warning counts 20 to 200 steps ahead. Beside ours: Lightning's
SpikeDetection, llm-foundry's KillLossSpike for Composer, ZClip's trigger, gradient norm z > 6, activation maximum above
5 times its start, loss above twice its running minimum, StableAdamW's lag above 2.3. In brackets: the 95 % interval by
resampling architectures.

    python -m benchmarks.early_warning [rows.json [FOLDER [MINUTES [fit]]]]

trains for so many minutes (25) into the folder, going on where it ended; 0 only judges what is there. `fit` also fits
the rule again and prints it.
"""

import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from benchmarks.machine import headline, write_json
from benchmarks.training_runs import CONTROLS, FITTED, FORECASTABLE, HELD_OUT, OPTIMIZERS, SUDDEN, edge, run, source
from normscope.monitoring import rule
from normscope.monitoring.outlook import FEATURES, Outlook
from normscope.monitoring.rule import AHEAD
from normscope.monitoring.trigger import QUIET
from normscope.results import attribute, keep, load

BALANCED = 105
"""So many runs are of all kinds; then come those that tend to diverge, since few of the first did."""

DIVERGING = ("mlp", "vit", "mlp_deep", "cnn", "gpt", "mlp", "resnet", "mlp_deep", "cnn", "vit")

SOONEST, LATEST = 60, 20
"""A divergence counts from this step on; a warning counts from `AHEAD` to so many steps before it."""

PENALTY = 0.02
"""Of the fitted weights' squares, in units of each number's spread."""

SCHEDULES = {"every 32 steps": 1, "every 96": 3, "every 480": 15, "no measurement": 0}
"""Every which measurement of the record is looked at."""


@dataclass(frozen=True)
class Run:
    """One run as recorded."""

    net: str
    kind: str
    optimizer: str
    diverged_at: int
    share: float
    outcome: str
    signals: dict[str, np.ndarray]
    measured: list[tuple[int, dict[str, float], dict[str, np.ndarray]]]


def plan() -> Iterator[tuple[str, str, str, int]]:
    """Architecture, optimizer, kind and seed of every run, without end."""
    draw, nets = random.Random(0), FITTED + HELD_OUT
    kinds = [*FORECASTABLE[:3] * 4, "lag", *CONTROLS * 5, *SUDDEN]
    for i in range(BALANCED):
        kind = draw.choice(kinds)
        yield nets[i % len(nets)], draw.choice(OPTIMIZERS[1:] if kind == "lag" else OPTIMIZERS), kind, i // len(nets)
    draw, i = random.Random(7), 0
    while True:
        kind = draw.choice(["rising"] * 5 + ["warmup"] * 3 + ["constant"] * 2 + ["lag"])
        optimizer = draw.choice(OPTIMIZERS[1:] if kind == "lag" else OPTIMIZERS)
        yield DIVERGING[i % len(DIVERGING)], optimizer, kind, 1000 + i
        i += 1


def generate(folder: Path, minutes: float) -> None:
    """Train until the time is up; what is there already is not trained again."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * minutes
    data, edges_path = source(), folder / "edges.json"
    edges = json.loads(edges_path.read_text()) if edges_path.exists() else {}
    for net, optimizer, kind, seed in plan():
        if time.monotonic() > ends:
            return
        path = folder / f"{net}-{optimizer}-{kind}-{seed}.nc"
        if path.exists():
            continue
        key = f"{net}-{'momentum' if optimizer == 'momentum' else 'adam'}"
        if key not in edges:
            edges[key] = edge(data, net, optimizer)
            edges_path.write_text(json.dumps(edges))
        record, facts = run(data, net, optimizer, kind, seed, edges[key])
        keep(record, path, facts)


def outcome_of(losses: np.ndarray, diverged_at: int) -> str:
    if diverged_at >= 0:
        return "diverged" if diverged_at >= SOONEST else "diverged early"
    lowest = np.maximum(np.minimum.accumulate(losses), 0.02 * losses[0])
    if leaves_at(losses) < 0:
        return "healthy"
    return "unhealthy" if losses[-1] > 2 * lowest[-1] else "spiked and recovered"


def leaves_at(losses: np.ndarray) -> int:
    """The first of 20 steps in a row above twice the running minimum; -1 where there are none."""
    lowest = np.maximum(np.minimum.accumulate(losses), 0.02 * losses[0])
    held = np.convolve(losses > 2 * lowest, np.ones(20), "valid") >= 20 if len(losses) >= 20 else np.zeros(0)
    return int(held.argmax()) if held.any() else -1


def read(path: Path) -> Run:
    dataset = load(path)
    diverged_at = int(attribute(dataset, "diverged_at"))
    names = ("loss", "gradient_norm", "lr", "stable_adamw_lag")
    signals = {name: dataset[name].values.astype(float) for name in names}
    steps = dataset["measurement"].values.tolist() if "relative_loss_1" in dataset else []
    scalars = [n for n in ("relative_loss_1", "relative_loss_4", "critical_multiple", "output_logit") if n in dataset]
    layers = [n for n in ("activation_size", "update_to_weight", "adam_lag") if n in dataset]
    measured = [
        (step, {n: float(dataset[n].values[i]) for n in scalars}, {n: dataset[n].values[i] for n in layers})
        for i, step in enumerate(steps)
    ]
    facts = {name: str(attribute(dataset, name)) for name in ("net", "kind", "optimizer")}
    share, outcome = float(attribute(dataset, "share")), outcome_of(signals["loss"], diverged_at)
    return Run(**facts, diverged_at=diverged_at, share=share, outcome=outcome, signals=signals, measured=measured)


def features(one: Run, every: int) -> np.ndarray:
    """What the rule is given at each step: (step, feature)."""
    outlook, rows = Outlook(), []
    chosen = {step: (s, p) for step, s, p in one.measured[every - 1 :: every]} if every else {}
    numbers = zip(*(one.signals[name].tolist() for name in ("loss", "gradient_norm", "lr")), strict=True)
    for step, row in enumerate(numbers):
        outlook.see(step, *row)
        rows.append(list(outlook.features().values()))  # before the measurement of this step, as in a watch
        if step in chosen:
            outlook.measure(step, *chosen[step])
    return np.array(rows)


def first(alarms: np.ndarray, patience: int = 1) -> int:
    """The first step at which so many in a row alarm; -1 for none."""
    alarms = np.array(alarms, dtype=bool)
    alarms[:QUIET] = False
    held = np.convolve(alarms, np.ones(patience), "valid") >= patience if len(alarms) >= patience else np.zeros(0)
    return int(held.argmax()) + patience - 1 if held.any() else -1


def weights() -> np.ndarray:
    return np.array([rule.WEIGHTS.get(name, 0.0) for name in FEATURES])


def ours(table: np.ndarray) -> int:
    threshold = math.log(rule.THRESHOLD / (1 - rule.THRESHOLD))
    return first(table @ weights() + rule.OFFSET >= threshold, rule.PATIENCE)


def spike_detection(one: Run) -> int:
    """Lightning's: a loss that is worse than the mean of the last 10 by twice that mean, or not finite."""
    loss = one.signals["loss"]
    means = [np.mean(loss[max(0, i - 10) : i]) if i else math.inf for i in range(len(loss))]
    return first(~np.isfinite(loss) | (loss - means >= 2 * np.abs(means)))


def kill_loss_spike(one: Run) -> int:
    """llm-foundry's, for Composer: more than 4 losses in a row at twice the mean of the last 100."""
    loss = one.signals["loss"]
    means = [np.mean(loss[max(0, i - 100) : i]) if i else math.inf for i in range(len(loss))]
    return first(loss >= 2 * np.array(means), 5)


def z_of_gradient(one: Run, level: float) -> int:
    """The gradient norm's z-score against its moving mean and variance (ZClip: decay 0.97, 25 steps to warm up)."""
    alarms, mean, variance = [], 0.0, 0.0
    norms = one.signals["gradient_norm"]
    for i, norm in enumerate(norms):
        if i == 26 and np.isfinite(norms[1:26]).all():
            mean, variance = float(np.nanmean(norms[1:26])), float(np.nanvar(norms[1:26]))
        z = (norm - mean) / math.sqrt(variance + 1e-12) if i > 25 and math.isfinite(norm) else 0.0
        z = math.inf if i > 25 and not math.isfinite(norm) else z
        alarms.append(not z <= level)
        if i > 25 and math.isfinite(norm):
            variance = 0.97 * variance + 0.03 * (norm - mean) ** 2
            mean = 0.97 * mean + 0.03 * norm
    return first(np.array(alarms))


def activation_maximum(one: Run) -> int:
    """The largest activation size above 5 times that of the first measurement, at a measurement."""
    sizes = [float(np.max(p["activation_size"])) for _, _, p in one.measured]
    return next((step for (step, _, _), size in zip(one.measured, sizes, strict=True) if not size <= 5 * sizes[0]), -1)


def running_minimum(one: Run) -> int:
    loss = one.signals["loss"]
    return first(loss > 2 * np.minimum.accumulate(loss))


RIVALS: dict[str, Callable[[Run], int]] = {
    "Lightning SpikeDetection": spike_detection,
    "Composer KillLossSpike": kill_loss_spike,
    "ZClip, z > 2.5": lambda one: z_of_gradient(one, 2.5),
    "gradient norm z > 6": lambda one: z_of_gradient(one, 6.0),
    "activation > 5 times": activation_maximum,
    "loss > 2 times its minimum": running_minimum,
    "StableAdamW's lag > 2.3": lambda one: first(one.signals["stable_adamw_lag"] > 2.3),
}


def counted(runs: Sequence[Run], alarms: Sequence[int]) -> dict[str, Any]:
    """How many were warned in time, too early, too late, and how many healthy ones were alarmed."""
    leads = [r.diverged_at - a for r, a in zip(runs, alarms, strict=True) if r.outcome == "diverged" and a >= 0]
    healthy = [a >= 0 for r, a in zip(runs, alarms, strict=True) if r.outcome == "healthy"]
    bad = [a >= 0 for r, a in zip(runs, alarms, strict=True) if r.outcome == "unhealthy"]
    in_time = [lead for lead in leads if LATEST <= lead <= AHEAD]
    return {
        "diverged": sum(r.outcome == "diverged" for r in runs),
        "warned": len(in_time),
        "too_early": sum(lead > AHEAD for lead in leads),
        "too_late": sum(lead < LATEST for lead in leads),
        "healthy": len(healthy),
        "alarmed": sum(healthy),
        "unhealthy": len(bad),
        "bad_alarmed": sum(bad),
        "median_lead": float(np.median(in_time)) if in_time else math.nan,
    }


def clustered(runs: Sequence[Run], alarms: Sequence[int]) -> dict[str, tuple[float, float]]:
    """95 % intervals of both shares, with whole architectures drawn again."""
    rng, nets = np.random.default_rng(0), sorted({r.net for r in runs})
    shares: dict[str, list[float]] = {"warned": [], "alarmed": []}
    by_net = {
        net: counted(*zip(*[(r, a) for r, a in zip(runs, alarms, strict=True) if r.net == net], strict=True))
        for net in nets
    }
    for _ in range(1000):
        drawn = [by_net[net] for net in rng.choice(nets, len(nets))]
        for part, whole in (("warned", "diverged"), ("alarmed", "healthy")):
            if total := sum(each[whole] for each in drawn):
                shares[part].append(sum(each[part] for each in drawn) / total)
    return {part: tuple(np.quantile(values, (0.025, 0.975))) for part, values in shares.items() if values}


def area(runs: Sequence[Run], tables: Sequence[np.ndarray]) -> float:
    """Area under precision over recall of events, over all thresholds of our rule: an event is a late divergence, found
    where it is warned of in time; every other run that is alarmed, and every alarm too early, is a false one."""
    points = []
    for threshold in np.linspace(-8, 8, 65):
        alarms = [first(t @ weights() + rule.OFFSET >= threshold, rule.PATIENCE) for t in tables]
        found = counted(runs, alarms)
        false = found["alarmed"] + found["too_early"]
        if found["warned"] + false:
            points.append((found["warned"] / found["diverged"], found["warned"] / (found["warned"] + false)))
    points.sort()
    return float(sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points)))


def fit(runs: Sequence[Run], tables: Sequence[np.ndarray]) -> None:
    """Logistic regression of "diverges in 15 to 120 steps, or leaves its minimum for good about now", no number
    speaking against it; threshold and patience that warn of most with at most 2 % of the healthy runs alarmed, where a
    run that leaves its minimum for good counts a tenth of one that diverges."""
    rows, labels, weight = [], [], []
    for one, table in zip(runs, tables, strict=True):
        steps, ahead = np.arange(len(table)), one.diverged_at
        if ahead >= 0:
            bad, good, counts = (steps >= ahead - 120) & (steps <= ahead - 15), steps < ahead - AHEAD, 3
        elif one.outcome == "unhealthy":
            begun = leaves_at(one.signals["loss"])
            bad, good, counts = (steps >= begun - 30) & (steps <= begun + 120), steps < begun - AHEAD, 1
        elif one.outcome == "healthy":
            bad, good, counts = steps < 0, steps >= 0, 1
        else:
            continue
        for chosen, label in ((bad & (steps >= QUIET), 1), (good & (steps >= QUIET), 0)):
            if chosen.any():
                rows.append(table[chosen])
                labels += [label] * int(chosen.sum())
                weight += [(counts if label else 1) / chosen.sum()] * int(chosen.sum())
    x, y, w = np.concatenate(rows), np.array(labels), np.array(weight) / np.sum(weight)
    spread = x.std(0) + 1e-9

    def penalized(at: np.ndarray) -> tuple[float, np.ndarray]:
        z = x / spread @ at[:-1] + at[-1]
        residual = w * (1 / (1 + np.exp(-z)) - y)
        value = np.sum(w * (np.logaddexp(0, z) - y * z)) + PENALTY * np.sum(at[:-1] ** 2) / 2
        return value, np.append((x / spread).T @ residual + PENALTY * at[:-1], residual.sum())

    bounds = [(0, None)] * len(FEATURES) + [(None, None)]
    at = minimize(penalized, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds).x
    found = np.where(at[:-1] / spread < 0.01, 0, at[:-1] / spread)
    choices = []
    for patience in (3, 5, 8, 12, 20):
        for threshold in np.arange(-4, 14, 0.25):
            alarms = [first(t @ found + at[-1] >= threshold, patience) for t in tables]
            got = counted(runs, alarms)
            if got["alarmed"] <= 0.02 * got["healthy"]:
                score = got["warned"] - 0.5 * got["too_early"] + 0.1 * got["bad_alarmed"]
                choices.append((score, patience, threshold, got))
    best = max(choices, key=lambda choice: choice[0])
    names = {name: round(float(value), 2) for name, value in zip(FEATURES, found, strict=True) if value > 0}
    print("fitted:", json.dumps(names), f"offset {at[-1]:.2f}, logit {best[2]:.2f}, patience {best[1]}")
    print(best[3])


def main() -> None:
    given = dict(enumerate(sys.argv))
    torch.set_num_threads(1)
    folder = Path(given.get(2) or tempfile.mkdtemp())
    if (minutes := float(given.get(3, 25))) > 0:
        generate(folder, minutes)
    runs = [read(path) for path in sorted(folder.glob("*-*.nc"))]
    sudden = [one for one in runs if one.kind in SUDDEN]
    runs = [one for one in runs if one.kind not in SUDDEN]
    tables = {name: [features(one, every) for one in runs] for name, every in SCHEDULES.items()}
    if given.get(4) == "fit":
        chosen = [i for i, one in enumerate(runs) if one.net in FITTED]
        fit([runs[i] for i in chosen], [tables["every 96"][i] for i in chosen])
    print((__doc__ or "").split("\n")[0], headline(), sep="\n")
    found = []
    for part, nets in (("fitted", FITTED), ("held out", HELD_OUT)):
        chosen = [i for i, one in enumerate(runs) if one.net in nets]
        of_part = [runs[i] for i in chosen]
        outcomes = {name: sum(one.outcome == name for one in of_part) for name in sorted({r.outcome for r in of_part})}
        print(f"\n{part}: {', '.join(nets)}: {len(of_part)} runs, {outcomes}")
        print(f"{'':34}{'warned':>22}{'healthy alarmed':>24}{'early':>7}{'late':>6}{'lead':>6}{'AUPRC':>7}")
        rules = {f"watch, {name}": [ours(rows[i]) for i in chosen] for name, rows in tables.items()}
        rules |= {name: [alarm(one) for one in of_part] for name, alarm in RIVALS.items()}
        for name, alarms in rules.items():
            row = counted(of_part, alarms)
            low_high = clustered(of_part, alarms)
            schedule = name.removeprefix("watch, ")
            auprc = area(of_part, [tables[schedule][i] for i in chosen]) if schedule in tables else math.nan
            texts = [
                f"{row[a]} of {row[b]} ({low_high[a][0]:.0%} {low_high[a][1]:.0%})" if a in low_high else "-"
                for a, b in (("warned", "diverged"), ("alarmed", "healthy"))
            ]
            print(
                f"{name:34}{texts[0]:>22}{texts[1]:>24}{row['too_early']:>7}{row['too_late']:>6}"
                f"{row['median_lead']:>6.0f}{auprc:>7.2f}",
                flush=True,
            )
            found.append({"part": part, "rule": name, **row, "intervals": low_high, "auprc": auprc})
    print(f"\nof the training's time the watch took {np.median([one.share for one in runs]):.0%} (median) at 32 steps")
    print(f"sudden: {len(sudden)} runs, {sum(one.diverged_at >= 0 for one in sudden)} diverged: see injected_failures")
    if given.get(1):
        write_json(given[1], {"runs": len(runs) + len(sudden), "rows": found})


if __name__ == "__main__":
    main()
