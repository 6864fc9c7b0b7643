"""How large are the activations, channel by channel, as depth grows? (Figure 5)

For every watched call with output y (examples b, positions p, channels c)

    mean_c = E_{b,p} y_{bpc},    variance_c = E_{b,p} (y_{bpc} − mean_c)²    (the biased estimate, as batch norm uses).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.layers import channel_dim, depths, watch
from normscope.objective import LossFn, checked_loss
from normscope.results import labelled, provenance
from normscope.untouched import untouched

SMALLEST_SAFE_VARIANCE = 1e-30
"""Below this a float32 variance starts to lose digits, and the moments are taken again in float64."""


def moments(output: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel along `dim`, over everything else: two (channels,) float64 tensors.

    They are finite wherever the activations are: a float32 variance, which overflows once activations reach 1e19, is
    taken again in float64.
    """
    channels = output.shape[dim]
    if output.ndim < 3 or dim == output.ndim - 1:
        rows = output.detach().movedim(dim, -1).reshape(-1, channels)
    elif dim == 1 and not output.is_cuda:
        rows = output.detach()
    else:
        rows = (
            output.detach()
            .movedim(dim, 1)
            .reshape(-1, channels, *[n for i, n in enumerate(output.shape) if i not in (0, dim)])
        )
    if rows.is_cuda or rows.dtype == torch.float64:
        return exact_moments(rows)
    # The kernel behind batch norm's training pass: both moments in one call, accumulated in float64.
    mean, variance = torch.batch_norm_update_stats(rows.float(), None, None, 0.0)
    if bool((variance > SMALLEST_SAFE_VARIANCE).all() & torch.isfinite(variance).all()):
        return mean.double(), variance.double()
    return exact_moments(rows)


def exact_moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all but dimension 1, in float64."""
    variance, mean = torch.var_mean(rows.double(), dim=[i for i in range(rows.ndim) if i != 1], correction=0)
    return mean, variance


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
        InvalidModel: where no layer matches, and see `objective.checked_loss`.
    """
    names: list[str] = []
    measured: list[tuple[Tensor, Tensor]] = []

    def on_call(name: str, module: nn.Module, output: Tensor) -> None:
        names.append(name)
        measured.append(moments(output, channel_dim(module, output)))

    with untouched(model), torch.no_grad(), watch(model, on_call, layers):
        model.train()
        checked_loss(model, batch, loss_fn)
    parameter = next(model.parameters())
    widths = [len(mean) for mean, _ in measured]
    table = np.full((2, len(names), max(widths, default=0)), np.nan)
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
