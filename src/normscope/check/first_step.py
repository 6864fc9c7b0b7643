"""What one step tells: the relative loss along the optimizer's own first update, where the search for rates starts.

With u(θ) the optimizer's first update at rate 1 (for SGD −∇ℓ_B, for Adam nearly −sign ∇ℓ_B),

    relative loss(lr) = ℓ_B(θ + lr · u(θ)) / ℓ_B(θ).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.check.tries import Recipe, check_start, make_optimizer, preparation
from normscope.errors import InvalidConfig, InvalidModel, NormscopeError, one_line
from normscope.objective import checked_loss, default_loss, readable_errors
from normscope.probes.relative_loss import crossing, lowest_step_size
from normscope.untouched import untouched

REPEATS = 30
"""Steps along one and the same gradient until momentum is taken for settled (0.9^30 = 0.04)."""


@dataclass(frozen=True)
class FirstStep:
    """The relative loss after one step, and how much larger later steps along the same gradient get."""

    lrs: np.ndarray
    relative_loss: np.ndarray
    """(lr,): as the probe of the same name, along the optimizer's update."""
    amplification: float
    """Length of the optimizer's update once it has settled on a constant gradient, over that of its first: about
    1/(1 − momentum) for SGD, 1 for Adam."""

    @property
    def diverging_lr(self) -> float:
        """Where one settled step passes 10³; inf where it does not within the rates."""
        return crossing(self.lrs, self.relative_loss) / self.amplification

    @property
    def lowest_lr(self) -> float:
        """Where one settled step lowers the loss most; NaN where no loss is finite."""
        return lowest_step_size(self.lrs, self.relative_loss) / self.amplification


def first_step(model: nn.Module, batch: Any, recipe: Recipe, lrs: Sequence[float], *, seed: int) -> FirstStep:
    """Relative loss at θ + lr · u for every rate, in training mode; the model comes back untouched.

    Updates are taken as proportional to the rate, and warmup is left out: this starts a search, and judges nothing.

    Raises:
        InvalidBatch, InvalidModel, DeviceError: see `objective.checked_loss`; also where the loss is not finite and
            positive before any step, or its gradient is zero.
        InvalidConfig: where the optimizer cannot be made or stepped.
    """
    with untouched(model) as origin, readable_errors():
        model.train()
        torch.manual_seed(seed)
        loss = checked_loss(model, batch, recipe.loss_fn)
        before = float(loss.detach().double())
        check_start(before)
        parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        if not any(bool(p.grad.any()) for p in parameters if p.grad is not None):
            raise InvalidModel("the gradient of the first batch is zero everywhere: no rate moves this model")
        optimizer = make_optimizer(recipe.optimizer, model, 1.0)
        prepare = preparation(optimizer, replace(recipe, warmup=0))
        updates: list[list[Tensor]] = []
        with _readable_step():
            prepare(0)
            for repeat in range(REPEATS):
                before_step = [p.detach().clone() for p in parameters] if repeat in (0, REPEATS - 1) else None
                optimizer.step()
                if before_step is not None:
                    updates.append([p.detach() - q for p, q in zip(parameters, before_step, strict=True)])
        first, settled = (float(torch.stack([u.double().norm() for u in update]).norm()) for update in updates)
        starts = [origin[p] for p in parameters]
        after: list[Tensor] = []
        with torch.no_grad():
            for lr in lrs:
                for parameter, start, update in zip(parameters, starts, updates[0], strict=True):
                    parameter.copy_(start).add_(update, alpha=float(lr))
                torch.manual_seed(seed)
                after.append((recipe.loss_fn or default_loss)(model, batch).double().reshape(()))
        relative = torch.stack(after).cpu().numpy() / before
    ratio = settled / first if first > 0 else 1.0
    return FirstStep(np.asarray(lrs), relative, ratio if np.isfinite(ratio) and ratio > 0 else 1.0)


@contextmanager
def _readable_step() -> Iterator[None]:
    try:
        yield
    except NormscopeError:
        raise
    except Exception as error:
        raise InvalidConfig(f"the optimizer's step raised {type(error).__name__}: {one_line(error)}") from error
