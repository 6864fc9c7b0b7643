"""Does a model of sequences see what it is to foretell? Told by changing inputs and comparing outputs.

Of a model that gives an output at every position, and whose targets are its inputs of the next position:

    leak = rms(f(x)_<t − f(x′)_<t) / std f(x),    x′ = x before t, another example's from t on.

Behind a causal mask it is 0, for any weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normscope.diagnosis.module_calls import LEAKS, Calls, first_changed, module_calls
from normscope.model.batch import Batch, num_examples, take, targets_of
from normscope.model.loss import IGNORED_LABEL, LossFn, default_loss
from normscope.model.output import Output, output_tensor
from normscope.model.state import untouched

ALIKE = 0.95
"""Share of the positions at which targets and inputs are equal."""

FEWEST = 16
"""Positions that are compared, at least."""

MOST_EXAMPLES = 8
"""Of a batch."""


@dataclass(frozen=True)
class Order:
    """How targets and outputs of a sequence are related to its inputs."""

    ahead: int
    """How many positions ahead of an output the input lies that it is to foretell; 1 for the next token."""
    leak: float
    """See above; of inputs one or more positions ahead."""
    leaks_in: str
    """The path of the first module whose output leaks though its inputs do not; "" for the model itself."""
    context: float
    """The same of inputs before an output: 0 where positions do not see each other."""


def order_of(
    model: nn.Module, batches: Sequence[Batch], loss_fn: LossFn | None = None, *, seed: int = 0
) -> Order | None:
    """See above; None of what is no model of sequences, or whose targets are not its inputs."""
    pairs = [pair for batch in batches if (pair := _inputs_and_targets(batch)) is not None]
    if not pairs or len(pairs) != len(batches):
        return None
    shifts = [shift for shift in (1, 0) if _alike(pairs, shift)]
    if len(shifts) != 1:  # of constant sequences both
        return None
    batch = some_of(batches[0])
    if (num_examples(batch) or 0) < 2:
        return None
    ahead = shifts[0] + (_shift_in_loss(model, batch, loss_fn, seed) if hasattr(batch, "keys") else 0)
    x = pairs[0][0][: num_examples(batch)]
    half = x.shape[1] // 2
    other = x.roll(1, 0)
    later = torch.cat([x[:, :half], other[:, half:]], 1)
    sooner = torch.cat([other[:, :half], x[:, half:]], 1)
    shape = x.shape[:2]

    def by_position(tensor: Tensor) -> Tensor | None:
        fits = tensor.shape[:2] == shape or tensor.shape[0] == shape.numel()
        return tensor.reshape(*shape, -1) if fits and not tensor.numel() % shape.numel() else None

    seen = [module_calls(model, _with_inputs(batch, i), loss_fn, seed, by_position) for i in (x, later, sooner)]
    calls, calls_changed, calls_unlike = seen
    if calls is None or calls_changed is None or calls_unlike is None:
        return None
    outputs, changed, unlike = (_outputs(each) for each in (calls, calls_changed, calls_unlike))
    spread = float(outputs.std()) or 1.0

    def change(one: Tensor, two: Tensor) -> float:
        return float((one - two).square().mean().sqrt()) / spread

    leak = change(outputs[:, :half], changed[:, :half])
    where = first_changed(calls, calls_changed, (slice(None), slice(half))) if leak > LEAKS else ""
    return Order(ahead, leak, where, change(outputs[:, half:], unlike[:, half:]))


def some_of(batch: Batch) -> Batch:
    """The first examples of a batch, also where its targets run over examples and positions."""
    size = num_examples(batch) or 1
    kept = range(min(size, MOST_EXAMPLES))
    targets = targets_of(batch)
    some = take(batch, kept)
    over_positions = targets is not None and targets.ndim == 1 and len(targets) > size and not len(targets) % size
    if targets is not None and over_positions and isinstance(some, tuple | list):
        return type(some)([some[0], targets.reshape(size, -1)[: len(kept)].flatten()])
    return some


def _inputs_and_targets(batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Inputs and targets, (examples, positions, ...) both, of the same shape; None where they are not."""
    if hasattr(batch, "keys"):
        x, y = batch.get("input_ids"), batch.get("labels")
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        x, y = batch
    else:
        return None
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.ndim < 2 or x.numel() != y.numel():
        return None
    if x.ndim == 2 and x.is_floating_point():
        return None  # features in no order
    return x, y.reshape(x.shape)


def _alike(pairs: Sequence[tuple[Tensor, Tensor]], shift: int) -> bool:
    """Whether the targets are the inputs `shift` positions on."""
    equal = compared = 0
    for x, y in pairs:
        y, x = (y[:, :-shift], x[:, shift:]) if shift else (y, x)
        counted = y != IGNORED_LABEL
        equal += int((torch.isclose(x.double(), y.double()) & counted).sum())
        compared += int(counted.sum())
    return compared >= FEWEST and equal >= ALIKE * compared


def _shift_in_loss(model: nn.Module, batch: Batch, loss_fn: LossFn | None, seed: int) -> int:
    """By how many positions the loss itself moves the labels: 1 where label t is compared with output t − 1."""
    labels = torch.full_like(batch["labels"], IGNORED_LABEL)
    place = labels.shape[1] // 2
    labels[:, place] = batch["labels"][:, place]
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Output) -> None:
        tensor = output_tensor(output)
        if tensor is not None and tensor.requires_grad:
            kept.append(tensor)

    with untouched(model), torch.enable_grad():
        torch.manual_seed(seed)
        model.register_forward_hook(keep)
        try:
            loss = (loss_fn or default_loss)(model, {**batch, "labels": labels})
            (gradient,) = torch.autograd.grad(loss, kept[0], allow_unused=True)
        except Exception:  # somebody's own code
            return 0
    if gradient is None or gradient.ndim < 3:
        return 0
    asked = gradient.abs().flatten(2).sum(2).sum(0)
    return int(place - 1 == int(asked.argmax()))


def _outputs(calls: Calls) -> Tensor:
    """Those of the model itself, (examples, positions, outputs) in float64."""
    return next(given for path, _, given in calls if not path)


def _with_inputs(batch: Batch, inputs: Tensor) -> Batch:
    return {**batch, "input_ids": inputs} if hasattr(batch, "keys") else type(batch)([inputs, batch[1]])
