"""How large are the activations, channel by channel, as depth grows? (Figure 5)

For every watched call with output y (examples b, positions p, channels c)

    mean_c = E_{b,p} y_{bpc},    variance_c = E_{b,p} (y_{bpc} − mean_c)²    (the biased estimate, as batch norm uses).
"""

import math
from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.errors import InvalidModel
from normscope.model.batch import Batch
from normscope.model.contract import instrument
from normscope.model.layers import LayerCall, channel_dim, depths, record_calls
from normscope.model.loss import LossFn, checked_loss, without_graph
from normscope.model.state import untouched
from normscope.probes.moments.exact import exact_moments
from normscope.probes.moments.fast import SMALL, ShortSums, short_sums, trusted
from normscope.probes.moments.from_batch_norm import BatchNormMoments
from normscope.results.schema import DEPTH, LAYER, coord, measured, variable

VARIABLES = (
    LAYER,
    coord("channel", "channel", "its number; padded up to the widest layer"),
    DEPTH,
    variable("mean", "layer channel", "channel mean", "E over examples and positions; NaN beyond `num_channels`"),
    variable("variance", "layer channel", "channel variance", "biased; NaN beyond `num_channels`"),
    variable("num_channels", "layer", "number of channels", "how many of the channels are real"),
)

Reading = ShortSums | tuple[Tensor, Tensor]
"""What is known of an output: sums still to be pooled, or mean and variance."""


def _one_pass(
    model: nn.Module, batch: Batch, loss_fn: LossFn | None, layers: str | Sequence[str] | None, exact: set[str]
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

    def on_call(call: LayerCall) -> None:
        settle()
        name, module, output = call.name, call.module, call.output
        if output.requires_grad:  # only then, for a batch norm behind knows the tensor itself again
            output = output.detach()
        dim = channel_dim(module, output)
        if name not in exact and output.numel() > SMALL and norms.expect(name, module, output, dim):
            read[name] = _unknown(output.shape[dim])  # holds the place
        else:
            take(name, output, dim)

    with untouched(model), record_calls(model, on_call, layers):
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


@instrument
def channel_moments(
    model: nn.Module, batch: Batch, *, loss_fn: LossFn | None = None, layers: str | Sequence[str] | None = None
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
        InvalidModel: where no layer matches or is called, and see `loss.checked_loss`.
        InvalidBatch, DeviceError: see there too.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))
        >>> mean = lambda model, x: model(x).mean()
        >>> dataset = ns.channel_moments(model, torch.randn(32, 8), layers=["0", "1"], loss_fn=mean)
        >>> dataset["layer"].values.tolist()
        ['0', '1']
        >>> bool((abs(dataset["mean"].sel(layer="1")) < 1e-6).all())  # what batch norm is for
        True
    """
    exact: set[str] = set()
    while True:
        read = without_graph(partial(_one_pass, model, batch, loss_fn, layers, exact))
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
    values = {
        "mean": table[0],
        "variance": table[1],
        "num_channels": widths,
        "layer": names,
        "channel": np.arange(table.shape[2]),
        "depth": depths(names),
    }
    return measured(VARIABLES, values, device=parameter.device, dtype=parameter.dtype)
