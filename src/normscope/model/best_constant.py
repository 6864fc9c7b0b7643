"""What a loss can reach without looking at the input: the model's output is replaced by a constant, which is fitted.

    L_c = min over c of the mean over batches of ℓ(c, targets)

For cross-entropy that is the entropy of the labels' shares, whatever their shape; for squared error the variance of the
targets. A network that merely shrinks its outputs gets no further than this.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normscope.model.batch import Batch
from normscope.model.output import Output, outputs_in_place
from normscope.model.state import untouched

MOST_NUMBERS = 2**20
"""A constant of more entries than this is not fitted."""

EVALUATIONS = 60
"""Of the loss of all batches, while it is fitted; each costs the loss alone, and no pass through the model."""


@dataclass
class _Output:
    """What a model gave for a batch."""

    leaves: list[Tensor]
    structure: Any
    inputs_length: int

    def shapes(self, batch: Batch) -> list[tuple[int, ...]]:
        """Of a constant for every tensor: as that of an example, or of its classes where labels have positions."""
        labels = _labels(batch)
        return [_constant_shape(leaf, labels) for leaf in self.leaves]

    def rebuilt(self, constants: Sequence[Tensor], inputs_length: int) -> Any:
        """The constants in the place of the tensors, for as many examples as the inputs have."""
        share = inputs_length / self.inputs_length
        expanded = [
            c.expand(round(len(leaf) * share), *leaf.shape[1:]) if leaf.ndim else c
            for c, leaf in zip(constants, self.leaves, strict=True)
        ]
        return pytree.tree_unflatten(expanded, self.structure)


def best_constant_loss(model: nn.Module, batches: Sequence[Batch], loss: Callable[[nn.Module, Batch], Tensor]) -> float:
    """The lowest mean loss over the batches at any constant output, for a loss that calls the model as a whole.

    A constant is one number for every entry of an example's output; where labels have a position, one for every class,
    the same at all positions. Runs the model once, in the mode it is in, and leaves no trace.

    Returns:
        NaN where the loss does not follow from what the model gives: it calls parts of it, is computed inside of it, or
        differentiates the output by the input.
    """
    try:
        with untouched(model):
            given = _given(model, batches[0], loss)
            if given is None or sum(map(math.prod, given.shapes(batches[0]))) > MOST_NUMBERS:
                return math.nan
            return _fitted(model, batches, loss, given)
    except Exception:  # somebody's loss, of what no model of theirs would give: then nothing is known
        return math.nan


def _given(model: nn.Module, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor]) -> _Output | None:
    """The model's output in the first of its calls; None where it is not called, or gives other things than tensors."""
    caught: list[_Output] = []

    def hook(_module: nn.Module, inputs: Any, named: Any, output: Output) -> None:
        leaves, structure = pytree.tree_flatten(output)
        if not caught and leaves and all(isinstance(leaf, Tensor) for leaf in leaves):
            caught.append(_Output([leaf.detach() for leaf in leaves], structure, _length(inputs, named)))

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            loss(model, batch)
    finally:
        handle.remove()
    return caught[0] if caught and all(leaf.is_floating_point() for leaf in caught[0].leaves) else None


def _fitted(
    model: nn.Module, batches: Sequence[Batch], loss: Callable[[nn.Module, Batch], Tensor], given: _Output
) -> float:
    constants = [
        leaf.float().mean([i for i, n in enumerate(shape) if n == 1], keepdim=True).requires_grad_(True)
        for leaf, shape in zip(given.leaves, given.shapes(batches[0]), strict=True)
    ]
    optimizer = torch.optim.LBFGS(constants, max_iter=EVALUATIONS, max_eval=EVALUATIONS, line_search_fn="strong_wolfe")
    lowest = math.inf

    def constant_output(*inputs: Any, **named: Any) -> Any:
        return given.rebuilt(constants, _length(inputs, named))

    def mean_loss() -> Tensor:
        nonlocal lowest
        optimizer.zero_grad()
        torch.manual_seed(0)  # the same noise in every evaluation
        with outputs_in_place(model, constant_output):
            total = torch.stack([loss(model, batch).double().reshape(()) for batch in batches]).mean()
        total.backward()
        if math.isfinite(value := float(total.detach())):
            lowest = min(lowest, value)
        return total

    with torch.enable_grad():
        optimizer.step(mean_loss)
    return lowest if math.isfinite(lowest) and any(c.grad is not None for c in constants) else math.nan


def _constant_shape(leaf: Tensor, labels: Tensor | None) -> tuple[int, ...]:
    """Of a constant that expands to this output."""
    shape = leaf.shape
    if not shape:
        return ()
    if labels is not None and len(shape) > 2:
        by_position = labels.numel() != len(labels)
        if by_position and labels.shape == shape[:1] + shape[2:]:
            return (1, shape[1], *[1] * (len(shape) - 2))
        if by_position or labels.numel() == math.prod(shape[:-1]):
            return (*[1] * (len(shape) - 1), shape[-1])
    return (1, *shape[1:])


def _labels(batch: Batch) -> Tensor | None:
    """What may be classes: the second part of a pair or a mapping's `labels`, where these are integers."""
    if isinstance(batch, Mapping):
        found = batch.get("labels")
    else:
        found = batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None
    return found if isinstance(found, Tensor) and found.ndim and not found.is_floating_point() else None


def _length(inputs: Any, named: Any) -> int:
    leaves = pytree.tree_leaves((inputs, named))
    return next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), 1)
