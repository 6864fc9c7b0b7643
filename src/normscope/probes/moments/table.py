"""An output as a table with its channels along the columns, without a copy where its memory is dense."""

import math
from functools import lru_cache

import torch
from torch import Tensor

COLUMNS = 4096
"""Positions are folded into the columns up to this width: there the kernel is fastest, its float32 sums are short."""


def as_table(output: Tensor, dim: int) -> tuple[Tensor, tuple[int, int, int]]:
    """The output as (rows, columns), without a copy where its memory is dense, and the columns' shape."""
    layout = _layout(output.shape, output.stride(), dim)
    if layout is None:
        output = output.movedim(dim, -1).contiguous()
        layout = _layout(output.shape, output.stride(), output.ndim - 1)
        assert layout is not None
    size, shape = layout
    return output.as_strided(size, (size[1], 1)), shape


# Both caches only spare Python work, which is slow between two layers that have just swept the processor's caches.
@lru_cache(maxsize=256)
def _layout(size: torch.Size, stride: tuple[int, ...], dim: int) -> tuple[tuple[int, int], tuple[int, int, int]] | None:
    """(rows, columns) and the columns' shape (outer, channels, inner) of an output that is dense in memory, channels
    last or in the order of its dimensions; None for any other."""
    in_order = list(range(len(size)))
    for order in ([*in_order[:dim], *in_order[dim + 1 :], dim], in_order):
        expected = 1
        for d in reversed(order):
            if size[d] != 1 and stride[d] != expected:
                break
            expected *= size[d]
        else:
            inner = math.prod(size[d] for d in order[order.index(dim) + 1 :])
            width = size[dim] * inner
            rows = math.prod(size) // width
            outer = math.gcd(rows, 2 ** int(math.log2(max(1, COLUMNS // width))))
            return (rows // outer, outer * width), (outer, size[dim], inner)
    return None
