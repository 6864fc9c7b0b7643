"""What is free at every step: the loss that the loop gives, the rate, the gradient's norm as the optimizer sees it.

Numbers on a GPU are copied without waiting for them, and looked at once they have come, a step or two later.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEPT_STEPS = 100_000
"""Of the steps only so many are kept, the last ones."""

CLIPPED_OF = 8
"""So many gradient norms are compared to see whether they are clipped."""


@dataclass
class FreeStep:
    """One step of the training."""

    step: int
    loss: float
    lr: float
    gradient_norm: float
    """As the optimizer was given it, clipped where the loop clips; NaN where it was not looked at."""
    looked_at: bool = False
    """Whether the gradient's norm was: the optimizer made a step, and the norm was within the budget."""


class Signals:
    """The free signals, in the order of the steps, those that have come."""

    def __init__(self) -> None:
        self.steps: deque[FreeStep] = deque(maxlen=KEPT_STEPS)
        self._coming: deque[tuple[FreeStep, Tensor, Any]] = deque()
        self._norms: deque[float] = deque(maxlen=CLIPPED_OF)

    def put(self, step: int, loss: Any, lr: float, gradient_norm: Tensor | None) -> list[FreeStep]:
        """Add a step, and give those whose numbers have come."""
        parts = [torch.as_tensor(part).detach().reshape(-1)[:1] for part in (loss, gradient_norm) if part is not None]
        entry = FreeStep(step, math.nan, lr, math.nan)
        if all(part.device.type == "cpu" for part in parts):
            values, ready = torch.stack([part.double() for part in parts]), None
        else:
            device = next(part.device for part in parts if part.device.type != "cpu")
            values = torch.stack([part.to(device, torch.float64) for part in parts]).to("cpu", non_blocking=True)
            ready = torch.cuda.Event() if device.type == "cuda" else None
            if ready is not None:
                ready.record()
        self._coming.append((entry, values, ready))
        return list(self.arrived())

    def arrived(self, *, wait: bool = False) -> Iterator[FreeStep]:
        """The steps whose numbers have come since the last time."""
        while self._coming:
            entry, values, ready = self._coming[0]
            if ready is not None and not ready.query():
                if not wait:
                    return
                ready.synchronize()
            self._coming.popleft()
            numbers = values.reshape(-1).tolist()
            entry.loss = numbers[0]
            if len(numbers) > 1:
                entry.gradient_norm, entry.looked_at = numbers[1], True
                self._norms.append(numbers[1])
            self.steps.append(entry)
            yield entry

    @property
    def clip_norm(self) -> float | None:
        """The norm that the loop clips its gradients to, as seen from the norms themselves: several of them are the
        same number, and none is above it. None where they are not clipped."""
        if len(self._norms) < CLIPPED_OF:
            return None
        largest = max(self._norms)
        same = sum(abs(norm - largest) <= 1e-4 * largest for norm in self._norms)
        return largest if same >= CLIPPED_OF // 2 and math.isfinite(largest) and largest > 0 else None


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """The Euclidean norm of all gradients, a scalar on the device; None where there are none."""
    found = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    dense = [g.coalesce().values() if g.is_sparse else g for g in found]
    if not dense:
        return None
    norms: list[Tensor] = torch._foreach_norm(dense)  # pyright: ignore
    return torch.stack([norm.to(norms[0].device, torch.float64) for norm in norms]).norm()
