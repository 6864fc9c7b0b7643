"""Norms of the weights in place of norms of the activations: `surgery.with_norm(model, "weight_std")`.

For the weight w of an output channel c, with N entries (its fan-in), mean m(w) and biased variance v(w):

| name        | the layer's weight                                         | behind the layer                  |
|-------------|------------------------------------------------------------|-----------------------------------|
| weight_mean | g · w / ‖w‖, weight norm (Salimans and Kingma 2016)         | mean-only batch norm (the same)   |
| weight_std  | g · γ · (w − m(w)) / sqrt(max(N · v(w), eps)), scaled weight | nothing                           |
|             | standardization (Brock, De and Smith 2021)                 |                                   |

g is learned, a number a channel: ‖w‖ at first, so that the layer stays the same, and 1 in the second.
γ = sqrt(2/(1 − 1/π)) is the gain that keeps the variance behind a ReLU.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrizations, parametrize

from normscope.errors import InvalidConfig

WEIGHT_NORMS: dict[str, str] = {"weight_mean": "batch_mean", "weight_std": "none"}
"""By name, the norm of `nets.norms` that stands behind each layer."""

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
"""One over the standard deviation of a ReLU of a standard normal number: 1.71."""

EPS = 1e-4
"""The least N · v(w), as in the authors' code."""


class ScaledWeightStandardization(nn.Module):
    """The parametrization g · γ · (w − m(w)) / sqrt(max(N · v(w), eps)) of a weight with its output channels along
    `dim`."""

    def __init__(self, num_channels: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.gain = nn.Parameter(torch.ones(num_channels))

    def forward(self, weight: Tensor) -> Tensor:
        """The shape of the weight."""
        rows = weight.movedim(self.dim, 0)
        flat = rows.flatten(1)
        var, mean = torch.var_mean(flat, 1, correction=0, keepdim=True)
        scale = torch.rsqrt((var * flat.shape[1]).clamp(min=EPS)) * RELU_GAIN * self.gain[:, None]
        return ((flat - mean) * scale).reshape(rows.shape).movedim(0, self.dim)


def parametrize_weight(layer: nn.Module, kind: str) -> None:
    """Compute the weight of a Conv or Linear layer as `kind` says, from parameters of its own, in place. They are
    stored under `parametrizations.weight`, as torch does.

    Raises:
        InvalidConfig: a transposed convolution in groups; for weight_std, a channel with a single weight.
    """
    dim = 1 if isinstance(layer, _ConvTransposeNd) else 0
    if dim == 1 and isinstance(layer, _ConvNd) and layer.groups > 1:
        raise InvalidConfig(f"norm {kind!r} is not for transposed convolutions in groups")
    if kind == "weight_mean":
        parametrizations.weight_norm(layer, dim=dim)
        return
    weight = layer.get_parameter("weight")
    channels = weight.shape[dim]
    if weight.numel() == channels:
        raise InvalidConfig(f"norm {kind!r} over a single weight a channel leaves nothing of it")
    standardization = ScaledWeightStandardization(channels, dim).to(weight.device, weight.dtype)
    parametrize.register_parametrization(layer, "weight", standardization)
