"""What losses outputs can have where the targets are not known: the outputs themselves are fitted to the loss.

An autoencoder's targets are its inputs, those of a value network lie in the third part of a transition: the loss knows
them, and is asked by L-BFGS on the numbers in the model's place. That costs the loss alone, no pass through the model.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normscope.diagnosis.outputs import Reach, into_range, loss_of_outputs
from normscope.model.batch import Batch
from normscope.model.best_constant import best_constant_loss
from normscope.model.loss import LossFn, default_loss
from normscope.model.output import outputs_in_place

BATCHES = 4
"""On which outputs are fitted."""

ITERATIONS = 60

FLAT = 0.02
"""Fitted are outputs at which the gradient is at most this share of what it was: a loss without a lowest value, as of a
critic, has none."""


def fitted_reach(
    model: nn.Module, batches: Sequence[Batch], loss_fn: LossFn | None, like: Sequence[Tensor], activation: str
) -> Reach | None:
    """As `outputs.reach`; None where the loss does not follow from the outputs alone, or has no lowest value."""
    constant = best_constant_loss(model, batches, loss_fn or default_loss)
    free, confined = [], []
    for batch, own in zip(batches[:BATCHES], like, strict=False):
        fitted = _fitted(model, batch, loss_fn, own)
        if fitted is None:
            return None
        free.append(loss_of_outputs(model, batch, loss_fn, fitted))
        confined.append(_lowest_in_range(model, batch, loss_fn, fitted, activation))
    lowest, in_range = (sum(losses) / len(losses) for losses in (free, confined))
    return Reach(constant, min(lowest, constant), in_range) if math.isfinite(constant + lowest) else None


def _fitted(model: nn.Module, batch: Batch, loss_fn: LossFn | None, start: Tensor) -> Tensor | None:
    """Free outputs of the lowest loss that L-BFGS comes to from these."""
    z = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([z], max_iter=ITERATIONS, line_search_fn="strong_wolfe")
    slopes: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(model, batch, loss_fn, z)
        loss.backward()
        assert z.grad is not None
        slopes.append(float(z.grad.norm()))
        return loss

    try:
        optimizer.step(closure)
        closure()
    except Exception:  # somebody's own loss, on outputs that are not its own
        return None
    return z.detach() if bool(torch.isfinite(z).all()) and slopes[-1] <= FLAT * slopes[0] else None


def _lowest_in_range(model: nn.Module, batch: Batch, loss_fn: LossFn | None, fitted: Tensor, activation: str) -> float:
    """The lowest loss within the activation's range: at the nearest outputs, and by projected steps on from there."""
    z = into_range(fitted, activation)
    lowest = loss_of_outputs(model, batch, loss_fn, z)
    z = z.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=0.05 * float(fitted.std()) or 0.05)
    for _ in range(ITERATIONS):
        optimizer.zero_grad()
        loss = _loss(model, batch, loss_fn, z)
        lowest = min(lowest, float(loss.detach()))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            z.copy_(into_range(z, activation))
    return lowest


def _loss(model: nn.Module, batch: Batch, loss_fn: LossFn | None, z: Tensor) -> Tensor:
    with outputs_in_place(model, lambda *_, **__: z), torch.enable_grad():
        return (loss_fn or default_loss)(model, batch).reshape(())
