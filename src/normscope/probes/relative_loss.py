"""How far can one step along the gradient go before the loss explodes? (Figure 3)

For a mini-batch B and a step size α

    relative loss(α) = ℓ_B(θ − α ∇ℓ_B(θ)) / ℓ_B(θ),

and the paper calls a step with a relative loss above 10³ a divergence.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from normscope.descent.gradient_line import gradient_line
from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.errors import InvalidConfig
from normscope.model.loss import LossFn
from normscope.results import labelled, provenance

DEFAULT_STEP_SIZES = np.geomspace(1e-5, 1e1, 61)
"""Ten a decade, over all that has been seen to matter in networks with and without normalization."""


def losses_along_gradient(
    model: nn.Module, batch: Any, loss_fn: LossFn | None, step_sizes: Sequence[float]
) -> tuple[float, float, list[float]]:
    """Loss at θ in training mode, norm of its gradient, and the losses at θ − α∇ℓ_B(θ) for every α.

    Every forward pass sees the same random numbers, so that dropout does not pass for an effect of the step.
    """
    with gradient_line(model, batch, loss_fn) as line:
        after = torch.stack([line.loss_at(step_size) for step_size in step_sizes])
        return float(line.loss), float(line.gradient_norm), after.tolist()


def relative_loss(
    model: nn.Module,
    batch: Any,
    *,
    loss_fn: LossFn | None = None,
    step_sizes: Sequence[float] | np.ndarray | None = None,
) -> xr.Dataset:
    """The loss after a step of size α along the mini-batch's own gradient, over the loss before (figure 3).

    The model is in training mode and comes back untouched. Overflow of the network is kept as inf or NaN.

    Args:
        batch: `(inputs, labels)`, a mapping, or anything `loss_fn(model, batch)` takes.
        step_sizes: (step_size,) positive and increasing; by default 61 from 1e-5 to 10.

    Returns:
        Dataset over `step_size`: `relative_loss` and `loss`; and scalars: `loss_before`, `gradient_norm` (Euclidean, of
        all parameters), `lowest_step_size` (where the relative loss is lowest), `divergence_step_size` (where it first
        passes 10³, interpolated in logarithms; inf where it does not within the range).

    Raises:
        InvalidConfig: step sizes that are not positive and increasing.
        InvalidModel, InvalidBatch, DeviceError: see `loss.checked_loss`.
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
    before, norm, after = losses_along_gradient(model, batch, loss_fn, steps.tolist())
    parameter = next(p for p in model.parameters() if p.requires_grad)
    with np.errstate(divide="ignore", invalid="ignore"):  # a loss of exactly 0 has no relative loss: inf or NaN
        relative = np.asarray(after) / before
    return labelled(
        {
            "relative_loss": ("step_size", relative, "relative loss", "1"),
            "loss": ("step_size", after, "loss after the step", "nat"),
            "loss_before": ((), before, "loss before the step", "nat"),
            "gradient_norm": ((), norm, "norm of the gradient", "1"),
            "lowest_step_size": ((), lowest_step_size(steps, relative), "step size of the lowest relative loss", "1"),
            "divergence_step_size": ((), crossing(steps, relative), "step size where relative loss passes 10³", "1"),
        },
        {"step_size": (steps, "step size α", "1")},
        **provenance(device=parameter.device, dtype=parameter.dtype),
    )


def lowest_step_size(step_sizes: np.ndarray, relative: np.ndarray) -> float:
    """The step size with the lowest finite relative loss; NaN where none is finite."""
    finite = np.isfinite(relative)
    return float(step_sizes[np.where(finite, relative, np.inf).argmin()]) if finite.any() else float("nan")


def crossing(step_sizes: np.ndarray, relative: np.ndarray, level: float = DIVERGENCE_FACTOR) -> float:
    """The first step size at which the relative loss passes `level`, interpolated linearly in log-log; a loss that is
    not finite has passed every level. Infinite where the level is not passed within the range."""
    above = np.flatnonzero(~(relative <= level))
    if not len(above):
        return float("inf")
    i = int(above[0])
    if i == 0 or not np.isfinite(relative[i]) or relative[i - 1] <= 0:
        return float(step_sizes[i])
    share = np.log(level / relative[i - 1]) / np.log(relative[i] / relative[i - 1])
    return float(np.exp(np.log(step_sizes[i - 1]) + share * np.log(step_sizes[i] / step_sizes[i - 1])))
