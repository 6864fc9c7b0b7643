"""Nodes of a graph that become alike: every layer averages over neighbours, and after many all nodes say the same."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.module_calls import LEAKS
from normscope.diagnosis.program import Program
from normscope.model.layers import LayerCall, record_calls, watched_modules
from normscope.model.loss import default_loss
from normscope.model.state import seeded
from normscope.statistics.numbers import number

FEWEST_LAYERS, FEWEST_NODES = 4, 8

ALIKE = 0.2
"""Nodes differ at the last layer by less than this share of what they differ at the first."""


def spread(y: Tensor) -> float:
    """By how much nodes differ, over their size; nodes run along the last dim but one."""
    y = y.detach().double()
    size = float(y.square().mean())
    return float((y - y.mean(-2, keepdim=True)).square().mean() / size) ** 0.5 if size > 0 else 0.0


def layer_outputs(facts: Facts, exchanged: bool = False) -> list[tuple[str, Tensor]]:
    """What every layer gives of the first batch in evaluation mode, ending at the first of another number of nodes.

    Args:
        exchanged: the first layer gives the first half of the nodes what is another's of them.
    """
    program, seen = facts.program, list[tuple[str, Tensor]]()
    model = program.build(0)

    def keep(call: LayerCall) -> Any:
        y = call.output
        seen.append((call.name, y.detach().clone()))
        if not exchanged or len(seen) > 1 or y.ndim < 2:
            return None
        half = y.shape[-2] // 2
        return torch.cat([y[..., :half, :].roll(1, -2), y[..., half:, :]], -2)

    with seeded(model, 0, training=False), record_calls(model, keep):
        try:
            (program.loss_fn or default_loss)(model, program.batches[0])
        except Exception:  # somebody's own code
            return []
    nodes = seen[0][1].shape[-2] if seen and seen[0][1].ndim in (2, 3) else 0
    kept = []
    for name, y in seen:
        if y.ndim != seen[0][1].ndim or y.shape[-2] != nodes:
            break
        kept.append((name, y))
    return kept if nodes >= FEWEST_NODES else []


def _suspected(facts: Facts) -> Suspicion | None:
    before = layer_outputs(facts) if facts.transformer is None else []
    if len(before) < FEWEST_LAYERS:
        return None
    (first, start), (last, end) = before[0], before[-1]
    ratio = spread(end) / max(spread(start), 1e-30)
    after = layer_outputs(facts, exchanged=True)
    if not ratio < ALIKE or len(after) != len(before) or not shortcuts_at(facts.program.build(0), facts):
        return None
    half = start.shape[-2] // 2
    changes = [
        (float((y - x)[..., half:, :].abs().max()), float((x - x.mean(-2, keepdim=True)).abs().max()))
        for (_, x), (_, y) in zip(before, after, strict=True)
    ]
    if not any(change > LEAKS * size for change, size in changes):
        return None
    return Suspicion(
        "nodes become alike with depth",
        f"Each layer mixes the {start.shape[-2]} nodes: they differ by {number(spread(start))} of their size at "
        f"layer {first} and by {number(spread(end))} at layer {last}, {len(before) - 1} layers further.",
        {"first_spread": spread(start), "last_spread": spread(end), "layers": float(len(before))},
        place=last,
    )


def shortcuts_at(model: nn.Module, facts: Facts) -> list[str]:
    """The layers whose inputs have the shape of those of the layer before."""
    shapes: list[tuple[str, torch.Size]] = []

    def keep(call: LayerCall) -> None:
        if call.inputs and isinstance(call.inputs[0], Tensor):
            shapes.append((call.name, call.inputs[0].shape))

    with seeded(model, 0, training=False), record_calls(model, keep):
        try:
            (facts.program.loss_fn or default_loss)(model, facts.program.batches[0])
        except Exception:  # somebody's own code
            return []
    pairs = pairwise(shapes)
    return [name for (_, before), (name, shape) in pairs if shape == before and "#" not in name]


def with_shortcuts(model: nn.Module, layers: list[str]) -> None:
    """Each of these layers gets what the layer before it got, on top of its own input."""
    latest: list[Tensor] = []
    for path, module in watched_modules(model).items():

        def give(_module: nn.Module, inputs: tuple[Any, ...], path: str = path) -> Any:
            given = inputs[0] + latest[0] if path in layers and latest else inputs[0]
            latest[:] = [given]
            return (given, *inputs[1:])

        module.register_forward_pre_hook(give)


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    layers = shortcuts_at(program.build(0), facts)
    made = replace(program, patches=(*program.patches, lambda model: with_shortcuts(model, layers)))
    yield Repair(made, "x = x + torch.relu(layer(x, edges))  # or two or three layers", "shortcuts around the layers")


FAULT = Fault("over_smoothing", "architecture", 43, suspected=_suspected, repairs=_repairs)
