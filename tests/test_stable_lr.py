"""Rates: known answers, the exhaustive grid, what is said of every try, and everything that can be wrong."""

import copy
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

import normscope as ns
from normscope.descent.optimizers import OPTIMIZERS
from normscope.descent.recipe import Recipe, preparation
from normscope.errors import DataError, DeviceError, InvalidBatch, InvalidConfig, InvalidModel, NormscopeError
from normscope.model.mini_batches import mini_batches
from normscope.rates.search import lr_of
from normscope.rates.starting_point import Starts
from normscope.results import attribute

matplotlib.use("agg")

FEATURES, CLASSES, EXAMPLES = 12, 4, 32


def data(num_batches: int = 16, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Mini-batches of a problem that a linear map solves."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(99))
    batches = []
    for _ in range(num_batches):
        inputs = torch.randn(EXAMPLES, FEATURES, generator=generator)
        batches.append((inputs, (inputs @ teacher).argmax(1)))
    return batches


def mlp(seed: int, *, norm: bool = False, depth: int = 3) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(FEATURES if i == 0 else 24, 24)]
        layers += ([nn.BatchNorm1d(24)] if norm else []) + [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(24, CLASSES))


def shallow(seed: int) -> nn.Module:
    return mlp(seed, depth=1)


def outcomes(dataset: xr.Dataset) -> dict[tuple[float, int], str]:
    stacked = dataset["outcome"].stack(pair=("lr", "seed"))
    return {
        pair: str(o)
        for pair, o in zip(stacked["pair"].values.tolist(), stacked.values, strict=True)
        if o != "not tried"
    }


def same_bits(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# Known answers


class Quadratic(nn.Module):
    """ℓ(w) = ½ Σ λ_i w_i² + 1: gradient descent leaves its minimum as soon as the rate is above 2/λ_max."""

    def __init__(self, curvatures: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, len(curvatures)))
        self.register_buffer("curvatures", torch.tensor(curvatures))

    def forward(self) -> Tensor:
        return 0.5 * (self.curvatures * self.weight.square()).sum() + 0.001


def quadratic_loss(model: nn.Module, batch: Any) -> Tensor:
    return model()


@pytest.mark.parametrize(
    ("optimizer", "numerator"), [("sgd", 2.0), ("momentum", 3.8), (lambda p, lr: torch.optim.SGD(p, lr), 2.0)]
)
def test_a_quadratic_diverges_above_two_over_its_curvature(optimizer: Any, numerator: float) -> None:
    """At 2(1 + momentum)/λ. The curvature puts it well inside a cell of the lattice: one step at the upper end of the
    bracket multiplies the parameter by 1.2, so that 300 steps tell; at the lower end nothing grows."""
    curvature = 7.0
    dataset = ns.stable_lr(
        lambda: Quadratic([curvature, 0.5]),
        [None],
        optimizer=optimizer,
        loss_fn=quadratic_loss,
        seeds=1,
        steps=300,
        recommend=False,
    )
    low, high = dataset["lr_stable_bracket"].values
    assert str(dataset["lr_stable_found"].values) == "bracketed"
    assert math.isclose(high / low, 10**0.1)
    assert low <= numerator / curvature * 1.01 and high >= numerator / curvature * 0.99
    assert float(dataset["lr_stable"]) == low


def grid_edges(build: Any, batches: Any, optimizer: str, cells: range, steps: int, seeds: int) -> tuple[int, int]:
    """First failing cells by trying every cell on every seed: of stability, and of learning from the lowest loss up."""
    starts = Starts(build, batches, steps, loss_fn=None, fine_tuning=None)
    recipe = Recipe(OPTIMIZERS[optimizer], steps)
    tries = {(cell, seed): starts.try_at(lr_of(cell), seed, recipe) for cell in cells for seed in range(seeds)}
    learning = [c for c in cells if all(tries[c, s].outcome == "learns" for s in range(seeds))]
    best = min(learning, key=lambda c: sum(tries[c, s].horizon_loss for s in range(seeds)))
    stable = next(c for c in cells if any(tries[c, s].outcome == "diverged" for s in range(seeds)))
    return stable, next(c for c in cells if c > best and c not in learning)


@pytest.mark.parametrize(
    ("optimizer", "cells"), [("sgd", range(-4, 11)), ("momentum", range(-14, 6)), ("adam", range(-16, 11))]
)
def test_brackets_agree_with_the_exhaustive_grid(optimizer: str, cells: range) -> None:
    """One cell either way is allowed: outcomes on the boundary hang on single mini-batches."""
    batches, steps, seeds = data(), 30, 2
    dataset = ns.stable_lr(shallow, batches, optimizer=optimizer, steps=steps, seeds=seeds, max_train_steps=2000)
    grid = grid_edges(shallow, batches, optimizer, cells, steps, seeds)
    ours = [round(10 * math.log10(dataset[f"{name}_bracket"].values[1])) for name in ("lr_stable", "lr_usable")]
    assert np.abs(np.subtract(ours, grid)).max() <= 1
    assert [str(dataset[f"{name}_found"].values) for name in ("lr_stable", "lr_usable")] == ["bracketed"] * 2


# What is said


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    return ns.stable_lr(shallow, data(), optimizer="sgd", steps=40)


def test_every_try_is_in_the_result(dataset: xr.Dataset) -> None:
    tried = dataset["outcome"].values != "not tried"
    steps_taken = dataset["steps_taken"].values
    assert (steps_taken[~tried] == 0).all() and (steps_taken[tried] > 0).all()
    assert int(dataset["train_steps"]) == steps_taken.sum() <= 8 * 40 * 3
    assert sorted(dataset["order"].values[tried]) == list(range(tried.sum()))
    real = np.arange(40) < steps_taken[..., None]
    assert np.isnan(dataset["loss"].values[~real]).all()
    diverged = dataset["outcome"].values == "diverged"
    left = dataset["outcome"].values == "left early"
    assert left.any() and (steps_taken[left] < 40).all() and np.isnan(dataset["horizon_loss"].values[left]).all()
    tried = tried & ~left
    assert (steps_taken[tried & ~diverged] == 40).all()
    assert (steps_taken[diverged] < 40).all(), "diverging tries are stopped at once"
    assert np.isfinite(dataset["loss"].values[tried & ~diverged]).all()
    last_tenth = dataset["loss"].values[..., -4:].mean(-1)
    np.testing.assert_allclose(dataset["horizon_loss"].values[tried & ~diverged], last_tenth[tried & ~diverged])
    assert np.isnan(dataset["horizon_loss"].values[diverged]).all()


def test_the_rate_to_train_at_is_tied_with_its_neighbours_and_learns(dataset: xr.Dataset) -> None:
    low, lr, high = (float(dataset[f"lr_recommended{end}"]) for end in ("_low", "", "_high"))
    assert low <= lr <= high <= float(dataset["lr_usable"])
    assert str(dataset["lr_recommended_found"].values) == "learns on every seed"
    losses = dataset["horizon_loss"].sel(lr=lr)
    assert float(dataset["lr_recommended_loss"]) == float(losses.mean()) and losses.notnull().all()


class Noisy(nn.Sequential):
    """With dropout, batch norm and a buffer of its own that is bound anew in every forward pass."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(FEATURES, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, CLASSES)
        )
        self.register_buffer("mean", torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.mean = 0.9 * self.mean + 0.1 * out.detach().float().mean(0)
        return out - self.mean


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_trial_that_is_left_goes_on_with_the_same_bits(precision: str) -> None:
    torch.manual_seed(0)
    model, batches = Noisy(), data()
    recipe = Recipe(
        OPTIMIZERS["adam"],
        12,
        clip_norm=1.0,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
        accumulate=2,
        precision=precision,
    )
    starts = Starts(model, batches, 12, loss_fn=None, fine_tuning=None, accumulate=2)
    before = copy.deepcopy(model.state_dict())
    whole = starts.descent(0.03, 1, recipe).go_on()
    parts = starts.descent(0.03, 1, recipe)
    assert [parts.go_on(until).outcome for until in (1, 5)] == [None, None]
    torch.rand(3)
    assert parts.nbytes > sum(p.nbytes for p in model.parameters())
    again = parts.go_on()
    np.testing.assert_array_equal(whole.losses, again.losses)
    assert again.outcome is whole.outcome and len(again.losses) == 12
    assert same_bits(model, before)


def test_accumulated_gradients_are_those_of_the_joined_batch() -> None:
    batches = data(8)
    joined = [
        tuple(torch.cat(parts) for parts in zip(*pair, strict=True))
        for pair in zip(batches[::2], batches[1::2], strict=True)
    ]
    recipe = Recipe(OPTIMIZERS["momentum"], 4, accumulate=2)
    one = Starts(mlp(0), lambda _: iter(batches), 4, loss_fn=None, fine_tuning=None, accumulate=2)
    other = Starts(one.model(0), lambda _: iter(joined), 4, loss_fn=None, fine_tuning=None)
    found, expected = one.try_at(0.1, 0, recipe), other.try_at(0.1, 0, Recipe(OPTIMIZERS["momentum"], 4))
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)  # sums in another order


def test_steps_that_overflow_in_float16_are_skipped_and_counted() -> None:
    """Gradients of 2 times the first scale, 65536, overflow: the scale is halved until they fit."""

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return 300 * self.layer(x)

    starts = Starts(lambda: Steep(), data(), 10, loss_fn=None, fine_tuning=None)
    trial = starts.try_at(1e-4, 0, Recipe(OPTIMIZERS["sgd"], 10, precision="fp16"))
    assert 0 < trial.skipped < 10 and np.isfinite(trial.losses).all()


def test_brackets_are_confirmed_on_all_seeds(dataset: xr.Dataset) -> None:
    for name, fails in (
        ("lr_stable", lambda o: o == "diverged"),
        ("lr_usable", lambda o: o not in ("learns", "not tried")),
    ):
        assert str(dataset[f"{name}_found"].values) == "bracketed"
        low, high = dataset[f"{name}_bracket"].values
        assert math.isclose(high / low, 10**0.1)
        at_low = dataset["outcome"].sel(lr=low).values
        assert "not tried" not in at_low and not any(map(fails, at_low))
        assert any(map(fails, dataset["outcome"].sel(lr=high).values))
    assert float(dataset["lr_usable"]) <= float(dataset["lr_stable"])


def test_best_at_horizon_is_a_set_that_learns(dataset: xr.Dataset) -> None:
    best = dataset.sel(lr=dataset["best_at_horizon"])
    assert best.sizes["lr"] >= 1
    assert set(np.unique(best["outcome"].values)) <= {"learns", "not tried"}
    assert (best["lr"] <= float(dataset["lr_usable"])).all()


def test_the_result_survives_the_disk_and_says_where_it_comes_from(dataset: xr.Dataset, tmp_path: Any) -> None:
    xr.testing.assert_identical(dataset, ns.load(ns.save(dataset, tmp_path / "rates.nc")))
    assert attribute(dataset, "optimizer") == "sgd"
    assert attribute(dataset, "fine_tuning") is False
    assert attribute(dataset, "different_batches") == 16
    for variable in (*dataset.data_vars.values(), *dataset.coords.values()):
        assert {"long_name", "units"} <= variable.attrs.keys()


def test_the_same_bits_again(dataset: xr.Dataset) -> None:
    xr.testing.assert_identical(dataset, ns.stable_lr(shallow, data(), optimizer="sgd", steps=40))


def test_where_nothing_diverges_it_is_a_bound() -> None:
    dataset = ns.stable_lr(mlp, data(), optimizer="sgd", steps=20, seeds=2, lr_range=(1e-3, 0.1))
    assert float(dataset["lr_stable"]) == math.inf
    assert str(dataset["lr_stable_found"].values) == "above the range"
    np.testing.assert_allclose(dataset["lr_stable_bracket"].values, [0.1, math.inf])


def test_where_nothing_learns_it_is_said() -> None:
    def noise(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randn(8, FEATURES, generator=generator), torch.randint(CLASSES, (8,), generator=generator)

    dataset = ns.stable_lr(mlp, noise, optimizer="sgd", steps=20, seeds=2, max_train_steps=10_000)
    assert str(dataset["lr_usable_found"].values) == "nowhere"
    assert np.isnan(float(dataset["lr_usable"]))
    assert not dataset["best_at_horizon"].any()


def test_a_spent_budget_leaves_boundaries_unfinished() -> None:
    dataset = ns.stable_lr(mlp, data(), optimizer="sgd", steps=20, budget_seconds=0)
    assert dataset.sizes["lr"] == 0 and int(dataset["train_steps"]) == 0
    assert str(dataset["lr_stable_found"].values) == str(dataset["lr_usable_found"].values) == "unfinished"
    dataset = ns.stable_lr(mlp, data(), optimizer="sgd", steps=20, max_train_steps=100)
    assert 0 < int(dataset["train_steps"]) <= 100
    assert str(dataset["lr_usable_found"].values) == "unfinished"


# Where tries start, and what they see


def test_an_instance_comes_back_bit_for_bit() -> None:
    model = mlp(0, norm=True).eval()
    model[0].weight.requires_grad_(False)
    model[3].bias.grad = torch.ones(24)
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    dataset = ns.stable_lr(model, data(), optimizer="adam", steps=10, seeds=2)
    assert same_bits(model, state) and torch.equal(torch.get_rng_state(), rng)
    assert not model.training and model[3].bias.grad is not None and model[0].weight.grad is None
    assert not model[0].weight.requires_grad
    assert attribute(dataset, "seeds_vary") == "the order of batches"


def test_the_same_batches_for_the_same_seed_at_every_rate() -> None:
    seen: dict[int, list[float]] = {}
    runs: list[list[float]] = []

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        if torch.is_grad_enabled() and "forward" not in vars(model):  # where L_c is fitted, the model is not asked
            runs[-1].append(float(batch[0][0, 0]))
        return F.cross_entropy(model(batch[0]), batch[1])

    batches, made = data(8), []

    def optimizer(params: Any, lr: float) -> torch.optim.Optimizer:
        runs.append([])
        made.append(lr)
        return torch.optim.SGD(params, lr)

    runs.append([])
    dataset = ns.stable_lr(
        lambda seed: mlp(seed), batches, optimizer=optimizer, loss_fn=loss_fn, steps=12, seeds=2, recommend=False
    )
    # the last runs are the tries, in their order: compare each with the longest of its seed
    tries = sorted(
        (int(dataset["order"].values[i, j]), j, int(dataset["steps_taken"].values[i, j]))
        for i, j in zip(*np.nonzero(dataset["steps_taken"].values), strict=True)
    )
    for (_, seed, steps), walked in zip(tries, runs[-len(tries) :], strict=True):
        assert len(walked) == steps
        longest = seen.setdefault(seed, walked)
        assert walked[: len(longest)] == longest[: len(walked)]
        seen[seed] = max(walked, longest, key=len)
    assert seen[0] != seen[1]
    assert set(seen[0]) <= {float(inputs[0, 0]) for inputs, _ in batches}


@pytest.mark.parametrize("kind", ["takes seed", "takes keyword", "takes nothing", "class with defaults"])
def test_builds_get_the_seed_or_run_under_it(kind: str) -> None:
    class Net(nn.Module):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.linear = nn.Linear(2, width)

    def keyword(*, seed: int) -> nn.Module:
        assert seed in (0, 1)
        return nn.Linear(2, 3)

    build: Any = {
        "takes seed": lambda s: nn.Linear(2, 3),
        "takes keyword": keyword,
        "takes nothing": lambda: nn.Linear(2, 3),
        "class with defaults": Net,
    }[kind]
    before = torch.get_rng_state()
    first = Starts(build, [1], 2, loss_fn=None, fine_tuning=None)
    second = Starts(build, [1], 2, loss_fn=None, fine_tuning=None)
    assert same_bits(first.model(0), second.model(0).state_dict())
    assert not same_bits(first.model(0), first.model(1).state_dict())
    assert first.model(0) is first.model(0)
    assert torch.equal(torch.get_rng_state(), before)


def trained() -> nn.Module:
    torch.manual_seed(0)
    model = mlp(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        for inputs, labels in data():
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return model


def test_fine_tuning_learns_where_it_does_not_end_above_its_start() -> None:
    """A trained model at a small rate stays where it is: fine for fine-tuning, and stalled for a fresh start."""
    model, batches = trained(), data()
    tuned = ns.stable_lr(model, batches, optimizer="sgd", steps=20, seeds=2, lr_range=(1e-6, 1e-4))
    assert attribute(tuned, "fine_tuning") is True
    assert set(outcomes(tuned).values()) == {"learns"}
    assert str(tuned["lr_usable_found"].values) == "above the range"
    fresh = ns.stable_lr(model, batches, optimizer="sgd", steps=20, seeds=2, lr_range=(1e-6, 1e-4), fine_tuning=False)
    assert set(outcomes(fresh).values()) == {"stalled"}
    untrained = ns.stable_lr(mlp(0), batches, optimizer="sgd", steps=20, seeds=2)
    assert attribute(untrained, "fine_tuning") is False


def test_warmup_and_clipping_come_before_the_step() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    before_step = preparation(optimizer, Recipe(OPTIMIZERS["sgd"], 10, warmup=4, clip_norm=0.5))
    rates = []
    for index in range(6):
        parameter.grad = torch.tensor([3.0, 4.0])
        before_step(index)
        rates.append(optimizer.param_groups[0]["lr"])
        assert math.isclose(float(parameter.grad.norm()), 0.5, rel_tol=1e-4)
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1, 1, 1])


def test_clipping_raises_the_stable_rate() -> None:
    """A quadratic's gradient grows with the distance; clipped, the steps do not, and nothing can blow up."""
    plain = {"optimizer": "sgd", "loss_fn": quadratic_loss, "seeds": 1, "steps": 50}
    free = ns.stable_lr(lambda: Quadratic([7.0]), [None], **plain)
    clipped = ns.stable_lr(lambda: Quadratic([7.0]), [None], clip_norm=0.1, **plain)
    assert float(clipped["lr_stable"]) > 10 * float(free["lr_stable"])


# Batches of any kind


class Wrapped(nn.Module):
    """Called as models of the Hugging Face library are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(0)

    def forward(self, inputs: Tensor, labels: Tensor) -> SimpleNamespace:
        logits = self.body(inputs)
        return SimpleNamespace(loss=F.cross_entropy(logits, labels), logits=logits)


def test_mappings_and_objects() -> None:
    mappings = [{"inputs": inputs, "labels": labels} for inputs, labels in data(4)]
    reference = ns.stable_lr(Wrapped, mappings, optimizer="sgd", steps=10, seeds=1)
    objects = [SimpleNamespace(**mapping) for mapping in mappings]
    other = ns.stable_lr(
        Wrapped, objects, optimizer="sgd", steps=10, seeds=1, loss_fn=lambda m, b: m(b.inputs, b.labels).loss
    )
    # the same losses; what is called learning differs, since nobody knows the targets of an object
    common = np.intersect1d(reference["lr"], other["lr"])
    np.testing.assert_array_equal(reference["loss"].sel(lr=common), other["loss"].sel(lr=common))
    assert np.isnan(other["constant_loss"]).all() and np.isfinite(reference["constant_loss"]).all()


def test_endless_batches_are_taken_as_needed() -> None:
    taken = []

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(10**9):
            taken.append(index)
            yield data(1, seed=index)[0]

    dataset = ns.stable_lr(mlp, endless(), optimizer="sgd", steps=8, seeds=2)
    assert len(taken) == 8 == attribute(dataset, "different_batches")


def test_one_batch_is_walked_again_and_again() -> None:
    of_seed, number = mini_batches(["only"], 5)
    walked = of_seed(0)
    assert number == 1 and [next(walked) for _ in range(7)] == ["only"] * 7


def test_orders_differ_by_seed_and_are_the_same_again() -> None:
    of_seed, number = mini_batches(iter(range(6)), 6)

    def first(seed: int, count: int = 12) -> list[int]:
        walked = of_seed(seed)
        return [next(walked) for _ in range(count)]

    assert number == 6 and first(0) == first(0) != first(1)
    assert sorted(first(1)[:6]) == sorted(first(1)[6:]) == list(range(6))


def test_a_function_of_the_seed_is_called_anew_and_again_when_it_ends() -> None:
    calls = []

    def source(seed: int) -> list[int]:
        calls.append(seed)
        return [seed, seed + 10]

    of_seed, number = mini_batches(source, 100)
    walked = of_seed(3)
    assert number is None and [next(walked) for _ in range(5)] == [3, 13, 3, 13, 3] and calls == [3, 3, 3]


def test_big_batches_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normscope.model.mini_batches.KEPT_BYTES", 3 * 40)
    _, number = mini_batches((torch.zeros(10) for _ in range(50)), 50)
    assert number == 4
    _, number = mini_batches(({"x": torch.zeros(1000)} for _ in range(50)), 50)
    assert number == 2


# Everything that can be wrong


def raising() -> Iterator[Any]:
    yield data(1)[0]
    raise OSError("disk on fire")


def endless_nan() -> Iterator[Any]:
    inputs, labels = data(1)[0]
    while True:
        yield inputs * math.nan, labels


class OutOfMemory(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate 99 GiB")


GOOD = {"model_or_build": lambda: mlp(0), "batches": data(4), "optimizer": "sgd", "steps": 6, "seeds": 2}

BAD: dict[str, tuple[dict[str, Any], type[NormscopeError], str]] = {
    "empty loader": ({"batches": []}, InvalidBatch, "gives no batch"),
    "empty iterator": ({"batches": iter([])}, InvalidBatch, "gives no batch"),
    "empty function": ({"batches": lambda seed: []}, InvalidBatch, "gives no batch"),
    "one batch as batches": ({"batches": data(1)[0]}, InvalidBatch, "batches is a tuple"),
    "a number as batches": ({"batches": 3}, InvalidBatch, "batches is a int"),
    "loader raises": ({"batches": raising()}, DataError, "OSError after 1 of them: disk on fire"),
    "function raises": ({"batches": lambda seed: raising()}, DataError, "disk on fire"),
    "function cannot be called": ({"batches": lambda: data(1)}, DataError, "TypeError after 0"),
    "wrong shape": (
        {"batches": [(torch.zeros(4, 5), torch.zeros(4, dtype=torch.long))]},
        InvalidBatch,
        "does not take",
    ),
    "labels out of range": (
        {"batches": [(torch.zeros(4, FEATURES), torch.full((4,), 9))]},
        InvalidBatch,
        "labels go from 9 to 9",
    ),
    "empty batch": ({"batches": [(torch.zeros(0, FEATURES), torch.zeros(0).long())]}, InvalidBatch, "empty"),
    "NaN from the start": ({"batches": endless_nan()}, InvalidBatch, "nan before any step"),
    "loss of several numbers": ({"loss_fn": lambda m, b: m(b[0])[:, 0]}, InvalidBatch, "not one number"),
    "loss without the model": ({"loss_fn": lambda m, b: torch.tensor(1.0)}, InvalidModel, "no trainable parameter"),
    "constant loss": (
        {"loss_fn": lambda m, b: 0 * m(b[0]).sum() + 1},
        InvalidModel,
        "gradient of the first batch is zero",
    ),
    "loss raises": ({"loss_fn": lambda m, b: m.nonsense}, InvalidBatch, "nonsense"),
    "frozen model": (
        {"model_or_build": lambda: mlp(0).requires_grad_(False)},
        InvalidModel,
        "no trainable parameter",
    ),
    "no parameters": ({"model_or_build": nn.ReLU()}, InvalidModel, "no trainable parameter"),
    "out of memory": ({"model_or_build": lambda: OutOfMemory(2, 2)}, DeviceError, "out of memory"),
    "no model": ({"model_or_build": 7}, InvalidModel, "int"),
    "build gives no model": ({"model_or_build": lambda: "net"}, InvalidModel, "gave a str"),
    "build raises": ({"model_or_build": lambda: 1 / 0}, InvalidModel, "ZeroDivisionError"),
    "build needs more": ({"model_or_build": lambda width, depth: None}, InvalidModel, "width, depth"),
    "unknown optimizer": ({"optimizer": "adan"}, InvalidConfig, "did you mean 'adam'"),
    "optimizer of another kind": ({"optimizer": 3}, InvalidConfig, "(params, lr) -> optimizer"),
    "unknown option": ({"optimizer": "adamw,weight_decai=0.1"}, InvalidConfig, "did you mean 'weight_decay'"),
    "option without a value": ({"optimizer": "adamw,betas"}, InvalidConfig, "name=value"),
    "unknown precision": ({"precision": "fp8"}, InvalidConfig, "unknown precision 'fp8'"),
    "scheduler is none": ({"scheduler": lambda optimizer: 3}, InvalidConfig, "gave a int"),
    "warmup and scheduler": ({"scheduler": lambda optimizer: 3, "warmup": 2}, InvalidConfig, "are both given"),
    "accumulate nothing": ({"accumulate": 0}, InvalidConfig, "accumulate is 0"),
    "state of another": ({"optimizer_state": {"state": 3}}, InvalidConfig, "does not fit"),
    "optimizer raises": ({"optimizer": lambda params: None}, InvalidConfig, "raised TypeError"),
    "optimizer is none": ({"optimizer": lambda params, lr: None}, InvalidConfig, "gave a NoneType"),
    "optimizer wants a closure": (
        {"optimizer": lambda params, lr: torch.optim.LBFGS(params, lr)},
        InvalidConfig,
        "step raised",
    ),
    "one step": ({"steps": 1}, InvalidConfig, "steps is 1"),
    "no seeds": ({"seeds": 0}, InvalidConfig, "seeds is 0"),
    "warmup too long": ({"warmup": 6}, InvalidConfig, "warmup is 6"),
    "clip at zero": ({"clip_norm": 0.0}, InvalidConfig, "clip_norm is 0"),
    "range upside down": ({"lr_range": (1.0, 0.1)}, InvalidConfig, "lr_range"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_line(name: str) -> None:
    changed, error, words = BAD[name]
    with pytest.raises(error) as raised:
        ns.stable_lr(**{**GOOD, **changed})
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("where", [1, 5])
def test_what_goes_wrong_midway_leaves_the_model_untouched(where: int) -> None:
    model = mlp(0)
    state = copy.deepcopy(model.state_dict())
    good, count = data(4), 0

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        nonlocal count
        count += torch.is_grad_enabled()
        if count > where:
            raise torch.OutOfMemoryError("no memory")
        return F.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(DeviceError, match="out of memory"):
        ns.stable_lr(model, good, optimizer="momentum", loss_fn=loss_fn, steps=6)
    assert same_bits(model, state) and model.training


def test_nan_on_another_seed_is_said() -> None:
    def source(seed: int) -> list[Any]:
        return [(inputs * (math.nan if seed else 1.0), labels) for inputs, labels in data(8)]

    with pytest.raises(InvalidBatch, match="nan before any step"):
        ns.stable_lr(mlp, source, optimizer="sgd", steps=10)


# The picture


def test_the_figure_shows_tries_brackets_and_the_best(dataset: xr.Dataset) -> None:
    ax = ns.plot_stable_lr(dataset)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    labels = {text.get_text() for text in ax.get_legend().get_texts()}
    assert {"learns", "diverged", "not told apart from the lowest"} <= labels
    assert any(label.startswith("stable up to") for label in labels)
    points = {line.get_label(): line for line in ax.lines}
    drawn = sum(
        len(line.get_xdata())
        for line in ax.lines
        if line.get_marker() in ("o", "^") and line.get_label() != "not told apart from the lowest"
    )
    assert drawn == (~dataset["outcome"].isin(("not tried", "left early"))).sum()
    rings = points["not told apart from the lowest"]
    np.testing.assert_array_equal(rings.get_xdata(), dataset["lr"].values[dataset["best_at_horizon"].values])


def test_the_figure_of_a_bound_and_of_nothing() -> None:
    bound = ns.stable_lr(mlp, data(), optimizer="sgd", steps=10, seeds=1, lr_range=(1e-3, 0.01))
    labels = {text.get_text() for text in ns.plot_stable_lr(bound).get_legend().get_texts()}
    assert "stable up to 0.01 or more" in labels
    ns.plot_stable_lr(ns.stable_lr(mlp, data(), optimizer="sgd", steps=10, seeds=1, budget_seconds=0))


@pytest.mark.parametrize("kept", [0, 2500])  # none, and one at a time
def test_trials_that_cannot_be_kept_begin_again_with_the_same_bits(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    whole = ns.stable_lr(shallow, data(), optimizer="momentum", steps=40, seeds=1)
    monkeypatch.setattr("normscope.rates.stable_lr.KEPT_BYTES", kept)
    again = ns.stable_lr(shallow, data(), optimizer="momentum", steps=40, seeds=1)
    assert outcomes(again) == outcomes(whole)
    np.testing.assert_array_equal(again["horizon_loss"], whole["horizon_loss"])
