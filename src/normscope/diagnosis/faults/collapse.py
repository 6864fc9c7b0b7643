"""Embeddings that become one point: a loss that brings two views of an example together, and nothing keeps examples
apart.

Measured before and after the program's own steps: what the loss gives for views that belong together, and for those
of different examples. A model that learns tells them apart; one that collapses does not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.descent.recipe import Recipe
from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.diagnosis.learnability import after_descent
from normscope.errors import NormscopeError
from normscope.model.batch import Batch, num_examples, parts_of
from normscope.model.layers import LayerCall, record_calls
from normscope.model.loss import LossFn, default_loss
from normscope.model.state import seeded
from normscope.statistics.numbers import number, percent

JUDGED, MOST_STEPS = 4, 500
"""Batches, and steps of the descent."""

APART, SHRUNK = 0.05, 0.5
"""The loss of views of different examples is higher by less than this share of what it fell by, and the embeddings'
spread fell to this share of what it was."""

NEARER = 0.9
"""Of the mean squared distance to another example's view, that to one's own."""

SEEN = 1e-4
"""Of the loss: less is no difference that views of other examples make."""

TINY = 1e-30


@contextmanager
def of_others(model: nn.Module, examples: int) -> Iterator[list[Tensor]]:
    """Every second call of the first layer gives each example what is another's, or the second half of its examples
    where it gets both views at once; yields what the layers give."""
    outputs: list[Tensor] = []
    calls: dict[str, int] = {}

    def exchange(call: LayerCall) -> Any:
        path = call.name.split("#")[0]
        first = next(iter(calls), path)
        calls[path] = calls.get(path, 0) + 1
        outputs[:] = [call.output.detach()]
        if path != first or not examples:
            return None
        if len(call.output) == 2 * examples:
            return torch.cat([call.output[:examples], call.output[examples:].roll(1, 0)])
        return call.output.roll(1, 0) if calls[path] % 2 == 0 else None

    with record_calls(model, exchange):
        yield outputs


def sees_two_views(model: nn.Module, batch: Batch, loss_fn: LossFn | None) -> bool:
    """Whether the first layer is asked for two views of every example, and no part of the batch is anything else."""
    examples = num_examples(batch)

    def asked(changed: int | None) -> tuple[list[Tensor], float]:
        inputs: list[Tensor] = []
        first: list[nn.Module] = []

        def keep(call: LayerCall) -> None:
            first[:] = first or [call.module]
            if call.module is first[0] and call.inputs and isinstance(call.inputs[0], Tensor):
                inputs.append(call.inputs[0].detach().clone())

        with seeded(model, 0), record_calls(model, keep):
            loss = float((loss_fn or default_loss)(model, _permuted(batch, changed)).detach())
        return [x for x in inputs if x.shape == inputs[0].shape and x.ndim > 1], loss

    try:
        inputs, loss = asked(None)
        twice = [len(x) for x in inputs[:2]] == [examples] * 2 or [len(x) for x in inputs] == [2 * (examples or 0)]
        if not twice or not are_views(*(inputs[:2] if len(inputs) > 1 else inputs[0].chunk(2))):
            return False
        for place in range(len(parts_of(batch))):
            given, other = asked(place)
            if len(given) == len(inputs) and all(map(torch.equal, given, inputs)) and other != loss:
                return False  # a target
    except Exception:  # somebody's own code
        return False
    return True


def are_views(one: Tensor, other: Tensor) -> bool:
    """Whether an example is nearer to its own than to another's: real and made examples, which a critic tells apart,
    are no views of the same."""

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a.double() - b.double()).square().mean())

    return distance(one, other) < NEARER * distance(one, other.roll(1, 0))


def _permuted(batch: Batch, place: int | None) -> Batch:
    if place is None:
        return batch
    parts = parts_of(batch)
    if isinstance(parts[place], Tensor) and parts[place].ndim:
        parts = [part.roll(1, 0) if i == place else part for i, part in enumerate(parts)]
    return type(batch)(parts) if isinstance(batch, tuple | list) else parts[0]


def _suspected(facts: Facts) -> Suspicion | None:
    program = facts.program
    model, batches = program.build(0), program.batches[:JUDGED]
    whole = not isinstance(batches[0], dict) and (num_examples(batches[0]) or 0) > 1
    if facts.run is None or not whole or not sees_two_views(model, batches[0], program.loss_fn):
        return None

    def judge() -> tuple[float, float, np.ndarray]:
        return apart(model, batches, program.loss_fn)

    with seeded(model, 0):
        start = judge()
    recipe = Recipe(program.optimizer, min(program.steps, MOST_STEPS), program.loss_fn)
    try:
        after = after_descent(model, program.batches, program.lr, recipe, 0, judge)
    except NormscopeError:
        return None
    if after is None:
        return None
    (loss, before, spreads), (end, gap, spreads_end) = start, after[1]
    if not abs(before) > SEEN * abs(loss):
        return None  # a mean over each view alone, as a critic's
    left = float((spreads_end / spreads).min())
    if not (end < loss and gap < APART * (loss - end) and left < SHRUNK):
        return None
    return Suspicion(
        "all embeddings become one point",
        f"The loss falls from {number(loss)} to {number(end)} in {recipe.steps} steps, and with views of different "
        f"examples it is only {number(max(gap, 0.0))} higher then. The outputs' spread over examples fell to "
        f"{percent(left)} of what it was.",
        {"gap": gap, "spread_left": left},
        True,
        place="the loss",
    )


def apart(model: nn.Module, batches: Sequence[Batch], loss_fn: LossFn | None) -> tuple[float, float, np.ndarray]:
    """The loss, by how much it is higher with views of different examples, and the spreads of the last layer's outputs
    over examples: as they are, relative to their size, and of their directions."""
    together, others, spreads = 0.0, 0.0, np.zeros(3)
    for place, batch in enumerate(batches):
        for examples in (0, num_examples(batch) or 0):
            torch.manual_seed(place)
            with of_others(model, examples) as outputs:
                loss = float((loss_fn or default_loss)(model, batch).detach())
            together, others = (together, others + loss) if examples else (together + loss, others)
        y = outputs[0].double().flatten(1)
        size = float(y.square().mean().sqrt())
        as_it_is, of_directions = (
            float((z - z.mean(0)).square().mean().sqrt()) for z in (y, nn.functional.normalize(y, dim=1))
        )
        spreads += [as_it_is, as_it_is / max(size, TINY), of_directions]
    return together / len(batches), (others - together) / len(batches), np.maximum(spreads, TINY)


def _advice(_facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    return (
        "Keep examples apart: let those of a batch be each other's negatives, or stop the gradient of one view and put "
        "a predictor behind the other.",
        "z1, z2 = nn.functional.normalize(z1, dim=1), nn.functional.normalize(z2, dim=1)\n"
        "loss = nn.functional.cross_entropy(z1 @ z2.T / 0.1, torch.arange(len(z1), device=z1.device))",
    )


FAULT = Fault("collapse", "loss", 14, suspected=_suspected, advice=_advice, early=True)
