"""Where the examples of a batch are in the tensors that a model works on."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the examples are in a tensor: along `dim`, `each` entries for every example, one example after the other;
    or, where they are interleaved, one entry of every example after the other."""

    dim: int
    each: int
    interleaved: bool = False

    def fits(self, tensor: Tensor, num_examples: int) -> bool:
        """Whether a tensor has room for as many examples here."""
        return self.dim < tensor.ndim and tensor.shape[self.dim] == num_examples * self.each

    def to_front(self, tensor: Tensor, num_examples: int) -> Tensor:
        """(num_examples, each, *other dimensions)."""
        sizes = (self.each, num_examples) if self.interleaved else (num_examples, self.each)
        split = tensor.unflatten(self.dim, sizes)
        if self.interleaved:
            split = split.transpose(self.dim, self.dim + 1)
        return split.movedim((self.dim, self.dim + 1), (0, 1))


def layout_of(one: Tensor, two: Tensor) -> Layout | None:
    """Where the examples are in an operation's input, from its input on one example (on the meta device where only its
    shape is known) and its input on that one and another; None where they do not tell."""
    if one.ndim != two.ndim:
        return None
    differ = [dim for dim in range(one.ndim) if one.shape[dim] != two.shape[dim]]
    if len(differ) != 1 or two.shape[differ[0]] != 2 * one.shape[differ[0]]:
        return None
    dim, each = differ[0], one.shape[differ[0]]
    if each == 1 or one.is_meta:
        return Layout(dim, each) if each == 1 else None
    first = two.unflatten(dim, (2, each)).select(dim, 0)
    every_other = two.unflatten(dim, (each, 2)).select(dim + 1, 0)
    return Layout(dim, each, interleaved=bool((every_other - one).abs().sum() < (first - one).abs().sum()))


@dataclass(frozen=True)
class Examples:
    """Where the examples are in one operation's tensors, and work space that layers of the same shape share."""

    layout: Layout
    count: int
    work_space: dict[Any, Any]

    def to_front(self, tensor: Tensor) -> Tensor:
        """(examples, entries of each, *other dimensions)."""
        return self.layout.to_front(tensor, self.count)
