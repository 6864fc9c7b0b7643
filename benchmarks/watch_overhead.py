"""What share of a training's time does a watch take at its default, and how many measurements does that buy?

Two trainings of the same network, one of them watched, take turns step by step; the watch's clock runs during its own
steps only. Printed are the watched time over the bare time, summed over steps, and the share that the watch keeps to
by its own book. Target: at most 1.02.

    python -m benchmarks.watch_overhead [rows.json [STEPS]]
"""

import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.machine import about, headline, write_json
from benchmarks.training_runs import Patches, Transformer
from normscope.data import load_data
from normscope.data.batches import batches
from normscope.model.loss import default_loss
from normscope.monitoring.watch import watch
from normscope.nets import build_net

WARM_UP = 3


def networks() -> dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]]:
    """By name: a build, and what gives a batch."""
    digits = batches(load_data("digits"), 64, seed=0)
    return {
        "ResNet-20": (lambda: build_net("resnet20", norm="batch", in_channels=1, seed=0), lambda: next(digits)),
        "ResNet-56": (lambda: build_net("resnet56", norm="batch", in_channels=1, seed=0), lambda: next(digits)),
        "char-GPT": (
            lambda: Transformer(nn.Embedding(96, 128), 64, 96, causal=True, width=128),
            lambda: (torch.randint(96, (32, 64)), torch.randint(96, (32, 64))),
        ),
        "ViT": (
            lambda: Transformer(Patches(128), 64, 10, causal=False, width=128),
            lambda: (torch.randn(32, 3, 32, 32), torch.randint(10, (32,))),
        ),
    }


def compare(build: Callable[[], nn.Module], draw: Callable[[], Any], steps: int, folder: str) -> dict[str, float]:
    models = [build(), build()]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]
    spent = [0.0, 0.0]
    with watch(models[1], optimizers[1], out=folder) as seen:
        seen.schedule.clock = lambda: spent[1] + time.perf_counter() - now
        now = time.perf_counter()
        seen.schedule.begun = 0.0
        for step in range(steps + WARM_UP):
            batch = draw()
            for which in (0, 1) if step % 2 else (1, 0):
                now = time.perf_counter()
                model, optimizer = models[which], optimizers[which]
                optimizer.zero_grad()
                loss = default_loss(model, batch)
                loss.backward()
                if which:
                    seen.step(loss, batch)
                optimizer.step()
                spent[which] += time.perf_counter() - now
            if step == WARM_UP - 1:
                spent[:] = [0.0, 0.0]
                seen.schedule.spent = 0.0
        share = seen.schedule.share
    seconds = [m.scalars["seconds"] for m in seen.measurements]
    return {
        "ratio": spent[1] / spent[0],
        "share": share,
        "measurements": len(seconds),
        "steps": steps,
        "step_seconds": spent[0] / steps,
        "measurement_in_steps": sum(seconds) / len(seconds) / (spent[0] / steps) if seconds else float("nan"),
    }


def main() -> None:
    torch.set_num_threads(1)
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 400
    print((__doc__ or "").split("\n")[0], headline(), sep="\n")
    print(f"{'':12}{'ratio':>8}{'share':>8}{'measured':>10}{'of steps':>10}{'s a step':>10}{'steps each':>12}")
    found = []
    for name, (build, draw) in networks().items():
        with tempfile.TemporaryDirectory() as folder:
            row = compare(build, draw, steps, folder)
        print(
            f"{name:12}{row['ratio']:8.3f}{row['share']:8.3f}{row['measurements']:10.0f}{row['steps']:10.0f}"
            f"{row['step_seconds']:10.4f}{row['measurement_in_steps']:12.1f}",
            flush=True,
        )
        found.append({"name": name, **row})
    if len(sys.argv) > 1:
        write_json(sys.argv[1], {**about(), "rows": found})


if __name__ == "__main__":
    main()
