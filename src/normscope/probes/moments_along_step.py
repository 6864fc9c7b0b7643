"""Where along a step do the activations explode? (Figure 4)

For a mini-batch B, a step size α and a fraction f of the step, the moments of every watched call's output y
(examples b, positions p, channels c) in the network with the parameters

    θ − f α ∇ℓ_B(θ):    mean_c = E_{b,p} y_{bpc},    variance_c = E_{b,p} (y_{bpc} − mean_c)²    (biased),

or θ + f α u with an optimizer's own update u.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.descent.optimizers import OptimizerFactory
from normscope.descent.step_line import StepLine, step_line
from normscope.descent.update import update_of
from normscope.errors import InvalidConfig, InvalidModel
from normscope.model.batch import Batch
from normscope.model.contract import instrument
from normscope.model.layers import LayerCall, channel_dim, depths, record_calls
from normscope.model.loss import LossFn, loss_units
from normscope.probes.moments.fast import moments
from normscope.results.schema import DEPTH, LAYER, OF_LOSS, coord, measured, variable

VARIABLES = (
    coord("fraction", "fraction of the step", "f, from 0"),
    LAYER,
    coord("channel", "channel", "its number; padded up to the widest layer"),
    DEPTH,
    variable("mean", "fraction layer channel", "channel mean", "NaN beyond `num_channels`"),
    variable("variance", "fraction layer channel", "channel variance", "biased; NaN beyond `num_channels`"),
    variable("loss", "fraction", "loss along the step", "ℓ_B(θ + f α u)", units=OF_LOSS),
    variable("step_size", "", "step size α", "of the whole step"),
    variable("num_channels", "layer", "number of channels", "how many of the channels are real"),
)

DEFAULT_FRACTIONS = np.linspace(0, 1, 51)
"""Every second percent of the step."""


def _moments_along(
    line: StepLine, model: nn.Module, step_sizes: Sequence[float], layers: str | Sequence[str] | None
) -> tuple[list[str], list[int], Tensor, Tensor]:
    """Names and widths of the watched calls, their moments at every step size on the line, one call's channels
    behind the other's, (2, step_size, channels of all calls), and the losses there, (step_size,); in float64.
    """
    seen: list[tuple[str, Tensor, Tensor]] = []

    def on_call(call: LayerCall) -> None:
        seen.append((call.name, *moments(call.output, channel_dim(call.module, call.output))))

    calls: list[tuple[str, int]] = []
    rows: list[Tensor] = []
    losses: list[Tensor] = []
    # Watched once for all points, since finding the layers of a deep network takes as long as several of its calls; a
    # call's number, path#2, then runs on from point to point, and is that of the first.
    with record_calls(model, on_call, layers):
        for step_size in step_sizes:
            seen.clear()
            losses.append(line.loss_at(step_size))
            if not seen:
                raise InvalidModel("none of the chosen layers is called: see `normscope layers MODEL`")
            called = [(name, len(mean)) for name, mean, _ in seen]
            calls = calls or called
            if [(_path(name), width) for name, width in called] != [(_path(name), width) for name, width in calls]:
                raise InvalidModel(
                    "the model calls other layers at one point of the step than at another: choose layers"
                    " that are always called"
                )
            rows.append(torch.stack([torch.cat([m for _, m, _ in seen]), torch.cat([v for _, _, v in seen])]))
    names, widths = zip(*calls, strict=True)
    return list(names), list(widths), torch.stack(rows, 1).cpu(), torch.stack(losses).cpu()


def _path(name: str) -> str:
    return name.partition("#")[0]


@instrument
def moments_along_step(
    model: nn.Module,
    batch: Batch,
    *,
    step_size: float,
    fractions: Sequence[float] | np.ndarray | None = None,
    layers: str | Sequence[str] | None = None,
    loss_fn: LossFn | None = None,
    optimizer: str | OptimizerFactory | torch.optim.Optimizer | None = None,
) -> xr.Dataset:
    """Mean and biased variance of every channel of chosen layers at fractions of one step along the gradient, or of an
    optimizer (figure 4).

    One gradient, and one forward pass a fraction, in training mode; the model comes back untouched. The moments
    are finite wherever the activations are; an activation that overflows is kept as inf or NaN.

    Args:
        batch: `(inputs, labels)`, a mapping, or anything `loss_fn(model, batch)` takes.
        step_size: α of the whole step, positive.
        fractions: (fraction,) from 0 up, increasing; by default 0, 0.02, ... 1.
        layers: None for every layer that owns a weight; else shell patterns on module paths ("layer1.*.conv1").
        optimizer: whose update to go along, fresh or as it stands, as for `relative_loss`; None for the gradient.

    Returns:
        Dataset over `fraction`, `layer` and `channel` (padded with NaN up to the widest layer; `num_channels(layer)`
        says how many are real): `mean`, `variance`; `loss(fraction)`; the scalar `step_size`; and the coordinate
        `depth(layer)`, its place among the watched calls of the main path (NaN on a shortcut).

    Raises:
        InvalidConfig: a step size that is not positive, fractions that are not increasing from 0 up.
        InvalidModel: where no layer matches, and see `loss.checked_loss`.

    Example:
        >>> net = ns.build_net("mlp5", in_channels=1, image_size=8, seed=0)
        >>> batch = next(ns.batches(ns.load_data("digits"), 64, seed=0))
        >>> dataset = ns.moments_along_step(net, batch, step_size=1.0, fractions=[0.0, 0.5, 1.0])
        >>> dict(dataset["variance"].sizes)
        {'fraction': 3, 'layer': 5, 'channel': 128}
    """
    points = np.asarray(DEFAULT_FRACTIONS if fractions is None else fractions, dtype=np.float64)
    if not (np.isfinite(step_size) and step_size > 0):
        raise InvalidConfig(
            f"step_size must be positive and finite, not {step_size}: where no step of the range diverged, choose one"
        )
    if points.ndim != 1 or not len(points) or not np.isfinite(points).all() or points.min() < 0:
        raise InvalidConfig("fractions must be finite and not negative, for example np.linspace(0, 1, 50)")
    if not (np.diff(points) > 0).all():
        raise InvalidConfig("fractions must be increasing, for example np.linspace(0, 1, 50)")
    steps = (points * step_size).tolist()
    direction = None if optimizer is None else update_of(optimizer, model)
    with step_line(model, batch, loss_fn, direction=direction) as line:
        names, widths, found, losses = _moments_along(line, model, steps, layers)
    table = np.full((2, len(points), len(names), max(widths)), np.nan)
    for row, (stop, width) in enumerate(zip(np.cumsum(widths), widths, strict=True)):
        table[:, :, row, :width] = found[:, :, stop - width : stop].numpy()
    parameter = next(p for p in model.parameters() if p.requires_grad)
    values = {
        "mean": table[0],
        "variance": table[1],
        "loss": losses.numpy(),
        "step_size": float(step_size),
        "num_channels": widths,
        "fraction": points,
        "layer": names,
        "channel": np.arange(table.shape[3]),
        "depth": depths(names),
    }
    units = loss_units(batch, loss_fn)
    return measured(VARIABLES, values, device=parameter.device, dtype=parameter.dtype, loss_units=units)
