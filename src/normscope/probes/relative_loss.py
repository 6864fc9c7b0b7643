"""How far can one step along the gradient go before the loss explodes? (Figure 3)

For a mini-batch B and a step size α

    relative loss(α) = ℓ_B(θ − α ∇ℓ_B(θ)) / ℓ_B(θ),

and the paper calls a step with a relative loss above 10³ a divergence. With an optimizer's own update u, momentum,
moments and weight decay in it, the same of ℓ_B(θ + α u).
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import nn

from normscope.descent.optimizers import OptimizerFactory
from normscope.descent.step_line import crossing, lowest_step_size, step_line
from normscope.descent.update import update_of
from normscope.errors import InvalidConfig
from normscope.model.batch import Batch
from normscope.model.contract import instrument
from normscope.model.loss import LossFn, loss_units
from normscope.results.schema import OF_LOSS, coord, measured, variable

VARIABLES = (
    coord("step_size", "step size α"),
    variable(
        "relative_loss", "step_size", "relative loss", "ℓ_B(θ + α u) / ℓ_B(θ); inf or NaN where the network overflows"
    ),
    variable("loss", "step_size", "loss after the step", "ℓ_B(θ + α u)", units=OF_LOSS),
    variable("loss_before", "", "loss before the step", "ℓ_B(θ)", units=OF_LOSS),
    variable("gradient_norm", "", "norm of the gradient", "‖∇ℓ_B(θ)‖ of all parameters"),
    variable("lowest_step_size", "", "step size of the lowest relative loss"),
    variable("divergence_step_size", "", "step size where relative loss passes 10³", "the first; inf if none"),
)

DEFAULT_STEP_SIZES = np.geomspace(1e-5, 1e1, 61)
"""Ten a decade, over all that has been seen to matter in networks with and without normalization."""


@instrument
def relative_loss(
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: LossFn | None = None,
    step_sizes: Sequence[float] | np.ndarray | None = None,
    optimizer: str | OptimizerFactory | torch.optim.Optimizer | None = None,
) -> xr.Dataset:
    """The loss after a step of size α along the mini-batch's own gradient, or along an optimizer's update, over the
    loss before (figure 3).

    The model is in training mode and comes back untouched. Overflow of the network is kept as inf or NaN.

    Args:
        batch: `(inputs, labels)`, a mapping, or anything `loss_fn(model, batch)` takes.
        step_sizes: (step_size,) positive and increasing; by default 61 from 1e-5 to 10.
        optimizer: None for the gradient. An optimizer of this model, for the update that it would make now at rate α,
            with its momentum and weight decay (it is not stepped itself); or a name ("momentum", "adam") or function
            `(params, lr) -> optimizer` for the first update of a fresh one.

    Returns:
        Dataset over `step_size`: `relative_loss` and `loss`; and scalars: `loss_before`, `gradient_norm` (Euclidean, of
        all parameters), `lowest_step_size` (where the relative loss is lowest), `divergence_step_size` (where it first
        passes 10³, interpolated in logarithms; inf where it does not within the range).

    Raises:
        InvalidConfig: step sizes that are not positive and increasing; an optimizer of other parameters, or one that
            cannot be stepped.
        InvalidModel, InvalidBatch, DeviceError: see `loss.checked_loss`.

    Example:
        On ℓ(w) = w² a step of size α multiplies w by 1 − 2α.

        >>> model = nn.Linear(1, 1, bias=False)
        >>> batch = (torch.ones(4, 1), torch.zeros(4, 1))
        >>> squares = lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> dataset = ns.relative_loss(model, batch, loss_fn=squares, step_sizes=[0.5, 1.0, 2.0])
        >>> dataset["relative_loss"].values.round(5).tolist()
        [0.0, 1.0, 9.0]
    """
    steps = np.asarray(DEFAULT_STEP_SIZES if step_sizes is None else step_sizes, dtype=np.float64)
    if (
        steps.ndim != 1
        or not len(steps)
        or not (steps > 0).all()
        or not (np.diff(steps) > 0).all()
        or not np.isfinite(steps).all()
    ):
        raise InvalidConfig("step_sizes must be positive, finite and increasing, for example np.geomspace(1e-5, 1, 50)")
    direction = None if optimizer is None else update_of(optimizer, model)
    with step_line(model, batch, loss_fn, direction=direction) as line:
        after = line.losses(steps.tolist())
        before, norm = float(line.loss), float(line.gradient_norm)
    parameter = next(p for p in model.parameters() if p.requires_grad)
    with np.errstate(divide="ignore", invalid="ignore"):  # a loss of exactly 0 has no relative loss: inf or NaN
        relative = after / before
    values = {
        "relative_loss": relative,
        "loss": after,
        "loss_before": before,
        "gradient_norm": norm,
        "lowest_step_size": lowest_step_size(steps, relative),
        "divergence_step_size": crossing(steps, relative),
        "step_size": steps,
    }
    units = loss_units(batch, loss_fn)
    return measured(VARIABLES, values, device=parameter.device, dtype=parameter.dtype, loss_units=units)
