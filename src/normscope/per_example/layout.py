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

    def to_front(self, tensor: Tensor, num_examples: int) -> Tensor:
        """(num_examples, each, *other dimensions)."""
        sizes = (self.each, num_examples) if self.interleaved else (num_examples, self.each)
        split = tensor.unflatten(self.dim, sizes)
        if self.interleaved:
            split = split.transpose(self.dim, self.dim + 1)
        return split.movedim((self.dim, self.dim + 1), (0, 1))


def layout_of(one: Tensor, tensor: Tensor, num_examples: int, place: int) -> Layout | None:
    """Where the examples are in an operation's input, from what it is on the single example `place` (on the meta device
    where only its shape is known) and on the batch; None where these do not tell."""
    if one.ndim != tensor.ndim:
        return None
    differ = [dim for dim in range(one.ndim) if one.shape[dim] != tensor.shape[dim]]
    if len(differ) != 1 or tensor.shape[differ[0]] != num_examples * one.shape[differ[0]]:
        return None
    dim, each = differ[0], one.shape[differ[0]]
    if each == 1 or one.is_meta:
        return Layout(dim, each) if each == 1 else None
    in_a_row = tensor.unflatten(dim, (num_examples, each)).select(dim, place)
    interleaved = tensor.unflatten(dim, (each, num_examples)).select(dim + 1, place)
    return Layout(dim, each, bool((interleaved - one).abs().sum() < (in_a_row - one).abs().sum()))


@dataclass(frozen=True)
class Examples:
    """Where the examples are in one operation's tensors, and work space that layers of the same shape share."""

    layout: Layout
    count: int
    work_space: dict[Any, Any]

    def to_front(self, tensor: Tensor) -> Tensor:
        """(examples, entries of each, *other dimensions)."""
        return self.layout.to_front(tensor, self.count)
