"""Mean and variance of each channel from short float32 sums, in one pass; taken again where digits are lost."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from normscope.probes.moments.exact import exact_moments
from normscope.probes.moments.table import COLUMNS, as_table

ROWS = 512
"""The longest float32 sum, in rows. Over 20,001 rows, a mean of three deviations was off by 2e-6, the variance by 9e-5;
in sums of 512 rows by 6e-8 and 2e-6."""

LARGEST_SHIFT = 10.0
"""With a |mean| above this many standard deviations, E x² − mean² has lost digits that float32 cannot give back."""

SMALLEST_VARIANCE = 1e-30
"""Below this, squares start to fall under what float32 can hold."""

SMALL = 2**14
"""Outputs of no more elements are taken in float64 at once: nothing is gained by doing less."""

_LAYER_NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward.default


@dataclass(frozen=True)
class ShortSums:
    """Float32 sums of x and x² over the rows of a table, not pooled yet: small operations are slow between two layers
    that have swept the caches."""

    sums: Tensor
    squares: Tensor
    shape: tuple[int, int, int]
    """Of the columns: (outer, channels, inner)."""
    count: int
    """Elements of a channel."""

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each channel: two (channels,) float64 tensors, right where `trusted`."""
        mean, square = (
            t.view(self.shape).sum((0, 2), dtype=torch.float64) / self.count for t in (self.sums, self.squares)
        )
        return mean, square - mean.square()


def trusted(mean: Tensor, variance: Tensor) -> Tensor:
    """Channel by channel, whether E x² − mean² in float32 is finite and has kept its digits."""
    return variance.isfinite() & (variance > SMALLEST_VARIANCE) & (mean.square() < LARGEST_SHIFT**2 * variance)


def moments(output: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel along `dim`, over everything else: two (channels,) float64 tensors.

    They are finite wherever the activations are. On the CPU one pass takes short float32 sums of x and x², pooled in
    float64; where that overflows (activations of 1e19 have squares that do) or loses digits, the output is taken again
    in float64 throughout.
    """
    short = short_sums(output, dim)
    if short is not None:
        mean, variance = short.pooled()
        if trusted(mean, variance).all():
            return mean, variance
    return exact_moments(output, dim)


def short_sums(output: Tensor, dim: int) -> ShortSums | None:
    """One pass over an output on the CPU; None for one that is small, in float64, or elsewhere."""
    if output.device.type != "cpu" or output.dtype == torch.float64 or output.numel() <= SMALL:
        return None
    table, shape = as_table(output.detach(), dim)
    rows, columns = table.shape
    if table.dtype != torch.float32:
        table = table.float()
    if rows <= ROWS:
        sums, squares = _column_sums(table)
    else:
        parts = [_column_sums(some) for some in table.split(ROWS)]
        sums, squares = (torch.stack(some).sum(0, dtype=torch.float64) for some in zip(*parts, strict=True))
    count = output.numel() // shape[1]
    if columns > COLUMNS:  # too many to hold for every layer of a deep network
        sums, squares = (t.view(shape).sum((0, 2), dtype=torch.float64) for t in (sums, squares))
        shape = (1, shape[1], 1)
    return ShortSums(sums, squares, shape, count)


def _column_sums(table: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 sums of x and x² down the columns of a table (rows, columns).

    Layer norm's backward pass with input and output gradient x, mean 0 and scale 1: its weight gets Σ x·x, its bias
    Σ x, column by column. It is the one kernel of torch that reads x once for both.
    """
    rows, columns = table.shape
    zeros, ones, weight = _constants(rows, columns)
    _, squares, sums = _LAYER_NORM_BACKWARD(table, table, [columns], zeros, ones, weight, weight, [False, True, True])
    return sums, squares


@lru_cache(maxsize=64)
def _constants(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(rows, 1), torch.ones(rows, 1), torch.ones(columns)
