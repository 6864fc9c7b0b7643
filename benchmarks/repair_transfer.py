"""Is the gain that `check` promises of a repair real? Told after 50 steps, against held-out loss after 1,000.

Twelve models with the repairs that fit each. The promise is what `check` tells on seeds 0 and 1: the loss at the
horizon as it is over that with the repair, each at its own rate to train at. The truth is the mean held-out loss in
evaluation mode on a fresh seed after 20 times the steps, each at the best of three rates: the one told, a half and a
fifth of it. A sign is right where both ratios lie on the same side of 1, or both within a tenth of it. It resumes.

    python -m benchmarks.repair_transfer [rows.json [model, ...]]
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import normscope as ns
from benchmarks.machine import about, headline, write_json
from benchmarks.rate_zoo import Encoder, Rows, convolutions
from benchmarks.training_tasks import CharGPT, characters, digits_data, mse, named, regression, seeded
from normscope.checkup.repairs import repairs
from normscope.data.batches import batches as batches_of
from normscope.descent.loop import descend
from normscope.descent.optimizers import make_optimizer
from normscope.descent.recipe import preparation
from normscope.model.loss import default_loss
from normscope.rates.stable_lr import recipe_of

STEPS, SEEDS, FRESH, TIMES = 50, 2, (100,), 20
SHARES = (1.0, 0.5, 0.2)
"""Of the rate told, those that the long trainings are made with."""
HELD_OUT = 20
"""Mini-batches."""
ALIKE = 1.1
"""Ratios nearer to 1 are no gain and no loss, as for `check`."""


@dataclass(frozen=True)
class Case:
    build: Callable[[int], nn.Module]
    optimizer: str
    batches: Callable[[int], Iterator[Any]]
    held_out: Callable[[], Iterator[Any]]
    loss_fn: Any = None


def on_digits(build: Any, optimizer: str, size: int = 32) -> Case:
    return Case(
        build,
        optimizer,
        lambda seed: batches_of(digits_data(), size, seed=seed),
        lambda: batches_of(digits_data(), 18, seed=0, split="test", augment=False),
    )


def streamed(build: Any, optimizer: str, stream: Callable[[int], Iterator[Any]], loss_fn: Any = None) -> Case:
    return Case(build, optimizer, stream, lambda: stream(10**6), loss_fn)


ADAMW = "adamw,betas=0.9:0.95,weight_decay=0.1"
MLP_REGRESSION = seeded(
    lambda: nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
)
CASES = {
    "MLP 4, momentum": on_digits(named("mlp4", "none", 48), "momentum"),
    "MLP 8, Adam": on_digits(named("mlp8", "none", 48), "adam"),
    "MLP 10, SGD": on_digits(named("mlp10", "none", 32), "sgd"),
    "MLP 4, momentum, batch 4": on_digits(named("mlp4", "none", 48), "momentum", 4),
    "CNN, SGD": on_digits(convolutions(None), "sgd"),
    "CNN, Adam, batch 4": on_digits(convolutions(None), "adam", 4),
    "ResNet 8, momentum": on_digits(named("resnet8", "none", 4), "momentum"),
    "RNN, Adam": on_digits(seeded(lambda: Rows(nn.RNN)), "adam"),
    "encoder post-norm, AdamW": on_digits(seeded(lambda: Encoder(norm_first=False)), "adamw"),
    "char-GPT, AdamW": streamed(seeded(lambda: CharGPT(norm=False, width=24)), ADAMW, characters),
    "char-GPT LN, AdamW": streamed(seeded(lambda: CharGPT(norm=True, width=24)), ADAMW, characters),
    "regression, Adam": streamed(MLP_REGRESSION, "adam", regression, mse),
}


def held_out_loss(case: Case, made: Any, lr: float, repair: Any) -> float:
    """After the long training, in evaluation mode; inf where it is not finite."""
    losses = []
    loss_fn = case.loss_fn or default_loss
    warmup, clip_norm = (repair.warmup * TIMES, repair.clip_norm) if repair else (0, None)
    recipe = recipe_of(optimizer=case.optimizer, steps=TIMES * STEPS, warmup=warmup, clip_norm=clip_norm)
    for seed in FRESH:
        model = made(seed)
        optimizer = make_optimizer(recipe.optimizer, model.train(), lr)
        torch.manual_seed(seed)
        walk = descend(
            model,
            optimizer,
            case.batches(seed),
            loss_fn=loss_fn,
            steps=recipe.steps,
            before_step=preparation(optimizer, recipe),
        )
        for step in walk:
            if not math.isfinite(float(step.loss)):
                return math.inf
        with torch.no_grad():
            model.eval()
            losses += [float(loss_fn(model, batch)) for batch in islice(case.held_out(), HELD_OUT)]
    mean = float(np.mean(losses))
    return mean if math.isfinite(mean) else math.inf


def measured(name: str, case: Case) -> list[dict[str, Any]]:
    told = {"optimizer": case.optimizer, "steps": STEPS, "seeds": SEEDS, "loss_fn": case.loss_fn, "workers": 1}
    tree = ns.check(case.build, case.batches, **told)
    top = tree.to_dataset()
    batch = next(case.batches(0))
    rows = []
    best: dict[str, float] = {}
    for variant in top["variant"].values.tolist():
        at = top.sel(variant=variant)
        lr, loss = float(at["lr_recommended"]), float(at["horizon_loss"])
        if str(at["status"].values) != "measured" or not lr > 0:
            continue
        repair = None if variant == "as it is" else repairs([variant], steps=STEPS)[0]
        made = repair.applied_to(case.build, batch=batch, loss_fn=case.loss_fn) if repair else case.build
        best[variant] = min(held_out_loss(case, made, share * lr, repair) for share in SHARES)
        row = {"model": name, "repair": variant, "lr": lr, "loss": loss, "held_out": best[variant]}
        if "eval_loss" in at:
            row["eval_loss"] = float(at["eval_loss"])
        rows.append(row)
    return rows


def gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Promised and true ratio of each repair; none of a model that is not measured as it is."""
    base = {r["model"]: r for r in rows if r["repair"] == "as it is"}
    return [
        {
            **r,
            "promised": base[r["model"]]["loss"] / r["loss"],
            "true": (base[r["model"]]["held_out"] or math.inf) / (r["held_out"] or math.inf),
        }
        for r in rows
        if r["repair"] != "as it is" and r["model"] in base
    ]


def side(ratio: float) -> int:
    return 0 if 1 / ALIKE <= ratio <= ALIKE else 1 if ratio > 1 else -1


def summary(rows: list[dict[str, Any]]) -> str:
    told = gains(rows)
    right = [side(g["promised"]) == side(g["true"]) for g in told]
    claimed = [g for g in told if side(g["promised"]) > 0]
    opposite = sum(side(g["promised"]) * side(g["true"]) < 0 for g in told)
    ranks = [np.argsort(np.argsort([g[key] for g in told])) for key in ("promised", "true")]
    lines = [f"{g['model']:26}{g['repair']:16} promised {g['promised']:6.2f}  true {g['true']:6.2f}" for g in told]
    lines.append(
        f"{len(told)} repairs of {len({g['model'] for g in told})} models: sign right in {sum(right)}, opposite in "
        f"{opposite}; of {len(claimed)} gains promised {sum(side(g['true']) > 0 for g in claimed)} are real; rank "
        f"correlation {np.corrcoef(ranks)[0, 1]:.2f}"
    )
    return "\n".join(lines)


def main() -> None:
    print((__doc__ or "").split("\n")[0])
    print(headline())
    torch.set_num_threads(1)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path and path.exists() else []
    described = about()
    for name in sys.argv[2:] or CASES:
        if name in {r["model"] for r in rows}:
            continue
        rows += measured(name, CASES[name])
        for row in rows:
            if row["model"] == name:
                print(
                    f"{name:26}{row['repair']:16}{row['lr']:9.2g}{row['loss']:9.3g}{row['held_out']:9.3g}", flush=True
                )
        if path:
            write_json(path, {**described, "rows": rows})
    print(summary(rows))


if __name__ == "__main__":
    main()
