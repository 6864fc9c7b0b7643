"""Listen to the operations that a model's parameters take part in, and learn from one backward pass what each example
adds to each parameter's gradient.

Operations are met as functions, whichever module or code calls them: linear maps, convolutions, embeddings, norms,
and sums and products with a parameter. Whatever else a parameter takes part in is left to autograd, which then gives it
a gradient: so it is known for sure whether everything was heard, and nothing is approximated.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from normscope.per_example.layout import Examples, Layout
from normscope.per_example.operations import COMPOSITES, OPERATIONS, Heard
from normscope.per_example.rules import Rule
from normscope.per_example.summands import Summand, squared_norms_and_sum
from normscope.runtime.torch_state import Args, Function, FunctionMode, Kwargs

Key = tuple[Any, ...]
"""A function and the indices of the parameters it is called with: tells one kind of call from another."""


class Taps(FunctionMode):
    """While entered, the forward pass is listened to; the backward pass then fills `squared_norms` and `sums`, by the
    parameter's index: (examples,) in float64, and the sum of the examples' gradients.

    Args:
        parameters: those to listen for.
        layout: gives the layout of an operation's input, or None to leave the operation to autograd; called in
            execution order with a key (function and parameters' indices) and the input of every operation that
            concerns them.
        num_examples: how many there are in the batch.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], layout: Callable[[Key, Tensor], Layout | None], num_examples: int
    ) -> None:
        super().__init__()
        self.num_examples = num_examples
        self.squared_norms: dict[int, Tensor] = {}
        self.sums: dict[int, Tensor] = {}
        self.work_space: dict[Any, Any] = {}
        self._parameters = parameters
        self._layout = layout
        self._index: dict[Tensor, int] = {parameter: i for i, parameter in enumerate(parameters)}
        self._uses = [0] * len(parameters)
        self._waiting: dict[int, list[Summand]] = {}

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        kwargs = kwargs or {}
        if func in COMPOSITES:
            with self:
                return _opened(func)(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # what is asked of tensors here is no other mode's business
            met = self._met(func, args, kwargs)
        if met is None:
            return func(*args, **kwargs)
        heard, indices, layout = met
        call = heard.call or partial(func, *args, **kwargs)
        return _Tapped.apply(self, indices, call, heard.rule, layout, heard.x, *heard.operands)

    def _met(self, func: Any, args: Any, kwargs: Any) -> tuple[Heard, tuple[int | None, ...], Layout] | None:
        """A call that is listened to, which parameters its operands are, and where the examples are in its input."""
        heard = OPERATIONS[func](func, args, kwargs) if func in OPERATIONS else None
        indices = () if heard is None else tuple(self._index_of(operand) for operand in heard.operands)
        if heard is None or not _nothing_is_lost(heard.operands, indices):
            return None
        layout = self._layout((func, *indices), heard.x)
        if layout is None:
            return None
        for index in indices:
            if index is not None:
                self._uses[index] += 1
        return heard, indices, layout

    def add(self, index: int, summand: Summand) -> None:
        """Note what one operation adds to a parameter's gradient; with its last operation the norms are taken."""
        waiting = self._waiting.setdefault(index, [])
        waiting.append(summand)
        if len(waiting) == self._uses[index]:
            self._take_norms(index)

    def finish(self) -> None:
        """Take the norms that still wait, because the loss does not depend on every operation that was heard."""
        for index in list(self._waiting):
            self._take_norms(index)

    def _take_norms(self, index: int) -> None:
        parameter = self._parameters[index]
        norms, total = squared_norms_and_sum(self._waiting.pop(index), self.num_examples, parameter.device)
        self.squared_norms[index], self.sums[index] = norms, total.reshape(parameter.shape)

    def _index_of(self, operand: Tensor | None) -> int | None:
        """The parameter that an operand is, or is only a reshaped view of; None for all else."""
        if operand is None or operand in self._index:
            return None if operand is None else self._index[operand]
        base = operand._base
        if base is None or base not in self._index or operand.numel() != base.numel():
            return None
        return self._index[base] if operand.is_contiguous() and base.is_contiguous() else None


def _nothing_is_lost(operands: Sequence[Tensor | None], indices: Sequence[int | None]) -> bool:
    """Whether a parameter is among the operands, and nothing else that needs a gradient: it would get none."""
    lost = [
        index is None and operand is not None and operand.requires_grad
        for operand, index in zip(operands, indices, strict=True)
    ]
    return not any(lost) and any(index is not None for index in indices)


class _Tapped(torch.autograd.Function):
    """Forward the call itself; backward the gradient of its input, and for its operands `Taps.add`.

    The operands are arguments, so that the backward pass is asked for; they are given no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        taps: Taps,
        indices: tuple[int | None, ...],
        call: Callable[[], Tensor],
        rule: Rule,
        layout: Layout,
        x: Tensor,
        *operands: Tensor | None,
    ) -> Tensor:
        ctx.taps, ctx.indices, ctx.rule, ctx.layout = taps, indices, rule, layout
        ctx.save_for_backward(x, *operands)
        result = call()
        return result if result._base is None else result.clone()  # a view could not be changed in place later on

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, delta: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, *operands = ctx.saved_tensors
        examples = Examples(ctx.layout, ctx.taps.num_examples, ctx.taps.work_space)
        summands = ctx.rule.summands(x, operands, delta, examples)
        for index, summand in zip(ctx.indices, summands, strict=True):
            if index is not None:
                ctx.taps.add(index, summand)
        x_gradient = ctx.rule.x_gradient(x, operands, delta) if ctx.needs_input_grad[5] else None
        return (*[None] * 5, x_gradient, *[None] * len(operands))


@cache
def _opened(function: FunctionType) -> FunctionType:
    """The same function, which does not hand itself over whole to a `TorchFunctionMode`."""
    quiet = dict.fromkeys(("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _no)
    opened = FunctionType(
        function.__code__, function.__globals__ | quiet, function.__name__, function.__defaults__, function.__closure__
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


def _no(*_: object) -> bool:
    return False
