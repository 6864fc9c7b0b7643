"""How large are the activations, channel by channel, as depth grows? (Figure 5)

For every watched call with output y (examples b, positions p, channels c)

    mean_c = E_{b,p} y_{bpc},    variance_c = E_{b,p} (y_{bpc} − mean_c)²    (the biased estimate, as batch norm uses).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.batch_norm_moments import BatchNormMoments
from normscope.errors import InvalidModel
from normscope.layers import channel_dim, depths, watch
from normscope.objective import LossFn, checked_loss
from normscope.results import labelled, provenance
from normscope.untouched import untouched

COLUMNS = 4096
"""Positions are folded into the columns up to this width: there the kernel is fastest, its float32 sums are short."""

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

CHUNK = 2**17
"""Elements taken at a time in float64: a mebibyte, so that what is read twice is read from the cache."""


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
    table, shape = _as_table(output.detach(), dim)
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


def exact_moments(output: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """As `moments`, in float64 throughout. On the CPU those of every column j of a table over a chunk of rows, pooled
    as mean = E mean_j and variance = E [variance_j + (mean_j − mean)²]."""
    output = output.detach()
    if output.device.type != "cpu":
        rows = output.movedim(dim, -1).reshape(-1, output.shape[dim])
        variance, mean = torch.var_mean(rows.double(), dim=0, correction=0)
        return mean, variance
    table, shape = _as_table(output, dim)
    chunks = table.split(max(16, CHUNK // table.shape[1]))
    # The kernel behind batch norm's training pass, which centres before it squares.
    pairs = [torch.batch_norm_update_stats(chunk.double(), None, None, 0.0) for chunk in chunks]
    means, variances = (torch.stack([pair[i] for pair in pairs]).view(-1, *shape) for i in range(2))
    share = torch.tensor([len(chunk) / (len(table) * shape[0] * shape[2]) for chunk in chunks], dtype=torch.float64)
    share = share.view(-1, 1, 1, 1)
    mean = (share * means).sum((0, 1, 3))
    variance = (share * (variances + (means - mean[:, None]).square())).sum((0, 1, 3))
    return mean, variance


def _as_table(output: Tensor, dim: int) -> tuple[Tensor, tuple[int, int, int]]:
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


@lru_cache(maxsize=64)
def _constants(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(rows, 1), torch.ones(rows, 1), torch.ones(columns)


Reading = ShortSums | tuple[Tensor, Tensor]
"""What is known of an output: sums still to be pooled, or mean and variance."""


def _one_pass(
    model: nn.Module, batch: Any, loss_fn: LossFn | None, layers: str | Sequence[str] | None, exact: set[str]
) -> dict[str, Reading]:
    """What one forward pass shows of every watched call; the moments in float64 throughout of those in `exact`, which
    others join that are taken so at once."""
    read: dict[str, Reading] = {}

    def take(name: str, output: Tensor, dim: int) -> None:
        short = None if name in exact else short_sums(output, dim)
        if short is None:
            exact.add(name)
        read[name] = exact_moments(output, dim) if short is None else short

    def found(name: str, mean: Tensor, variance: Tensor) -> None:
        read[name] = mean, variance

    def settle() -> None:
        """Read what no batch norm has asked for."""
        if (left := norms.left_over()) is not None and left[1] is not None:
            take(left[0], left[1], 1)

    def on_call(name: str, module: nn.Module, output: Tensor) -> None:
        settle()
        dim = channel_dim(module, output)
        if name not in exact and output.numel() > SMALL and norms.expect(name, module, output, dim):
            read[name] = _unknown(output.shape[dim])  # holds the place
        else:
            take(name, output, dim)

    with untouched(model), torch.no_grad(), watch(model, on_call, layers):
        model.train()
        norms = BatchNormMoments(model, found)
        with norms.listening():
            checked_loss(model, batch, loss_fn)
        settle()
    if not read:
        raise InvalidModel("none of the chosen layers is called, or gives a tensor: see `normscope layers MODEL`")
    return read


@cache
def _unknown(channels: int) -> tuple[Tensor, Tensor]:
    nothing = torch.full((channels,), math.nan, dtype=torch.float64)
    return nothing, nothing


def channel_moments(
    model: nn.Module, batch: Any, *, loss_fn: LossFn | None = None, layers: str | Sequence[str] | None = None
) -> xr.Dataset:
    """Mean and biased variance of every channel of every watched call, in execution order (figure 5).

    One forward pass in training mode; the model comes back untouched. Where float32 sums overflow or lose digits in a
    call, a second pass takes it in float64.

    Args:
        batch: `(inputs, labels)`, a mapping, or anything `loss_fn(model, batch)` takes.
        layers: None for every layer that owns a weight; else shell patterns on module paths ("layer1.*.conv1").

    Returns:
        Dataset over `layer` and `channel` (padded with NaN up to the widest layer; `num_channels(layer)` says how many
        are real): `mean`, `variance`; and the coordinate `depth(layer)`, its place on the main path (NaN beside it).

    Raises:
        InvalidModel: where no layer matches or is called, and see `objective.checked_loss`.
        InvalidBatch, DeviceError: see there too.
    """
    exact: set[str] = set()
    while True:
        read = _one_pass(model, batch, loss_fn, layers, exact)
        pairs = [one.pooled() if isinstance(one, ShortSums) else one for one in read.values()]
        names, widths = list(read), [len(mean) for mean, _ in pairs]
        flat = torch.stack([torch.cat([pair[i] for pair in pairs]) for i in range(2)]).cpu()
        fine = trusted(*flat).split(widths)
        doubtful = {name for name, ok in zip(names, fine, strict=True) if name not in exact and not ok.all()}
        if not doubtful:
            break
        exact |= doubtful
    table = np.full((2, len(names), max(widths)), np.nan)
    for row, (stop, width) in enumerate(zip(np.cumsum(widths), widths, strict=True)):
        table[:, row, :width] = flat[:, stop - width : stop].numpy()
    parameter = next(model.parameters())
    dataset = labelled(
        {
            "mean": (("layer", "channel"), table[0], "channel mean", "1"),
            "variance": (("layer", "channel"), table[1], "channel variance", "1"),
            "num_channels": ("layer", widths, "number of channels", "1"),
        },
        {"layer": (names, "layer", "1"), "channel": (np.arange(table.shape[2]), "channel", "1")},
        **provenance(device=parameter.device, dtype=parameter.dtype),
    )
    return dataset.assign_coords(depth=("layer", depths(names), {"long_name": "layer on the main path", "units": "1"}))
