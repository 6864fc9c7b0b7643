"""Does the search find the rates that an exhaustive grid finds, and at what cost, beside torch-lr-finder's range test?

Small networks on the digits, 100 mini-batches of 32, three seeds. The grid tries ten rates a decade over the four
decades that hold a network's boundaries, on all seeds, with the same early stopping. A boundary is its first failure
going up: of stability (a seed diverges) from the lowest rate, of learning (a seed does not learn) from the rate with
the lowest loss. `off` is how many cells of 10^0.1 ours lies off, as stable/usable; one either way counts as right.
`ragged` says which of the grid's boundaries have a seed that passes above a rate at which it fails: S, U, or both.
Costs are training steps over steps × seeds, the forward passes of our first curve included as a third of a step.

The range test goes over the same four decades in 100 steps, on each seed. Its `stop` (the loss five times the best) is
compared with the first divergence, its `suggestion` (the steepest slope) with the first failure to learn, in decades;
`excess` is the loss at the horizon at the grid's rate next to the suggestion (- where a seed diverges), and at our best
rates, over the grid's lowest. It is left out where torch-lr-finder is not installed.

    python -m benchmarks.stable_lr [rows.json [first seed [rows of another first seed.json]]]

Where single seeds decide, a boundary is a matter of chance. Given another run's rows, the last line says how many
boundaries the two grids, which differ in seeds alone, put within a cell of each other: how far a boundary repeats.
"""

import contextlib
import copy
import io
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from benchmarks.machine import about, headline, write_json
from normscope.data import load_data
from normscope.data.batches import batches as batches_of
from normscope.descent.optimizers import OPTIMIZERS
from normscope.descent.recipe import Recipe
from normscope.nets import build_net
from normscope.rates.bracket import monotone
from normscope.rates.search import CELLS_A_DECADE, lr_of
from normscope.rates.stable_lr import stable_lr
from normscope.rates.starting_point import Starts
from normscope.rates.trial import Trial

STEPS, SEEDS, BATCH_SIZE = 100, 3, 32
DECADES = 4
FIRST_SEED = 100
"""The search was tuned on networks like these with other seeds, its budget with these in view."""


class Transformer(nn.Module):
    """One block on the rows of an image as tokens."""

    def __init__(self, *, norm: bool, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.1 * torch.randn(8, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(3))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.fc = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.squeeze(1)) + self.position
        normed = self.norms[0](x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        x = x + self.mlp(self.norms[1](x))
        return self.fc(self.norms[2](x).mean(1))


def cnn(*, norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for i, channels in enumerate((1, 16, 16, 16)):
        layers.append(nn.Conv2d(channels, 16, 3, padding=1, stride=2 if i == 2 else 1))
        layers += [*([nn.BatchNorm2d(16)] if norm else []), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


def under_seed(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(FIRST_SEED + seed)
        return make()

    return build


def named(net: str, norm: str, width: int) -> Callable[[int], nn.Module]:
    return lambda seed: build_net(net, norm=norm, width=width, in_channels=1, image_size=8, seed=FIRST_SEED + seed)


@dataclass(frozen=True)
class Case:
    build: Callable[[int], nn.Module]
    optimizer: str
    lowest: int
    """log10 of the grid's lowest rate."""


CASES = {
    "softmax regression, SGD": Case(named("mlp1", "none", 64), "sgd", -1),
    "MLP 4, SGD": Case(named("mlp4", "none", 64), "sgd", -3),
    "MLP 4 BN, SGD": Case(named("mlp4", "batch", 64), "sgd", -1),
    "MLP 4, Adam": Case(named("mlp4", "none", 64), "adam", -4),
    "MLP 8, momentum": Case(named("mlp8", "none", 64), "momentum", -3),
    "MLP 8 LN, Adam": Case(named("mlp8", "layer", 64), "adam", -3),
    "CNN 5, SGD": Case(under_seed(lambda: cnn(norm=False)), "sgd", -3),
    "CNN 5, momentum": Case(under_seed(lambda: cnn(norm=False)), "momentum", -3),
    "CNN 5, Adam": Case(under_seed(lambda: cnn(norm=False)), "adam", -4),
    "CNN 5 BN, SGD": Case(under_seed(lambda: cnn(norm=True)), "sgd", -2),
    "CNN 5 BN, AdamW": Case(under_seed(lambda: cnn(norm=True)), "adamw", -3),
    "ResNet 8, Adam": Case(named("resnet8", "none", 8), "adam", -4),
    "ResNet 8 BN, momentum": Case(named("resnet8", "batch", 8), "momentum", -1),
    "transformer, SGD": Case(under_seed(lambda: Transformer(norm=False)), "sgd", -3),
    "transformer LN, Adam": Case(under_seed(lambda: Transformer(norm=True)), "adam", -3),
}


def mini_batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The training batches of the digits, those of each seed in an order of their own."""
    return islice(batches_of(digits(), BATCH_SIZE, seed=FIRST_SEED + seed), STEPS)


@cache
def digits() -> Any:
    return load_data("digits")


@dataclass(frozen=True)
class Grid:
    tries: dict[tuple[int, int], Trial]
    stable: int | None
    """The first cell that fails; None where none does."""
    usable: int | None
    ragged: str

    @property
    def steps(self) -> int:
        return sum(len(t.losses) for t in self.tries.values())

    def loss(self, cell: int) -> float:
        return float(np.mean([self.tries[cell, seed].horizon_loss for seed in range(SEEDS)]))


def grid_of(case: Case) -> Grid:
    """Every rate on every seed."""
    starts = Starts(case.build, mini_batches, STEPS, loss_fn=None, fine_tuning=None)
    recipe = Recipe(OPTIMIZERS[case.optimizer], STEPS)
    low = case.lowest * CELLS_A_DECADE
    cells = range(low, low + DECADES * CELLS_A_DECADE + 1)
    tries = {(cell, seed): starts.try_at(lr_of(cell), seed, recipe) for cell in cells for seed in range(SEEDS)}
    stable = {key: t.outcome != "diverged" for key, t in tries.items()}
    learns = {key: t.outcome == "learns" for key, t in tries.items()}
    learning = [cell for cell in cells if all(learns[cell, seed] for seed in range(SEEDS))]
    losses = {cell: np.mean([tries[cell, seed].horizon_loss for seed in range(SEEDS)]) for cell in learning}
    best = min(losses, key=lambda cell: losses[cell], default=cells[-1])
    above = {key: passed for key, passed in learns.items() if key[0] >= best}
    ragged = ("" if monotone(stable) else "S") + ("" if monotone(above) else "U")
    return Grid(tries, first_failure(stable), first_failure(above), ragged)


def first_failure(passed: dict[tuple[int, int], bool]) -> int | None:
    return min((cell for (cell, _), ok in passed.items() if not ok), default=None)


@dataclass(frozen=True)
class RangeTest:
    stop: float
    suggestion: float
    steps: int


def range_test(case: Case) -> RangeTest | None:
    """torch-lr-finder on each seed: medians of where it stops and what it suggests; None where not installed."""
    try:
        from torch_lr_finder import LRFinder
    except ImportError:
        return None
    stops, suggestions, steps = [], [], 0
    for seed in range(SEEDS):
        model = copy.deepcopy(case.build(seed)).train()
        optimizer = OPTIMIZERS[case.optimizer](model.parameters(), 10.0**case.lowest)
        loader = torch.utils.data.DataLoader(list(mini_batches(seed)), batch_size=None)
        finder = LRFinder(model, optimizer, nn.CrossEntropyLoss(), device="cpu")
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            finder.range_test(loader, end_lr=10.0 ** (case.lowest + DECADES), num_iter=STEPS)
        lrs, losses = finder.history["lr"], finder.history["loss"]
        steps += len(lrs)
        stops.append(lrs[-1])
        # as its `plot` suggests, with the ends that it cuts off
        suggestions.append(lrs[10:-5][int(np.gradient(np.asarray(losses[10:-5])).argmin())])
    return RangeTest(median(stops), median(suggestions), steps)


@dataclass(frozen=True)
class Result:
    name: str
    grid: tuple[int | None, int | None]
    ours: tuple[int | None, int | None]
    off: tuple[float, float]
    found: tuple[str, str]
    ragged: str
    cost: float
    grid_cost: float
    seconds: float
    grid_seconds: float
    excess: float
    range_test: dict[str, float] | None


def compare(name: str, case: Case) -> Result:
    began = time.perf_counter()
    ours = stable_lr(
        case.build,
        mini_batches,
        optimizer=case.optimizer,
        steps=STEPS,
        seeds=SEEDS,
        lr_range=(10.0**case.lowest, 10.0 ** (case.lowest + DECADES)),
        recommend=False,
    )
    middle = time.perf_counter()
    grid = grid_of(case)
    ended = time.perf_counter()
    edges = tuple(upper_cell(ours, boundary) for boundary in ("lr_stable", "lr_usable"))
    lowest = min(loss for cell, _ in grid.tries if math.isfinite(loss := grid.loss(cell)))
    best = [round(CELLS_A_DECADE * math.log10(lr)) for lr in ours["lr"].values[ours["best_at_horizon"].values]]
    unit = STEPS * SEEDS
    return Result(
        name,
        (grid.stable, grid.usable),
        edges,
        (cells_off(edges[0], grid.stable), cells_off(edges[1], grid.usable)),
        (str(ours["lr_stable_found"].values), str(ours["lr_usable_found"].values)),
        grid.ragged,
        (int(ours["train_steps"]) + int(ours["probe_passes"]) / 3) / unit,
        grid.steps / unit,
        middle - began,
        ended - middle,
        max((grid.loss(cell) / lowest for cell in best), default=math.nan),
        tested(range_test(case), grid, lowest),
    )


def upper_cell(dataset: xr.Dataset, boundary: str) -> int | None:
    high = float(dataset[f"{boundary}_bracket"].values[1])
    return round(CELLS_A_DECADE * math.log10(high)) if 0 < high < math.inf else None


def cells_off(ours: int | None, grid: int | None) -> float:
    if ours is None or grid is None:
        return 0.0 if ours is grid else math.inf
    return float(ours - grid)


def within_a_cell(offs: list[float]) -> int:
    return sum(abs(off) <= 1 for off in offs)


def tested(found: RangeTest | None, grid: Grid, lowest: float) -> dict[str, float] | None:
    if found is None:
        return None
    cells = sorted({cell for cell, _ in grid.tries})
    nearest = min(cells, key=lambda cell: abs(cell - CELLS_A_DECADE * math.log10(found.suggestion)))
    return {
        "stop_off": decades_off(found.stop, grid.stable),
        "suggestion_off": decades_off(found.suggestion, grid.usable),
        "excess": grid.loss(nearest) / lowest,
        "cost": found.steps / (STEPS * SEEDS),
    }


def decades_off(lr: float, cell: int | None) -> float:
    return math.nan if cell is None else math.log10(lr) - cell / CELLS_A_DECADE


def line(result: Result) -> str:
    grid, ours, off = (
        "/".join("none" if x is None else f"{x:+.0f}" for x in pair) for pair in (result.grid, result.ours, result.off)
    )
    unfinished = "".join(letter for letter, found in zip("SU", result.found, strict=True) if found == "unfinished")
    text = f"{result.name:25}{grid:>9}{ours:>9}{off:>7}{result.ragged:>7}{unfinished:>11}{result.cost:7.2f}"
    text += f"{result.grid_cost:7.1f}{result.grid_cost / result.cost:7.1f}{result.excess:8.2f}"
    if (test := result.range_test) is not None:
        excess = f"{test['excess']:.2f}" if math.isfinite(test["excess"]) else "-"
        text += f"{test['stop_off']:+9.1f}{test['suggestion_off']:+12.1f}{excess:>8}{test['cost']:6.2f}"
    return text


HEADER = f"""{"":25}{"boundaries in cells":^25}{"":18}{"steps / (steps × seeds)":^21}{"":8}{"torch-lr-finder":^35}
{"":25}{"grid":>9}{"ours":>9}{"off":>7}{"ragged":>7}{"unfinished":>11}{"ours":>7}{"grid":>7}{"ratio":>7}{"excess":>8}"""
HEADER += f"{'stop':>9}{'suggestion':>12}{'excess':>8}{'cost':>6}"


def summary(results: list[Result]) -> str:
    offs = [off for result in results for off in result.off]
    right = within_a_cell(offs)
    regular = [off for r in results for off, letter in zip(r.off, "SU", strict=True) if letter not in r.ragged]
    right_regular = within_a_cell(regular)
    unfinished = sum(found == "unfinished" for result in results for found in result.found)
    ratios = [result.grid_cost / result.cost for result in results]
    return (
        f"{right} of {len(offs)} boundaries right ({right / len(offs):.0%}): {right_regular} of {len(regular)} "
        f"that are not ragged, {right - right_regular} of {len(offs) - len(regular)} that are; "
        f"{unfinished} unfinished; cost {median(r.cost for r in results):.1f} (median), "
        f"{max(r.cost for r in results):.2f} (most); the grid takes {min(ratios):.1f} to {max(ratios):.1f} times the "
        f"steps, {sum(r.grid_cost for r in results) / sum(r.cost for r in results):.1f} times in all"
    )


def repeated(results: list[Result], others: list[dict[str, Any]]) -> str:
    """How well the grid agrees with that of other seeds."""
    offs = [
        cells_off(*boundary)
        for result, other in zip(results, others, strict=True)
        for boundary in zip(result.grid, other["grid"], strict=True)
    ]
    return (
        f"the grid of the other seeds has {within_a_cell(offs)} of {len(offs)} boundaries within a cell of this one's"
    )


def main() -> None:
    global FIRST_SEED
    FIRST_SEED = int(sys.argv[2]) if len(sys.argv) > 2 else FIRST_SEED
    print((__doc__ or "").split("\n")[0])
    print(headline())
    print(HEADER)
    results, described = [], about()
    for name, case in CASES.items():
        results.append(compare(name, case))
        print(line(results[-1]), flush=True)
        if len(sys.argv) > 1:
            write_json(sys.argv[1], {**described, "rows": [asdict(result) for result in results]})
    print(summary(results))
    if len(sys.argv) > 3:
        print(repeated(results, json.loads(Path(sys.argv[3]).read_text())["rows"]))


if __name__ == "__main__":
    main()
