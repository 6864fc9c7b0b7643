"""The line that one gradient step walks along: θ − α∇ℓ_B(θ) for one mini-batch B."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.errors import InvalidModel
from normscope.model.loss import LossFn, checked_loss, default_loss, readable_errors
from normscope.model.state import is_writable, untouched


@dataclass(frozen=True)
class GradientLine:
    """A mini-batch's loss along its own gradient, while the model stands in the context that made it."""

    loss: Tensor
    """ℓ_B(θ): a float64 scalar on the device."""
    gradient_norm: Tensor
    """‖∇ℓ_B(θ)‖, Euclidean, of all parameters: a float64 scalar on the device."""
    loss_at: Callable[[float], Tensor]
    """Moves the model to θ − α∇ℓ_B(θ), leaves it there and gives the loss: a float64 scalar on the device."""


@contextmanager
def gradient_line(model: nn.Module, batch: Any, loss_fn: LossFn | None = None) -> Iterator[GradientLine]:
    """The loss and its gradient in training mode, and a way to walk along it; leaves the model untouched.

    Every point is reached from θ itself, so that no rounding adds up, and every forward pass sees the same
    buffers and random numbers, so that dropout does not pass for an effect of the step. One copy of the model
    and one of its gradient are held.

    Raises:
        InvalidModel, InvalidBatch, DeviceError: see `loss.checked_loss`.
    """
    with untouched(model) as origin:
        model.train()
        gpus = sorted({p.device.index for p in model.parameters() if p.is_cuda})
        parameters = [p for p in model.parameters() if p.requires_grad]
        with torch.enable_grad(), torch.random.fork_rng(devices=gpus):
            loss = checked_loss(model, batch, loss_fn)
        with readable_errors():
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        if not used:
            raise InvalidModel(f"the loss of {type(model).__name__} depends on no trainable parameter")
        moved, slopes = [p for p, _ in used], [g for _, g in used]
        buffers = [buffer for buffer in dict.fromkeys(model.buffers()) if is_writable(buffer)]
        starts, buffer_starts = [origin[p] for p in moved], [origin[b] for b in buffers]
        before = loss.detach().double()
        # A piece at a time: in float64 the largest weight of a network would be the largest thing in memory.
        pieces = (piece for g in slopes for piece in g.reshape(-1).split(2**16))
        norm = torch.stack([piece.double().square().sum() for piece in pieces]).sum().sqrt()
        del loss, gradients, used

        def loss_at(step_size: float) -> Tensor:
            with torch.no_grad(), torch.random.fork_rng(devices=gpus), readable_errors():
                torch._foreach_copy_(moved, starts)  # pyright: ignore
                torch._foreach_add_(moved, slopes, alpha=-float(step_size))  # pyright: ignore
                if buffers:
                    torch._foreach_copy_(buffers, buffer_starts)  # pyright: ignore
                return (loss_fn or default_loss)(model, batch).double().reshape(())

        yield GradientLine(before, norm, loss_at)
