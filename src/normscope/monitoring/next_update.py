"""The update that an optimizer would make next, as it stands, at its own rates: the direction that a watch walks along.

SGD, Adam and AdamW of torch are computed by their formulas, in the memory of the gradient: a copy of the optimizer's
moments would be the largest thing in memory. All others are copied and stepped (`descent.update`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normscope.descent.update import update_of

BY_FORMULA = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


class NextUpdate:
    """A `step_line.Direction`; after the call it knows how the loss starts to change along the update."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, clip_norm: float | None = None) -> None:
        """
        Args:
            optimizer: of the model's parameters.
            clip_norm: the gradient is clipped to this Euclidean norm before the step; None for unclipped.
        """
        self.optimizer, self.model, self.clip_norm = optimizer, model, clip_norm
        self.slope: Tensor = torch.zeros((), dtype=torch.float64)
        """∇ℓ_B · u, with the unclipped gradient: a float64 scalar on the device."""

    def __call__(self, parameters: list[nn.Parameter], starts: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """u, part by part, such that the optimizer's next step leads to θ + u."""
        clip = self._clipping(gradients)
        if type(self.optimizer) in BY_FORMULA and not any(g.is_sparse or g.is_complex() for g in gradients):
            groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
            slopes: list[Tensor] = []
            for place, (parameter, start) in enumerate(zip(parameters, starts, strict=True)):
                gradient = gradients[place]
                group = groups.get(id(parameter))
                update = _update(self.optimizer, group, parameter, start, gradient, clip)
                slopes.append((gradient * update).sum(dtype=torch.float64))
                gradients[place] = update
            updates = list(gradients)
            gradients.clear()
        else:
            slopes = []
            if clip is not None:
                gradients[:] = [g * clip for g in gradients]
            rate = max(float(group.get("lr", 1.0)) for group in self.optimizer.param_groups)
            updates = [rate * part for part in update_of(self.optimizer, self.model)(parameters, starts, gradients)]
            for parameter, update in zip(parameters, updates, strict=True):
                if parameter.grad is not None and not parameter.grad.is_sparse:
                    slopes.append((parameter.grad * update).sum(dtype=torch.float64))
        if slopes:
            self.slope = torch.stack([slope.to(slopes[0].device) for slope in slopes]).sum()
        return updates

    def _clipping(self, gradients: Sequence[Tensor]) -> float | None:
        if self.clip_norm is None:
            return None
        norm = float(torch.stack([g.norm(dtype=torch.float64) for g in gradients]).norm())
        return self.clip_norm / norm if norm > self.clip_norm else None


def _update(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any] | None,
    parameter: nn.Parameter,
    start: Tensor,
    gradient: Tensor,
    clip: float | None,
) -> Tensor:
    """One parameter's update by the formula of SGD, Adam or AdamW; zero for one that is not the optimizer's."""
    if group is None:
        return torch.zeros_like(gradient)
    state = optimizer.state.get(parameter, {})
    lr, decay = float(group["lr"]), group["weight_decay"]
    g = gradient * (clip or 1.0) * (-1.0 if group.get("maximize") else 1.0)
    if isinstance(optimizer, torch.optim.SGD):
        if decay:
            g.add_(start, alpha=decay)
        momentum, buffer = group["momentum"], state.get("momentum_buffer")
        if not momentum:
            return g.mul_(-lr)
        moved = g.clone() if buffer is None else g.mul(1 - group["dampening"]).add_(buffer, alpha=momentum)
        return (g.add_(moved, alpha=momentum) if group["nesterov"] else moved).mul_(-lr)
    decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
    if decay and not decoupled:
        g.add_(start, alpha=decay)
    beta1, beta2 = (float(beta) for beta in group["betas"])
    count = float(state["step"]) + 1 if "step" in state else 1.0
    second = g.square().mul_(1 - beta2)
    first = g.mul_(1 - beta1)
    if "exp_avg" in state:
        first.add_(state["exp_avg"], alpha=beta1)
        second.add_(state["exp_avg_sq"], alpha=beta2)
    if group["amsgrad"] and "max_exp_avg_sq" in state:
        second = torch.maximum(second, state["max_exp_avg_sq"])
    size = second.sqrt_().div_((1 - beta2**count) ** 0.5).add_(group["eps"])
    update = first.div_(size).mul_(-lr / (1 - beta1**count))
    return update.add_(start, alpha=-lr * decay) if decay and decoupled else update


def adam_lag(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradient: Tensor) -> Tensor | None:
    """√(Σ g² / Σ v̂) of one parameter: about 1 where Adam's second moment keeps up with the gradient, far above where it
    lags behind. None where the optimizer keeps no second moment, or has made no step.

    StableAdamW's √(mean of g² / v̂) asks the same of every entry, and is ruled by those that were silent until now.
    """
    state = optimizer.state.get(parameter, {})
    moment = state.get("exp_avg_sq")
    if not isinstance(moment, Tensor) or moment.shape != gradient.shape:
        return None
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    correction = 1 - float(group["betas"][1]) ** float(state["step"])
    if correction <= 0:
        return None
    eps = float(group.get("eps", 1e-8))
    expected = moment.sum(dtype=torch.float64) / correction + eps**2 * moment.numel()
    return torch.linalg.vector_norm(gradient, dtype=torch.float64) / expected.sqrt()


def inside(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The torch optimizer inside the wrapper of a library (accelerate's, Lightning's)."""
    while True:
        inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
        if not isinstance(inner, torch.optim.Optimizer) or inner is optimizer:
            return optimizer
        optimizer = inner
