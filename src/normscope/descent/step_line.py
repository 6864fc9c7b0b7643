"""One step as a line: θ + α · u for one mini-batch B, u = −∇ℓ_B(θ) or an optimizer's own update (`descent.update`).

Everything that asks how far one step can go walks along it: the relative loss of figure 3, the moments of figure 4, the
rate at which a search starts, the step that a diagnosis looks at.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.errors import InvalidModel
from normscope.model.batch import Batch
from normscope.model.loss import LossFn, checked_loss, gradients_by, loss_value, readable_errors
from normscope.model.state import untouched
from normscope.model.vector_norm import norm_of_all
from normscope.runtime.interrupts import restoring

Direction = Callable[[list[nn.Parameter], list[Tensor], list[Tensor]], list[Tensor]]
"""`direction(parameters, starts, gradients)` gives u, part by part. It may move the parameters, which start at
`starts`, and writes to no tensor of the two lists; it empties `gradients` once it needs them no longer."""

HALVINGS = 6
"""Of a bracket, in logarithms, where a crossing is measured more closely: a factor 10^(1/3) becomes 1 %."""


@dataclass(frozen=True)
class StepLine:
    """A mini-batch's loss along one step, while the model stands in the context that made it."""

    loss: Tensor
    """ℓ_B(θ): a float64 scalar on the device."""
    gradient_norm: Tensor
    """‖∇ℓ_B(θ)‖, Euclidean, of all parameters: a float64 scalar on the device."""
    loss_at: Callable[[float], Tensor]
    """Moves the model to θ + α · u, leaves it there and gives the loss: a float64 scalar on the device."""

    def losses(self, step_sizes: Sequence[float]) -> np.ndarray:
        """ℓ_B(θ + α · u) at every step size: (step_size,) float64."""
        return torch.stack([self.loss_at(float(step_size)) for step_size in step_sizes]).cpu().numpy()

    def relative_loss(self, step_sizes: Sequence[float]) -> np.ndarray:
        """ℓ_B(θ + α · u) / ℓ_B(θ) at every step size: (step_size,) float64. A loss that starts at zero or below has no
        ratio: then only overflow tells, as inf."""
        losses, before = self.losses(step_sizes), float(self.loss)
        return losses / before if before > 0 else np.where(np.isfinite(losses), 1.0, np.inf)


@restoring
def step_line(
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFn | None = None,
    *,
    direction: Direction | None = None,
    seed: int | None = None,
) -> Iterator[StepLine]:
    """The loss and its gradient in training mode, and a way to walk along a step; leaves the model untouched.

    Every point is reached from θ itself, so that no rounding adds up, and every forward pass sees the same
    buffers and random numbers, so that dropout does not pass for an effect of the step. One copy of the model
    and one of the step are held.

    Args:
        direction: what u is; None for −∇ℓ_B(θ). For an optimizer's update, `update.update_of`.
        seed: of the random numbers; None for those that torch's generators stand at.

    Raises:
        InvalidModel, InvalidBatch, DeviceError: see `loss.checked_loss`.
    """
    with untouched(model) as origin:
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        with origin.one_pass(seed):
            with torch.enable_grad():
                loss = checked_loss(model, batch, loss_fn)
            used = [(p, g) for p, g in zip(parameters, gradients_by(loss, parameters), strict=True) if g is not None]
        if not used:
            raise InvalidModel(f"the loss of {type(model).__name__} depends on no trainable parameter")
        moved, slopes = [p for p, _ in used], [g for _, g in used]
        starts = [origin[p] for p in moved]
        before = loss.detach().double()
        norm = norm_of_all(slopes)
        del loss, used
        with origin.one_pass(seed), torch.no_grad():
            step, sign = (slopes, -1.0) if direction is None else (direction(moved, starts, slopes), 1.0)
        if direction is not None:
            for parameter in moved:
                parameter.grad = None
        del slopes

        def loss_at(step_size: float) -> Tensor:
            with origin.one_pass(seed), torch.no_grad(), readable_errors():
                torch._foreach_add_(moved, step, alpha=sign * float(step_size))  # pyright: ignore
                return loss_value(model, batch, loss_fn)

        yield StepLine(before, norm, loss_at)


def lowest_step_size(step_sizes: np.ndarray, relative: np.ndarray) -> float:
    """The step size with the lowest finite relative loss; NaN where none is finite."""
    finite = np.isfinite(relative)
    return float(step_sizes[np.where(finite, relative, np.inf).argmin()]) if finite.any() else float("nan")


def crossing(
    step_sizes: np.ndarray,
    relative: np.ndarray,
    level: float = DIVERGENCE_FACTOR,
    *,
    measure: Callable[[float], float] | None = None,
) -> float:
    """The first step size at which the relative loss passes `level`; inf where that is not within the range. A loss
    that is not finite has passed every level.

    Args:
        step_sizes: (step_size,) increasing.
        relative: (step_size,) the relative losses there.
        measure: gives the relative loss at one more step size. Then the bracket is halved `HALVINGS` times and its
            upper end returned, at which the level *is* passed; without it the crossing is interpolated linearly in
            log-log.
    """
    above = np.flatnonzero(~(relative <= level))
    if not len(above):
        return float("inf")
    i = int(above[0])
    if i == 0:
        return float(step_sizes[0])
    low, high = float(step_sizes[i - 1]), float(step_sizes[i])
    if measure is not None:
        for _ in range(HALVINGS):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if measure(middle) <= level else (low, middle)
        return high
    if not np.isfinite(relative[i]) or relative[i - 1] <= 0:
        return high
    share = np.log(level / relative[i - 1]) / np.log(relative[i] / relative[i - 1])
    return float(np.exp(np.log(low) + share * np.log(high / low)))
