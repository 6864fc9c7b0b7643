"""What went wrong, where and with which example, once a loss has diverged or is not finite.

Looked at is the state that made the loss, where that is still there (`Watch.step` before `optimizer.step()`); else the
weights kept from before, run on the mini-batch at hand. In this order:

1. a tensor of the batch is not finite, or far larger than those before: a *bad batch*, and its first such example;
2. one layer's weights are not finite, or far larger than at the last measurement while the others are not: a *broken
   layer*;
3. a layer gives what is not finite, or is no number of the precision it runs in, while its input and weights are of
   the size they had: an *overflow*;
4. else the weights grew everywhere: the *rate*. Then the activations are measured along the next step from the last
   good state (figure 4), and how much longer that step could have been.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.descent.step_line import step_line
from normscope.errors import NormscopeError
from normscope.model.batch import Batch, num_examples, take
from normscope.model.build import uncompiled
from normscope.model.layers import LayerCall, depths, record_calls
from normscope.model.loss import LossFn, default_loss, loss_value, without_graph
from normscope.model.state import untouched
from normscope.monitoring.critical_multiple import critical_multiple
from normscope.monitoring.measurement import root_mean_square
from normscope.monitoring.next_update import NextUpdate
from normscope.monitoring.snapshot import dense, put_weights, tensors_of
from normscope.results import labelled
from normscope.statistics.numbers import number

FAR = 100.0
"""What is this many times larger than before, or than its neighbours, is far larger."""

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the diverging step, at which activations are measured."""

CAUSES = ("bad batch", "broken layer", "overflow", "rate")


@dataclass(frozen=True)
class Before:
    """What is known of the training before it went wrong."""

    step: int
    """Of the last measurement with a finite loss; -1 where there is none."""
    weights: Mapping[str, Any]
    """At that step; empty where they were not kept."""
    input_sizes: Mapping[str, float]
    """The largest entry in size of each tensor of the batch there, by its place."""
    activations: Mapping[str, float]
    """The size of each layer's activations there."""
    loss: float
    lr: float
    critical: float
    """The critical multiple there; NaN where it is not known."""


@dataclass(frozen=True)
class Postmortem:
    """What was found."""

    cause: str
    """One of `CAUSES`."""
    layer: str
    """Where it was first seen; empty for none."""
    example: int | None
    """The first example of the mini-batch with which it went wrong; None for all of them."""
    sentence: str
    rate: float
    """The rate that the last good state could have taken; NaN where it was not measured."""
    dataset: xr.Dataset
    """`size_along_step(fraction, layer)` along the next step from the last good state; empty where not measured."""


def find_cause(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    before: Before,
    *,
    step: int,
    loss: float,
    rescued: Mapping[str, Any] | None = None,
    loss_fn: LossFn | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Postmortem:
    """Why the loss of this mini-batch went wrong; model and optimizer come out untouched.

    Args:
        rescued: the weights that made the loss, where the model no longer has them.
    """

    def loss_of(module: nn.Module, given: Batch) -> Tensor:
        with autocast():
            return (loss_fn or default_loss)(module, given)

    with untouched(model), uncompiled():
        if rescued:
            put_weights(model, rescued)
        cause, layer, example, what = _cause(model, batch, before, loss_of)
        if not before.weights and not _finite(model.parameters()):
            return Postmortem(
                cause, layer, example, _sentence(step, loss, what, cause, before, math.nan), math.nan, xr.Dataset()
            )
        if before.weights and (cause != "rate" or not _finite(model.parameters())):
            put_weights(model, before.weights)
        sizes, rate = xr.Dataset(), math.nan
        if cause in ("rate", "overflow"):
            if before.weights:
                put_weights(model, before.weights)
            try:
                sizes, multiple = _along_step(model, optimizer, batch, loss_of)
                rate = multiple * _rate(optimizer)
            except NormscopeError:
                pass  # this mini-batch has no step from there: then there is nothing to draw
    if not math.isnan(before.critical) and before.critical > 0:
        known = before.critical * before.lr
        rate = min(rate, known) if rate > 0 else known
    return Postmortem(cause, layer, example, _sentence(step, loss, what, cause, before, rate), rate, sizes)


def _cause(model: nn.Module, batch: Batch, before: Before, loss: LossFn) -> tuple[str, str, int | None, str]:
    """Cause, layer, example, and what was seen in words."""
    for place, tensor in tensors_of(batch).items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        entries = dense(tensor).double()
        rows = entries.reshape(len(entries), -1).abs().amax(1) if entries.ndim else entries[None]
        bad = (~torch.isfinite(rows)).nonzero().flatten().tolist()
        if bad:
            return "bad batch", "", bad[0], f"example {bad[0]} of the batch holds numbers that are not finite"
        usual = before.input_sizes.get(place, math.nan)
        usual = float(rows.median()) if math.isnan(usual) else usual
        large = (rows > FAR * usual).nonzero().flatten().tolist() if usual > 0 else []
        if large:
            times = number(float(rows[large[0]]) / usual)
            return (
                "bad batch",
                "",
                large[0],
                f"example {large[0]} of the batch is {times} times as large as those before",
            )
    broken = _broken_layer(model, before)
    if broken is not None:
        return "broken layer", broken[0], None, broken[1]
    first = _first_not_finite(model, batch, loss)
    if first is not None:
        layer, example, size_before, low_precision = first
        grown = _growth(size_before, before)
        if low_precision or grown < FAR:
            why = f"{layer} gives what is not finite from inputs that are, at example {example}"
            return "overflow", layer, example, why
        return "rate", layer, None, f"the activations grew {number(grown)} times, and {layer} was the first to overflow"
    if before.weights and _loss(model, batch, loss, before.weights) > 10 * max(before.loss, 1e-8):
        examples = _losses_apart(model, batch, loss)
        return "bad batch", "", examples, "the batch has so large a loss also with the weights of before"
    layer, grown = _most_grown(model, batch, before, loss)
    return (
        "rate",
        layer,
        None,
        f"the activations of {layer} grew {number(grown)} times" if layer else "the weights moved too far",
    )


def _broken_layer(model: nn.Module, before: Before) -> tuple[str, str] | None:
    """The one module whose own weights are not finite or far larger than before, while no other's are. A bias alone,
    which starts near 0, may well grow that much by its gradient: so all that a module owns is compared."""
    odd: list[tuple[str, str]] = []
    total = 0
    for path, module in model.named_modules():
        own = {f"{path}.{name}" if path else name: p for name, p in module.named_parameters(recurse=False) if p.numel()}
        if not own:
            continue
        total += 1
        if not _finite(own.values()):
            odd.append((path, f"the weights of {path or 'the model'} are not finite"))
        elif own.keys() <= before.weights.keys():
            now = max(_largest(parameter) for parameter in own.values())
            old = max(_largest(before.weights[name]) for name in own)
            if old > 1e-6 and now > FAR * old:
                times = number(now / old)
                odd.append((path, f"the weights of {path} are {times} times as large as at step {before.step}"))
    return odd[0] if len(odd) == 1 and total > 1 else None


def _largest(tensor: Any) -> float:
    return float(torch.as_tensor(tensor).detach().double().abs().amax())


def _first_not_finite(model: nn.Module, batch: Batch, loss: LossFn) -> tuple[str, int, dict[str, float], bool] | None:
    """The first layer whose output is not finite, the first example there, the sizes of the layers before it, and
    whether it ran in fewer bits than 32."""
    sizes: dict[str, float] = {}
    found: list[tuple[str, int, bool]] = []

    def on_call(call: LayerCall) -> None:
        if found:
            return
        y = call.output.detach()
        if bool(torch.isfinite(y).all()):
            sizes[call.name] = float(root_mean_square(y))
            return
        rows = (~torch.isfinite(y)).reshape(len(y), -1).any(1).nonzero().flatten().tolist()
        found.append((call.name, rows[0] if rows else 0, y.dtype in (torch.float16, torch.bfloat16)))

    model.train()
    _pass_recorded(model, batch, loss, on_call)
    return (found[0][0], found[0][1], sizes, found[0][2]) if found else None


def _pass_recorded(
    model: nn.Module,
    batch: Batch,
    loss: LossFn,
    on_call: Callable[[LayerCall], None],
) -> None:
    def passed() -> None:
        with record_calls(model, on_call):
            loss(model, batch)

    without_graph(passed)


def _growth(sizes: Mapping[str, float], before: Before) -> float:
    """The largest growth of a layer's activations since the last measurement; NaN where that is not known."""
    grown = [size / before.activations[n] for n, size in sizes.items() if before.activations.get(n, 0) > 0]
    return max(grown, default=1.0)


def _most_grown(model: nn.Module, batch: Batch, before: Before, loss: LossFn) -> tuple[str, float]:
    sizes: dict[str, float] = {}
    _pass_recorded(model, batch, loss, lambda call: sizes.__setitem__(call.name, float(root_mean_square(call.output))))
    grown = {n: size / before.activations[n] for n, size in sizes.items() if before.activations.get(n, 0) > 0}
    return max(grown.items(), key=lambda row: row[1], default=("", math.nan))


def _loss(model: nn.Module, batch: Batch, loss: LossFn, weights: Mapping[str, Any]) -> float:
    def passed() -> float:
        with untouched(model):
            put_weights(model, weights)
            return float(loss(model, batch).detach())

    value = without_graph(passed)
    return math.inf if math.isnan(value) else value


def _losses_apart(model: nn.Module, batch: Batch, loss: LossFn) -> int | None:
    """The example with the largest loss of its own; None where the batch cannot be taken apart."""
    count = num_examples(batch)
    if count is None:
        return None
    losses = []
    model.eval()
    for i in range(count):
        one = take(batch, [i])
        try:
            losses.append(float(loss_value(model, one, loss)))
        except Exception:  # a loss may need several examples
            return None
    model.train()
    return int(np.argmax(np.where(np.isnan(losses), np.inf, losses)))


def _along_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    loss: LossFn,
) -> tuple[xr.Dataset, float]:
    """Activation sizes at fractions of the step that the optimizer, without what it remembers, makes at its rate, and
    the multiple of it at which the loss rises."""
    fresh = copy.copy(optimizer)
    fresh.state = defaultdict(dict)
    rows: list[dict[str, float]] = []

    with step_line(model, batch, loss, direction=NextUpdate(fresh, model)) as line:
        critical = critical_multiple(lambda s: float(line.loss_at(s)), float(line.loss))
        for fraction in FRACTIONS:
            sizes: dict[str, float] = {}
            with record_calls(
                model, lambda call, s=sizes: s.__setitem__(call.name, float(root_mean_square(call.output)))
            ):
                line.loss_at(fraction)
            rows.append(sizes)
    layers = list(rows[0])
    table = np.array([[row.get(layer, np.nan) for layer in layers] for row in rows])
    dataset = labelled(
        {
            "size_along_step": (("fraction", "layer"), table, "root mean square of the activations", "1"),
            "walked_lr": ((), _rate(optimizer), "rate of the step", "1"),
        },
        {"fraction": (np.array(FRACTIONS), "fraction of the step", "1"), "layer": (layers, "layer", "1")},
    )
    depth = ("layer", depths(layers), {"long_name": "layer on the main path", "units": "1"})
    return dataset.assign_coords(depth=depth), critical.value


def _rate(optimizer: torch.optim.Optimizer) -> float:
    return max(float(group.get("lr", math.nan)) for group in optimizer.param_groups)


def _finite(tensors: Any) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors)


def _sentence(step: int, loss: float, what: str, cause: str, before: Before, rate: float) -> str:
    """What, where, since when, and what to do."""
    to_do = {
        "bad batch": "leave such examples out, or clip the gradient's norm",
        "broken layer": "look at what writes to it between two steps",
        "overflow": "run that layer in float32, or put a norm in front of it",
        "rate": "take a lower rate, warm up longer, or clip the gradient's norm",
    }[cause]
    if cause == "rate" and math.isfinite(rate) and rate > 0:
        to_do = f"a rate of {number(rate)} could have been taken; {to_do}"
    since = f" (all was well at step {before.step}, loss {number(before.loss)})" if before.step >= 0 else ""
    return f"step {step}: the loss is {loss:.3g}{since}: {cause}: {what}. To do: {to_do}."
