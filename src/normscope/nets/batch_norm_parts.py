"""Batch norm with one part of it changed, to see which part does what: `make_norm("batch_detached", 64)`.

Batch norm of channel c is y = weight · (x − m) / sqrt(v + eps) + bias, with m and v the mean and the biased variance of
c over the batch's examples and positions. In training

| name           | what is other than in batch norm                                                       |
|----------------|----------------------------------------------------------------------------------------|
| batch_mean     | centring alone: y = weight · (x − m) + bias (mean-only BN, Salimans and Kingma 2016)     |
| batch_std      | scaling alone: y = weight · x / sqrt(v + eps) + bias                                     |
| batch_detached | m and v are constants in the backward pass                                             |
| batch_first    | m and v are those of the first batch that it sees, constants from then on              |
| batch_running  | m and v are the running averages, this batch included, constants in the backward pass  |
| batch_ghost    | m and v are taken over 16 examples at a time (ghost batches, Hoffer et al. 2017)         |

In evaluation all of them use the running averages, as batch norm does; `batch_first` those of its first batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscope.errors import InvalidModel

GHOST_EXAMPLES = 16
"""Examples in a ghost batch; what is left over joins the last one."""

MOMENTUM = 0.1
"""Share of a batch in the running averages: torch's default."""


@dataclass(frozen=True)
class Part:
    """What of batch norm is there."""

    centres: bool = True
    scales: bool = True
    statistics: Literal["batch", "detached", "first", "running"] = "batch"
    ghost: int | None = None
    """Examples that share statistics; None for all of a batch."""


PARTS: dict[str, Part] = {
    "batch_mean": Part(scales=False),
    "batch_std": Part(centres=False),
    "batch_detached": Part(statistics="detached"),
    "batch_first": Part(statistics="first"),
    "batch_running": Part(statistics="running"),
    "batch_ghost": Part(ghost=GHOST_EXAMPLES),
}


class PartialBatchNorm(nn.Module):
    """Batch norm as `part` says, of (batch, channels, *positions), or of (..., features) with `channel_dim=-1`.

    Its state is batch norm's: weight and bias, which start at 1 and 0, the running mean and (unbiased) variance, and
    the number of batches seen in training.
    """

    def __init__(self, num_features: int, part: Part, *, channel_dim: int = 1, eps: float) -> None:
        super().__init__()
        self.num_features, self.channel_dim, self.eps, self.part = num_features, channel_dim, eps, part
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, input: Tensor) -> Tensor:
        """Shape and dtype of the input; raises `InvalidModel` where training has one value a channel."""
        if not self.training:
            return self._normalized(input, self._running("mean"), self._running("var"))
        if self.part.ghost is not None:
            parts = _ghost_batches(input, self.part.ghost)
            return torch.cat([self._normalized(some, *self._statistics(some)) for some in parts])
        return self._normalized(input, *self._statistics(input))

    def _statistics(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (channels,) that training normalizes with; the running ones move."""
        values = _wide(input.movedim(self.channel_dim, -1).flatten(0, -2))
        if len(values) < 2:
            raise InvalidModel(f"batch norm needs more than 1 value per channel, not shape {tuple(input.shape)}")
        kind = self.part.statistics
        if kind == "first" and int(self._running("num_batches")):
            return self._running("mean"), self._running("var")
        if kind != "batch":
            values = values.detach()
        mean = values.mean(0)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.part.scales):
            var = (values - mean).square().mean(0)  # faster than var_mean over a leading dim
        self._move(mean.detach(), var.detach() * len(values) / (len(values) - 1), keep=0.0 if kind == "first" else None)
        return (self._running("mean"), self._running("var")) if kind in ("first", "running") else (mean, var)

    def _running(self, name: str) -> Tensor:
        return self.get_buffer("num_batches_tracked" if name == "num_batches" else f"running_{name}")

    @torch.no_grad()
    def _move(self, mean: Tensor, var: Tensor, *, keep: float | None) -> None:
        """Let the running averages take in a batch; `keep` is their share, 1 - MOMENTUM but for the first of
        `batch_running`, which would otherwise be normalized with what no batch has."""
        first = self.part.statistics == "running" and not int(self._running("num_batches"))
        share = (0.0 if first else 1 - MOMENTUM) if keep is None else keep
        self._running("mean").mul_(share).add_(mean, alpha=1 - share)
        self._running("var").mul_(share).add_(var, alpha=1 - share)
        self._running("num_batches").add_(1)

    def _normalized(self, input: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        # Cloned where they are buffers: a later batch moves those in place, before this one's backward pass.
        mean, var = (each if each.requires_grad else each.clone() for each in (mean, var))
        if self.part.centres and self.part.scales and not mean.requires_grad and self.channel_dim == 1:
            return F.batch_norm(input, mean, var, self.weight, self.bias, eps=self.eps)
        scale = self.weight * torch.rsqrt(var + self.eps) if self.part.scales else self.weight
        centred = _wide(input) - self._along(mean, input) if self.part.centres else input
        return (centred * self._along(scale, input) + self._along(self.bias, input)).to(input.dtype)

    def _along(self, per_channel: Tensor, input: Tensor) -> Tensor:
        return per_channel if self.channel_dim == -1 else per_channel.reshape(-1, *[1] * (input.dim() - 2))

    def extra_repr(self) -> str:
        """Show the number of channels and what is other than in batch norm."""
        return f"{self.num_features}, {self.part}"


def _wide(input: Tensor) -> Tensor:
    """In float32 at least, as torch's batch norm computes."""
    return input.to(torch.promote_types(input.dtype, torch.float32))


def _ghost_batches(input: Tensor, examples: int) -> list[Tensor]:
    number = max(1, len(input) // examples)
    sizes = [examples] * (number - 1)
    return list(input.split([*sizes, len(input) - sum(sizes)]))
