"""A loss with second derivatives of the outputs, and an activation whose second derivative is 0, as that of ReLU."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.model.batch import Batch
from normscope.model.loss import LossFn, default_loss
from normscope.model.state import untouched
from normscope.runtime.torch_state import Args, Function, Kwargs

KINKED = ("relu", "relu_", "leaky_relu", "leaky_relu_", "relu6", "hardtanh", "threshold", "prelu", "rrelu")
"""Activations of straight pieces, by torch's names."""


@dataclass(frozen=True)
class Derivative:
    """What `torch.autograd.grad` gave inside the loss."""

    order: int
    zero: bool


class _Inside(TorchFunctionMode):
    """Keeps the derivatives that a loss takes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Derivative] = []
        self.orders: dict[Any, int] = {}

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "grad" and args and isinstance(given, tuple):
            outputs = [args[0]] if isinstance(args[0], Tensor) else list(args[0])
            order = 1 + max((self.order(y) for y in outputs if isinstance(y, Tensor)), default=0)
            for tensor in given:
                if isinstance(tensor, Tensor):
                    self.found.append(Derivative(order, not bool(tensor.detach().any())))
                    if tensor.grad_fn is not None:
                        self.orders[tensor.grad_fn] = order
        return given

    def order(self, tensor: Tensor) -> int:
        """Of the highest derivative that a number is made of."""
        waiting, seen, order = [tensor.grad_fn], set(), 0
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            order = max(order, self.orders.get(node, 0))
            waiting += [after for after, _ in node.next_functions]
        return order


class _Smooth(TorchFunctionMode):
    """Tanh in the place of every activation of straight pieces."""

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        if getattr(func, "__name__", "") in KINKED:
            return torch.tanh(args[0])
        return func(*args, **(kwargs or {}))


def smooth(loss_fn: LossFn | None) -> LossFn:
    """The loss with smooth activations in the model."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with _Smooth():
            return (loss_fn or default_loss)(model, batch)

    return loss


def derivatives(model: nn.Module, batch: Batch, loss_fn: LossFn | None) -> list[Derivative]:
    """What the loss takes, in order; none where it cannot be evaluated."""
    with untouched(model), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training itself repeats them
        torch.manual_seed(0)
        try:
            with _Inside() as seen:
                (loss_fn or default_loss)(model, batch)
        except Exception:  # somebody's own code
            return []
    return seen.found


def _suspected(facts: Facts) -> Suspicion | None:
    program = facts.program
    taken = derivatives(program.build(0), program.batches[0], program.loss_fn)
    higher = [one.zero for one in taken if one.order > 1]
    if not any(higher) or all(one.zero for one in taken if one.order == 1):
        return None
    smoothed = derivatives(program.build(0), program.batches[0], smooth(program.loss_fn))
    if len(smoothed) != len(taken) or any(one.zero for one in smoothed):
        return None
    return Suspicion(
        "second derivatives are zero",
        f"Of the second derivatives that the loss takes, {sum(higher)} of {len(higher)} are 0 at every place: the "
        "activations are straight in pieces, so no weights give them another value.",
        {"zero_derivatives": float(sum(higher))},
        True,
    )


def _repairs(program: Program, _facts: Facts) -> Iterator[Repair]:
    made = replace(program, loss_fn=smooth(program.loss_fn))
    yield Repair(made, "nn.Tanh()  # in the place of every nn.ReLU()", "tanh in the place of ReLU")


FAULT = Fault("second_derivative", "activation", 29, suspected=_suspected, repairs=_repairs)
