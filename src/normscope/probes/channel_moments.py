"""How large are the activations, channel by channel, as depth grows? (Figure 5)

For every watched call with output y (examples b, positions p, channels c)

    mean_c = E_{b,p} y_{bpc},    variance_c = E_{b,p} (y_{bpc} − mean_c)²    (the biased estimate, as batch norm uses).
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.errors import InvalidModel
from normscope.layers import channel_dim, depths, watch
from normscope.objective import LossFn, checked_loss
from normscope.results import labelled, provenance
from normscope.untouched import untouched

COLUMNS = 2048
"""Positions are folded into the columns up to this width: there the kernel is fastest, its float32 sums are short."""

LARGEST_SHIFT = 10.0
"""With a |mean| above this many standard deviations, E x² − mean² has lost digits that float32 cannot give back."""

SMALLEST_VARIANCE = 1e-30
"""Below this, squares start to fall under what float32 can hold."""

_LAYER_NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward.default

CHUNK = 2**17
"""Elements taken at a time in float64: a mebibyte, so that what is read twice is read from the cache."""


def moments(output: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel along `dim`, over everything else: two (channels,) float64 tensors.

    They are finite wherever the activations are. On the CPU one pass takes short float32 sums of x and x², pooled in
    float64; where that overflows (activations of 1e19 have squares that do) or loses digits, the output is taken again
    in float64 throughout.
    """
    return start_moments(output.detach(), dim)()


def start_moments(output: Tensor, dim: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Read the output now, as it may change in place, and give its `moments` when called; without gradients.

    What is not needed at once waits: small operations are slow between two layers that have swept the caches.
    """
    if output.device.type != "cpu":
        rows = output.movedim(dim, -1).reshape(-1, output.shape[dim])
        variance, mean = torch.var_mean(rows.double(), dim=0, correction=0)
        return _done((mean, variance))
    table, shape = _as_table(output, dim)
    if output.dtype != torch.float64:
        sums, squares = column_sums(table)
        if _trusted(sums, squares, shape, examples=output.numel() // output.shape[dim]):
            finish = partial(_pooled, sums, squares, shape, len(table))  # holds the sums, not the output
            return finish if table.shape[1] <= COLUMNS else _done(finish())
    return _done(exact_moments(table, shape))


def _done(moments: tuple[Tensor, Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: moments


def column_sums(table: Tensor) -> tuple[Tensor, Tensor]:
    """Σ x and Σ x² of each column of (rows, columns), in float32, in one pass."""
    rows, columns = table.shape
    zeros, ones, weight = _constants(rows, columns)
    if table.dtype != torch.float32:
        table = table.float()
    # Layer norm's backward pass with input and output gradient x, mean 0 and scale 1: its weight gets Σ x·x, its bias
    # Σ x, column by column. It is the one kernel of torch that reads x once for both.
    _, squares, sums = _LAYER_NORM_BACKWARD(table, table, [columns], zeros, ones, weight, weight, [False, True, True])
    return sums, squares


def _trusted(sums: Tensor, squares: Tensor, shape: tuple[int, int, int], examples: int) -> bool:
    """Whether every channel is finite, has a |mean| below `LARGEST_SHIFT` standard deviations, and is not too small."""
    total, square = sums.view(shape).sum((0, 2)), squares.view(shape).sum((0, 2))
    lowest, highest = torch.addcmul(square, total, total, value=-(1 + LARGEST_SHIFT**-2) / examples).aminmax()
    return SMALLEST_VARIANCE * examples < lowest.item() and highest.item() < math.inf


def _pooled(sums: Tensor, squares: Tensor, shape: tuple[int, int, int], rows: int) -> tuple[Tensor, Tensor]:
    mean, square = (t.view(shape).double().mean((0, 2)) / rows for t in (sums, squares))
    return mean, square - mean.square()


def exact_moments(table: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel in float64, from the same table: those of every column j over a chunk of
    rows, pooled as mean = E mean_j and variance = E [variance_j + (mean_j − mean)²]."""
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


def channel_moments(
    model: nn.Module, batch: Any, *, loss_fn: LossFn | None = None, layers: str | Sequence[str] | None = None
) -> xr.Dataset:
    """Mean and biased variance of every channel of every watched call, in execution order (figure 5).

    One forward pass in training mode; the model comes back untouched.

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
    names: list[str] = []
    started: list[Callable[[], tuple[Tensor, Tensor]]] = []

    def on_call(name: str, module: nn.Module, output: Tensor) -> None:
        names.append(name)
        started.append(start_moments(output, channel_dim(module, output)))

    with untouched(model), torch.no_grad(), watch(model, on_call, layers):
        model.train()
        checked_loss(model, batch, loss_fn)
    parameter = next(model.parameters())
    if not names:
        raise InvalidModel("none of the chosen layers is called, or gives a tensor: see `normscope layers MODEL`")
    measured = [finish() for finish in started]
    widths = [len(mean) for mean, _ in measured]
    table = np.full((2, len(names), max(widths)), np.nan)
    flat = torch.stack([torch.cat([pair[i] for pair in measured]) for i in range(2)]).cpu().numpy()
    for row, (stop, width) in enumerate(zip(np.cumsum(widths), widths, strict=True)):
        table[:, row, :width] = flat[:, stop - width : stop]
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
