"""Are faults that were put into sound trainings found, and named by their kind? And are sound ones left alone?

Operators each make one fault in the six trainings of `mutation_models`. A mutant counts only where it was first shown
to hurt the held-out metric; `diagnose` then sees it as its user's program, with its own rate and number of steps.
Counted are: detected (any finding is a fault), named (the first finding's category is the operator's), the macro-F1 of
the first finding's category, and false alarms on sound variants of other seeds, widths and data.

    python -m benchmarks.mutations FOLDER [MODEL,MODEL,... [first|blind|healthy|table]]

Rows are appended to files in the folder, and what is there is not run again: `hurt.jsonl` says which mutants count,
`found.jsonl` what was said of them, `healthy.jsonl` what was said of sound ones. Remove the last two after a change of
the rules. `table` runs nothing, and prints what is there as the table of docs/diagnose.md.
"""

import importlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope as ns
from benchmarks.machine import headline
from benchmarks.mutation_models import (
    MODELS,
    REPORTED,
    TUNED,
    Attention,
    Batch,
    ResidualBlock,
    Spec,
    TransformerBlock,
    spec,
    trained,
)
from normscope.diagnosis.finding import as_findings
from normscope.diagnosis.words import score_of, skipped
from normscope.errors import NormscopeError

HURTS = 0.15
"""Share of the sound training's held-out metric that a mutant has to lose to count; fixed before the first run."""

SEEDS = 1
"""That the held-out metric is the mean of."""

WIDTHS, DATA = (0.5, 0.75, 1.0, 1.5, 2.0), range(5)
"""Of the sound variants, for each model and seed."""

Operator = Callable[[Spec], Spec | None]

# How a training is changed


def model(change: Callable[[nn.Module], Any]) -> Operator:
    """The model, changed in place; where `change` says False it does not apply."""

    def operator(one: Spec) -> Spec | None:
        if change(one.build(0)) is False:
            return None

        def build(seed: int) -> nn.Module:
            made = one.build(seed)
            change(made)
            return made

        return replace(one, build=build)

    return operator


def modules(kinds: Any, change: Callable[[Any], Any]) -> Operator:
    """Every module of these kinds, changed in place."""

    def of(made: nn.Module) -> bool:
        chosen = [m for m in made.modules() if isinstance(m, kinds)]
        for m in chosen:
            change(m)
        return bool(chosen)

    return model(of)


def swapped(kinds: Any, make: Callable[[nn.Module], nn.Module]) -> Operator:
    """Another module in the place of every one of these kinds."""

    def of(made: nn.Module) -> bool:
        chosen = [(path, m) for path, m in made.named_modules() if isinstance(m, kinds)]
        for path, m in chosen:
            parent, _, name = path.rpartition(".")
            setattr(made.get_submodule(parent), name, make(m))
        return bool(chosen)

    return model(of)


class Through(nn.Module):
    """A model whose output goes through a function."""

    def __init__(self, body: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.function = body, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.body(x))


class Activation(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def output(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda one: replace(one, build=lambda seed: Through(one.build(seed), function))


def activation(function: Callable[[Tensor], Tensor]) -> Operator:
    return swapped((nn.ReLU, nn.GELU), lambda _m: Activation(function))


def inputs(function: Callable[[Tensor], Tensor]) -> Operator:
    """Of training and test; token ids are no numbers."""

    def changed(batches: Iterable[Batch]) -> list[Batch]:
        return [(function(x), y) for x, y in batches]

    def operator(one: Spec) -> Spec | None:
        if not one.train[0][0].is_floating_point():
            return None
        return replace(one, train=changed(one.train), test=changed(one.test))

    return operator


def targets(function: Callable[[Tensor], Tensor]) -> Operator:
    """Numbers to predict, of training and test."""

    def changed(batches: Iterable[Batch]) -> list[Batch]:
        return [(x, function(y)) for x, y in batches]

    return lambda one: (
        replace(one, train=changed(one.train), test=changed(one.test)) if one.loss is F.mse_loss else None
    )


def training(function: Callable[[list[Batch]], list[Batch]]) -> Operator:
    """The training data alone."""
    return lambda one: replace(one, train=function(list(one.train)))


def loss(function: Callable[[Tensor, Tensor], Tensor], *, regression: bool | None = None) -> Operator:
    """Another loss of outputs (examples, classes) and targets.

    Args:
        regression: whether of numbers or of classes alone; None for both.
    """

    def operator(one: Spec) -> Spec | None:
        if regression is not None and regression is not (one.loss is F.mse_loss):
            return None
        if one.loss is F.mse_loss:
            return replace(one, loss=function)
        return replace(one, loss=lambda z, y: function(z.flatten(0, -2), y.flatten()))

    return operator


def optimizer(change: Callable[[Any, float, Spec], torch.optim.Optimizer]) -> Operator:
    return lambda one: replace(one, optimizer=lambda params, lr: change(list(params), lr, one))


def tuned(**factors: float) -> Operator:
    """The rate and the number of steps, times a factor."""
    return lambda one: replace(
        one, lr=one.lr * factors.get("lr", 1.0), steps=max(2, round(one.steps * factors.get("steps", 1.0)))
    )


# What is changed


def weighted(made: nn.Module) -> list[Any]:
    """Its layers in order, without embeddings and norms."""
    return [m for m in made.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.LSTM)]


def scaled_weights(factor: float, which: slice = slice(None)) -> Operator:
    def change(made: nn.Module) -> None:
        with torch.no_grad():
            for layer in weighted(made)[which]:
                for p in layer.parameters():
                    p.mul_(factor)

    return model(change)


def constant_weights(value: float, which: slice = slice(None)) -> Operator:
    def change(made: nn.Module) -> bool:
        with torch.no_grad():
            for layer in weighted(made)[which]:
                for p in layer.parameters():
                    p.fill_(value)
        return bool(weighted(made)[which])

    return model(change)


def biases(value: float) -> Operator:
    """Of all hidden layers that a ReLU follows, or of all in an MLP."""

    def change(made: nn.Module) -> None:
        with torch.no_grad():
            for layer in weighted(made)[:-1]:
                for name, p in layer.named_parameters(recurse=False):
                    if "bias" in name:
                        p.fill_(value)

    return model(change)


def require_gradients(which: slice) -> Operator:
    """Only these layers, and no other parameter."""

    def change(made: nn.Module) -> None:
        made.requires_grad_(False)
        for layer in weighted(made)[which]:
            layer.requires_grad_(True)

    return model(change)


def detached(made: nn.Module) -> None:
    """The gradient stops in front of the last layer."""
    weighted(made)[-1].register_forward_pre_hook(lambda _m, args: (args[0].detach(),))


def one_unit(made: nn.Module) -> None:
    """Only one unit's output gets through to the last layer."""
    weighted(made)[-1].register_forward_pre_hook(
        lambda _m, args: (args[0] * (torch.arange(args[0].shape[-1]) == 0).to(args[0].dtype),)
    )


def no_shortcut(made: nn.Module) -> bool:
    blocks = [m for m in made.modules() if isinstance(m, ResidualBlock)]
    for block in blocks:
        block.register_forward_hook(lambda _m, args, out: out - args[0])
    return bool(blocks)


def attribute(kind: type, name: str, value: Any) -> Operator:
    return modules(kind, lambda m: setattr(m, name, value))


def looks_ahead(made: nn.Module) -> bool:
    """A mask that shows what is to be told."""
    chosen = [m for m in made.modules() if isinstance(m, Attention) and m.causal]
    for m in chosen:
        m.causal = False
    return bool(chosen)


def without_positions(made: nn.Module) -> bool:
    position = getattr(made, "position", None)
    if position is None:
        return False
    weight = position.weight if isinstance(position, nn.Embedding) else position
    nn.init.zeros_(weight)
    weight.requires_grad_(False)
    return True


def dropout(p: float) -> Operator:
    """Behind every activation; behind the embedding of characters or the LSTM where there is none."""

    def change(made: nn.Module) -> None:
        places = [m for m in made.modules() if isinstance(m, nn.ReLU | nn.GELU)] or [weighted(made)[-1]]
        drop = nn.Dropout(p)
        made.add_module("drop", drop)
        for m in places:
            if isinstance(m, nn.Linear):
                m.register_forward_pre_hook(lambda _m, args: (drop(args[0]),))
            else:
                m.register_forward_hook(lambda _m, _args, out: drop(out))

    def operator(one: Spec) -> Spec | None:
        def build(seed: int) -> nn.Module:
            made = one.build(seed)
            if isinstance(made, nn.Sequential):  # there, as one writes it
                layers = [[m, nn.Dropout(p)] if isinstance(m, nn.ReLU) else [m] for m in made]
                return nn.Sequential(*(m for part in layers for m in part))
            change(made)
            return made

        return replace(one, build=build)

    return operator


def permuted(share: float) -> Callable[[list[Batch]], list[Batch]]:
    """This share of the examples gets the targets of others."""

    def change(batches: list[Batch]) -> list[Batch]:
        generator = torch.Generator().manual_seed(0)
        y = torch.cat([y for _, y in batches])
        wrong = torch.rand(len(y), generator=generator) < share
        places = wrong.nonzero().flatten()
        y = y.clone()
        y[places] = y[places[torch.randperm(len(places), generator=generator)]]
        return [(x, part) for (x, _), part in zip(batches, y.split([len(x) for x, _ in batches]), strict=True)]

    return change


def shifted(batches: list[Batch]) -> list[Batch]:
    """Every example has the target of the next."""
    return [(x, y.roll(1, 0)) for x, y in batches]


def merged(one: Spec) -> Spec | None:
    """Half of the classes, and half of the values, are told as one."""
    if one.loss is F.mse_loss:
        return replace(one, train=[(x, y.clamp(min=y.median())) for x, y in one.train])
    return replace(one, train=[(x, torch.where(y % 2 == 0, y, 0)) for x, y in one.train])


def unshifted(one: Spec) -> Spec | None:
    """The character to tell is the one that is seen."""
    return replace(one, train=[(x, x) for x, _ in one.train]) if one.name == "gpt" else None


def sized(size: int) -> Operator:
    """Batches of fewer examples, as many steps."""

    def operator(one: Spec) -> Spec:
        return replace(one, train=_split(one.train, size))

    return operator


def full_batch(one: Spec) -> Spec:
    """All data in one batch, as many epochs."""
    whole = _split(one.train, 10**6)
    return replace(one, train=whole, steps=max(2, one.steps // len(one.train)))


def _split(batches: Sequence[Batch], size: int) -> list[Batch]:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return list(zip(x.split(size), y.split(size), strict=True))


def sorted_by_target(batches: list[Batch]) -> list[Batch]:
    """Every batch holds one class."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = (y if y.ndim == 1 else y[:, -1]).flatten().argsort(stable=True)
    return _split([(x[order], y[order])], len(batches[0][0]))


class NeverZeroed(torch.optim.SGD):
    """Gradients pile up."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        del set_to_none


class NeverZeroedAdam(torch.optim.Adam):
    def zero_grad(self, set_to_none: bool = True) -> None:
        del set_to_none


def piling_up(params: Any, lr: float, one: Spec) -> torch.optim.Optimizer:
    return NeverZeroed(params, lr, momentum=0.9) if "mlp cnn".count(one.name) else NeverZeroedAdam(params, lr)


def with_option(**options: Any) -> Callable[[Any, float, Spec], torch.optim.Optimizer]:
    """The optimizer with options of its own; `momentum` is the first of Adam's betas."""

    def change(params: Any, lr: float, one: Spec) -> torch.optim.Optimizer:
        made = one.optimizer(params, lr)
        for group in made.param_groups:
            for name, value in options.items():
                if name == "momentum" and "betas" in group:
                    group["betas"] = (value, group["betas"][1])
                elif name in group:
                    group[name] = value
        return made

    return change


def adaptive_only(change: Operator) -> Operator:
    return lambda one: None if one.name in ("mlp", "cnn") else change(one)


def unsafe_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """The logarithm of a softmax of large logits."""
    return F.nll_loss((40 * z).softmax(-1).log(), y)


def overflowing_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """exp of large numbers."""
    e = (100 * z).exp()
    return F.nll_loss((e / e.sum(-1, keepdim=True)).log(), y)


def nan_in_one(batches: list[Batch]) -> list[Batch]:
    """One number of one example is missing."""
    x, y = batches[3]
    x = x.clone()
    x[(5, *([0] * (x.ndim - 1)))] = float("nan")
    return [*batches[:3], (x, y), *batches[4:]]


def floating(change: Operator) -> Operator:
    return lambda one: change(one) if one.train[0][0].is_floating_point() else None


def half_overflow(z: Tensor) -> Tensor:
    """A large scale in half precision."""
    return (z.half() * 30000).float() / 30000


NORMS = (nn.BatchNorm2d, nn.LayerNorm)
HIDDEN = slice(1, -1)
LAST, FIRST = slice(-1, None), slice(0, 1)

OPERATORS: list[tuple[str, str, Operator]] = [
    ("softmax before the loss", "activation", lambda one: _classes(one, output(lambda z: z.softmax(-1)))),
    ("sigmoid at the output", "activation", output(torch.sigmoid)),
    ("ReLU at the output", "activation", output(torch.relu)),
    ("tanh at the output", "activation", output(torch.tanh)),
    ("no activations", "activation", activation(lambda z: z)),
    ("sigmoids between layers", "activation", activation(torch.sigmoid)),
    ("steep tanh between layers", "activation", activation(lambda z: torch.tanh(20 * z))),
    ("negated ReLU twice", "activation", activation(lambda z: torch.relu(-torch.relu(z)))),
    ("loss of probabilities", "loss", loss(lambda z, y: F.nll_loss(z.softmax(-1), y), regression=False)),
    ("loss with the wrong sign", "loss", lambda one: replace(one, loss=lambda z, y, f=one.loss: -f(z, y))),
    ("softmax over the batch", "loss", loss(lambda z, y: F.nll_loss(z.log_softmax(0), y), regression=False)),
    ("sum over the batch", "loss", lambda one: replace(one, loss=lambda z, y, f=one.loss: y.numel() * f(z, y))),
    ("targets of another shape", "loss", loss(lambda z, y: (z - y.flatten()).square().mean(), regression=True)),
    (
        "squared error of the class's number",
        "loss",
        loss(lambda z, y: F.mse_loss(z[:, 0], y.float()), regression=False),
    ),
    ("loss of the mean output", "loss", loss(lambda z, y: F.mse_loss(z.mean(), y.float().mean()))),
    ("rate x 30", "learning_rate", tuned(lr=30)),
    ("rate x 300", "learning_rate", tuned(lr=300)),
    ("rate / 100", "learning_rate", tuned(lr=1e-2)),
    ("rate / 1000", "learning_rate", tuned(lr=1e-3)),
    ("momentum 0.999", "optimizer", optimizer(with_option(momentum=0.999))),
    ("plain SGD at the rate of Adam", "optimizer", adaptive_only(optimizer(lambda p, lr, _o: torch.optim.SGD(p, lr)))),
    ("eps of 1 in Adam", "optimizer", adaptive_only(optimizer(with_option(eps=1.0)))),
    ("gradients never zeroed", "optimizer", optimizer(piling_up)),
    ("only the last parameters given", "optimizer", optimizer(lambda p, lr, o: o.optimizer(p[-1:], lr))),
    ("steps uphill", "optimizer", optimizer(with_option(maximize=True))),
    ("steps / 20", "epochs", tuned(steps=1 / 20)),
    ("steps / 60", "epochs", tuned(steps=1 / 60)),
    ("batches of 1", "batch_size", sized(1)),
    ("batches of 2", "batch_size", sized(2)),
    ("one batch of all", "batch_size", full_batch),
    ("all weights zero", "initialization", constant_weights(0.0)),
    ("a hidden layer zero", "initialization", constant_weights(0.0, slice(1, 2))),
    ("weights x 10", "initialization", scaled_weights(10.0)),
    ("weights / 100", "initialization", scaled_weights(0.01)),
    ("last layer x 300", "initialization", scaled_weights(300.0, LAST)),
    ("all weights equal", "initialization", constant_weights(0.02)),
    ("biases of -10", "initialization", biases(-10.0)),
    ("inputs x 255", "preprocessing", inputs(lambda x: 255 * x)),
    ("inputs / 1000", "preprocessing", inputs(lambda x: x / 1000)),
    ("inputs + 100", "preprocessing", inputs(lambda x: x + 100)),
    ("one feature x 10000", "preprocessing", inputs(lambda x: torch.where(_first(x), 1e4 * (x + 1), x))),
    ("targets x 1000", "preprocessing", targets(lambda y: 1000 * y)),
    ("targets + 100", "preprocessing", targets(lambda y: y + 100)),
    ("labels shuffled", "labels", training(permuted(1.0))),
    ("most labels shuffled", "labels", training(permuted(0.8))),
    ("labels of the next example", "labels", training(shifted)),
    ("half of the classes told as one", "labels", merged),
    ("targets not shifted", "labels", unshifted),
    ("batches of one class", "batch_size", training(sorted_by_target)),
    ("no norm", "architecture", swapped(NORMS, lambda _m: nn.Identity())),
    ("no causal mask", "architecture", model(looks_ahead)),
    ("q, k, v swapped", "architecture", attribute(Attention, "order", (2, 0, 1))),
    ("attention logits x 100", "architecture", attribute(Attention, "scale", 100.0)),
    ("residual branches x 30", "architecture", attribute(TransformerBlock, "factor", 30.0)),
    ("residual branches not scaled", "architecture", attribute(ResidualBlock, "scale", 3.0)),
    ("no shortcuts", "architecture", model(no_shortcut)),
    ("no positions", "architecture", model(without_positions)),
    ("only the last layer learns", "architecture", model(detached)),
    ("hidden layers frozen", "architecture", require_gradients(LAST)),
    ("only the first layer learns", "architecture", require_gradients(FIRST)),
    ("one unit before the last layer", "architecture", model(one_unit)),
    ("batch norm that never averages", "architecture", modules(nn.BatchNorm2d, lambda m: setattr(m, "momentum", 0.0))),
    ("dropout 0.95", "regularization", dropout(0.95)),
    ("dropout of the outputs", "regularization", output(lambda z: F.dropout(z, 0.9))),
    ("weight decay 1", "regularization", optimizer(with_option(weight_decay=1.0))),
    ("weight decay 30", "regularization", optimizer(with_option(weight_decay=30.0))),
    ("log of a softmax", "numerics", loss(unsafe_cross_entropy, regression=False)),
    ("exp of large logits", "numerics", loss(overflowing_cross_entropy, regression=False)),
    ("a missing number", "numerics", floating(training(nan_in_one))),
    ("half precision overflows", "numerics", output(half_overflow)),
    ("square root at zero", "numerics", loss(lambda z, y: (z - z.detach()).sum(-1).square().sum().sqrt() + _own(z, y))),
]
"""The first half: name, category, operator; written with the rules known."""


def _classes(one: Spec, change: Operator) -> Spec | None:
    return None if one.loss is F.mse_loss else change(one)


def _first(x: Tensor) -> Tensor:
    """Where the first number of an example is."""
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[(slice(None), *([0] * (x.ndim - 2)), x.shape[-1] // 2 if x.ndim == 4 else 0)] = True
    return mask


def _own(z: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(z, y) if y.is_floating_point() else F.cross_entropy(z, y)


def operators(half: str) -> list[tuple[str, str, Operator]]:
    """Of one half; the second was written by somebody who had not seen the rules."""
    if half == "first":
        return OPERATORS
    return importlib.import_module("benchmarks.mutations_blind").HALF


# What is measured


def judged(one: Spec, seed: int = 0) -> dict[str, Any]:
    """What is said of a training."""
    begun = time.process_time()
    row: dict[str, Any]
    try:
        tree = ns.diagnose(
            one.build(seed),
            list(one.train),
            optimizer=one.optimizer,
            loss_fn=one.loss_fn,
            steps=one.steps,
            lr=one.lr,
            seed=seed,
        )
        found = [f for f in as_findings(tree["findings"].to_dataset()) if f.fault]
        row = {
            "findings": [[f.name, f.category] for f in found],
            "said": found[0].sentence if found else "",
            "score": score_of(tree),
            "skipped": skipped(tree),
        }
    except NormscopeError as error:
        row = {"findings": [], "refused": str(error)}
    return {**row, "seconds": round(time.process_time() - begun, 1)}


class Rows:
    """Rows in a file of JSON lines, by their keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.by_key: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, lines)}

    def of(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of a key, measured where it is not there."""
        if key not in self.by_key:
            self.by_key[key] = {"key": key, **measure()}
            with self.path.open("a") as file:
                file.write(json.dumps(self.by_key[key]) + "\n")
        return self.by_key[key]


def metric(one: Spec) -> dict[str, Any]:
    """Held out, mean over seeds."""
    return {"metric": sum(trained(one, seed) for seed in range(SEEDS)) / SEEDS}


def mutants(folder: Path, half: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each mutant that hurts."""
    hurt, found = Rows(folder / "hurt.jsonl"), Rows(folder / "found.jsonl")
    for name in names:
        sound = spec(name)
        best = hurt.of(f"sound / {name}", partial(metric, sound))["metric"]
        for operator, category, change in operators(half):
            torch.manual_seed(0)
            mutant = change(sound)
            if mutant is None:
                continue
            key = f"{operator} / {name}"
            value = hurt.of(key, partial(metric, mutant))["metric"]
            if value > (1 - HURTS) * best:
                continue
            said = found.of(key, partial(judged, mutant))
            yield {"operator": operator, "model": name, "truth": category, "metric": value, "sound": best, **said}


def variants(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each sound variant: another seed, width or draw of the data."""
    rows = Rows(folder / "healthy.jsonl")
    for data, width, seed, name in product(DATA, WIDTHS, range(SEEDS), names):
        key = f"{name}, width {width}, data {data}, seed {seed}"
        sound = spec(name, width=width, data=data)

        def measure(sound: Spec = sound, seed: int = 10 * data + seed) -> dict[str, Any]:
            return {"metric": trained(sound, seed), **judged(sound, seed)}

        yield {"model": name, **rows.of(key, measure)}


# What is counted


def first_category(row: dict[str, Any]) -> str:
    return row["findings"][0][1] if row["findings"] else ""


def macro_f1(rows: Sequence[dict[str, Any]]) -> float:
    """Of the first finding's category, mean over the categories that are true of any row."""
    scores = []
    for category in sorted({row["truth"] for row in rows}):
        hits = sum(row["truth"] == category == first_category(row) for row in rows)
        told = sum(first_category(row) == category for row in rows)
        scores.append(2 * hits / (told + sum(row["truth"] == category for row in rows)))
    return sum(scores) / max(len(scores), 1)


def counts(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The table's line of some mutants."""
    n = max(len(rows), 1)
    return {
        "mutants": len(rows),
        "detected": sum(bool(row["findings"]) for row in rows) / n,
        "named first": sum(first_category(row) == row["truth"] for row in rows) / n,
        "named at all": sum(row["truth"] in [c for _, c in row["findings"]] for row in rows) / n,
        "macro-F1": macro_f1(rows),
        "refused": sum("refused" in row for row in rows),
    }


def known(folder: Path, half: str, name: str) -> list[dict[str, Any]]:
    """The rows of one model that are there."""
    found = Rows(folder / "found.jsonl").by_key
    pairs = [(f"{operator} / {name}", category) for operator, category, _ in operators(half)]
    return [{"truth": category, **found[key]} for key, category in pairs if key in found]


def table(folder: Path, names: Sequence[str]) -> str:
    """What is there, in Markdown: a line for each half and model."""
    lines = ["| operators | model | mutants | detected | named first | macro-F1 |", "|---|---|---|---|---|---|"]
    for half, name in product(("first", "blind"), names):
        if rows := known(folder, half, name):
            of = counts(rows)
            shares = f"{of['detected']:.2f} | {of['named first']:.2f} | {of['macro-F1']:.2f}"
            lines.append(f"| {half} | {name} | {of['mutants']} | {shares} |")
    return "\n".join(lines)


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    numbers = counts(rows)
    print(f"{title:28}" + "  ".join(f"{name} {value:.3g}" for name, value in numbers.items()), flush=True)


def main() -> None:
    """Run what is asked for and is not there, and print the table."""
    if len(sys.argv) < 2:
        print(__doc__)
        return
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    names = sys.argv[2].split(",") if len(sys.argv) > 2 else list(MODELS)
    half = sys.argv[3] if len(sys.argv) > 3 else "first"
    print(f"{(__doc__ or '').partition(chr(10))[0]}\n{headline()}\n")
    if half == "table":
        print(table(folder, names))
        return
    if half == "healthy":
        rows = []
        for row in variants(folder, names):
            rows.append(row)
            if row["findings"]:
                print(f"{row['key']:36} score {row['score']:.2f} held out {row['metric']:.2f}: {row['findings']}")
        alarms = sum(bool(row["findings"]) for row in rows)
        print(f"{alarms} of {len(rows)} sound variants accused ({100 * alarms / max(len(rows), 1):.1f} %)")
        return
    rows = []
    for row in mutants(folder, half, names):
        rows.append(row)
        right = "named" if first_category(row) == row["truth"] else "found" if row["findings"] else "MISSED"
        said = row.get("refused") or ", ".join(f"{n} ({c})" for n, c in row["findings"])
        score = row.get("score", float("nan"))
        print(
            f"{row['operator']:36} {row['model']:7} {right:6} {row['truth']:15} held out {row['metric']:.2f} of "
            f"{row['sound']:.2f}, score {score:5.2f}, {row['seconds']:4.1f} s  {said}",
            flush=True,
        )
    print()
    for title, chosen in (("chosen on", TUNED), ("reported on", REPORTED), ("all", tuple(MODELS))):
        if some := [row for row in rows if row["model"] in chosen]:
            show(f"{title} {', '.join(sorted({r['model'] for r in some}))}", some)
    print("\nby category:")
    for category, _ in Counter(row["truth"] for row in rows).most_common():
        show(category, [row for row in rows if row["truth"] == category])
    print("\ntold instead:")
    wrong = Counter((r["truth"], first_category(r) or "nothing") for r in rows if first_category(r) != r["truth"])
    for (truth, told), count in wrong.most_common():
        print(f"{truth:16} {told:16} {count}")


if __name__ == "__main__":
    main()
