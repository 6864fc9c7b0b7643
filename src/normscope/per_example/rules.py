"""The backward pass of the operations that `taps` listens to: the gradient of the input, and the summands of the
operands' gradients (see `summands`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from normscope.model.vector_norm import wide
from normscope.per_example.layout import Examples
from normscope.per_example.patches import Convolution
from normscope.per_example.summands import Summand, of_convolution, of_embedding, of_linear, of_rows

Operands = Sequence[Tensor | None]


class Rule(Protocol):
    """The backward pass of one call."""

    def x_gradient(self, x: Tensor, operands: Operands, delta: Tensor) -> Tensor:
        """The gradient of the input, from delta = the gradient of the output."""
        ...

    def summands(self, x: Tensor, operands: Operands, delta: Tensor, examples: Examples) -> list[Summand | None]:
        """What each operand's gradient is made of."""
        ...


class Linear:
    """x (..., in) times weight (out, in), plus bias."""

    def x_gradient(self, x: Tensor, operands: Operands, delta: Tensor) -> Tensor:
        """Shape of x."""
        (weight, _) = operands
        assert weight is not None
        return (delta.to(weight.dtype) @ weight).to(x.dtype)

    def summands(self, x: Tensor, operands: Operands, delta: Tensor, examples: Examples) -> list[Summand | None]:
        """Of weight and bias."""
        weight, bias = operands
        assert weight is not None
        wide_x, wide_delta = (examples.to_front(t.to(wide(weight.dtype))).flatten(1, -2) for t in (x, delta))
        return [of_linear(wide_x, wide_delta), None if bias is None else of_rows(wide_delta.sum(1))]


@dataclass(frozen=True)
class Convolve:
    """x (images, channels, *positions) with a kernel, plus bias."""

    how: Convolution

    def x_gradient(self, x: Tensor, operands: Operands, delta: Tensor) -> Tensor:
        """Shape of x."""
        weight = operands[0]
        assert weight is not None
        delta, same = delta.to(weight.dtype), x.to(weight.dtype)
        return self.how.backward(delta, same, weight, 1, [True, False, False])[0].to(x.dtype)

    def summands(self, x: Tensor, operands: Operands, delta: Tensor, examples: Examples) -> list[Summand | None]:
        """Of weight and bias."""
        weight, bias = operands
        assert weight is not None
        ahead = examples.to_front(x)
        images_x, images_delta = (examples.to_front(t).flatten(0, 1).to(wide(weight.dtype)) for t in (x, delta))
        kernel = of_convolution(images_x, images_delta, weight.to(wide(weight.dtype)), self.how, examples)
        if bias is None:
            return [kernel, None]
        over_positions = images_delta.sum(tuple(range(2, images_delta.ndim)))
        return [kernel, of_rows(over_positions.unflatten(0, ahead.shape[:2]).sum(1))]


@dataclass(frozen=True)
class Embed:
    """Rows of a table (words, features) for tokens of any shape."""

    padding_idx: int

    def x_gradient(self, x: Tensor, operands: Operands, delta: Tensor) -> Tensor:
        """Never asked for: tokens are integers."""
        raise NotImplementedError

    def summands(self, x: Tensor, operands: Operands, delta: Tensor, examples: Examples) -> list[Summand | None]:
        """Of the table."""
        table = operands[0]
        assert table is not None
        tokens, wide_delta = examples.to_front(x).flatten(1), examples.to_front(delta).flatten(1, -2)
        return [of_embedding(tokens, wide_delta.to(wide(table.dtype)), len(table), self.padding_idx)]


@dataclass(frozen=True)
class ScaleAndShift:
    """normalize(x) * weight + bias, where both broadcast against x: what norms do behind their normalization.

    `normalize` is run again in the backward pass, which costs less memory than keeping what it gave.
    """

    normalize: Callable[[Tensor], Tensor] | None
    channel_dim: int | None = None
    """Where a weight of one dimension lies along x; None where it broadcasts by itself."""

    def x_gradient(self, x: Tensor, operands: Operands, delta: Tensor) -> Tensor:
        """Shape of x."""
        weight = operands[0]
        scaled = delta if weight is None else delta * self._along(weight, x)
        if self.normalize is None:
            return scaled.to(x.dtype)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            normalized = self.normalize(leaf)
        return torch.autograd.grad(normalized, leaf, scaled.to(normalized.dtype))[0]

    def summands(self, x: Tensor, operands: Operands, delta: Tensor, examples: Examples) -> list[Summand | None]:
        """Of weight and bias."""
        weight, bias = operands
        found: list[Summand | None] = [None, None]
        if weight is not None:
            normalized = x if self.normalize is None else self.normalize(x)
            found[0] = self._summed(delta * normalized, weight, examples)
        if bias is not None:
            found[1] = self._summed(delta, bias, examples)
        return found

    def _along(self, operand: Tensor, x: Tensor) -> Tensor:
        if self.channel_dim is None:
            return operand
        return operand.view(-1, *[1] * (x.ndim - 1 - self.channel_dim))

    def _summed(self, terms: Tensor, operand: Tensor, examples: Examples) -> Summand:
        """Terms of x's shape, summed over all that the operand does not vary along, but for the examples."""
        along = self._along(operand, terms)
        sizes = [1] * (terms.ndim - along.ndim) + list(along.shape)
        if sizes.pop(examples.layout.dim) != 1:
            raise RuntimeError("a parameter varies along the examples")
        ahead = examples.to_front(terms.to(wide(operand.dtype)))
        dims = [1] + [i + 2 for i, size in enumerate(sizes) if size == 1]
        return of_rows(ahead.sum(dims).reshape(len(ahead), *operand.shape))
