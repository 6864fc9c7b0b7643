"""Normalizers by name: `make_norm("batch", 64)`.

Two layouts: `channel_dim=1` for (batch, channels, *positions), as convolutions give it, and
`channel_dim=-1` for (batch, tokens, features), as transformers give it. What each name averages over, for
one channel c of example b:

| name     | channel_dim=1                           | channel_dim=-1                         |
|----------|-----------------------------------------|----------------------------------------|
| none     | nothing                                 | nothing                                |
| batch    | examples and positions                  | examples and tokens                    |
| group    | the positions and channels of c's group | the features of c's group, token alone |
| layer    | all positions and channels of b         | all features, token alone              |
| rms      | as layer; the mean is not taken off     | as layer; the mean is not taken off    |
| instance | the positions of b                      | the tokens of b                        |
| tanh     | nothing: weight · tanh(alpha · x) + bias| the same                               |

Batch norm with one part of it changed (`batch_mean`, `batch_std`, `batch_detached`, `batch_first`, `batch_running`,
`batch_ghost`) is in `batch_norm_parts`; it takes both layouts.

All have a learned weight per channel that starts at 1 and, but for rms, a bias that starts at 0. Making one
draws no random numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normscope.errors import InvalidConfig, InvalidModel, unknown
from normscope.nets.batch_norm_parts import PARTS, PartialBatchNorm
from normscope.nets.names import NORMS

EPS = 1e-5
"""Added to each variance: torch's default, and for rms too, so that norms differ in kind only."""


def make_norm(kind: str, num_channels: int, *, channel_dim: int = 1, spatial_dims: int = 2) -> nn.Module:
    """Make the normalizer called `kind` for `num_channels` channels; "none" gives `nn.Identity`.

    `channel_dim` is 1 or -1 (see the table above). `spatial_dims` is the number of position dims behind dim
    1, from 0 (features) to 3 (volumes); with `channel_dim=-1` it is not used. "layer" with `channel_dim=1`
    is `GroupNorm(1, C)`.

    Raises `InvalidConfig` for an unknown name, and where each average would be over one value, whose
    normalized value says nothing about the input: instance without positions; group, layer and rms with one
    channel and no positions.
    """
    _check_norm_name(kind)
    if channel_dim not in (1, -1):
        raise InvalidConfig(f"channel_dim must be 1 or -1, not {channel_dim}")
    if spatial_dims not in (0, 1, 2, 3):
        raise InvalidConfig(f"spatial_dims must be 0, 1, 2 or 3, not {spatial_dims}")
    if num_channels < 1:
        raise InvalidConfig(f"num_channels must be at least 1, not {num_channels}")
    _refuse_single_values(kind, num_channels, channel_dim, spatial_dims)
    if kind == "none":
        return nn.Identity()
    if kind == "tanh":
        return DynamicTanh(num_channels, channel_dim=channel_dim)
    if kind in PARTS:
        return PartialBatchNorm(num_channels, PARTS[kind], channel_dim=channel_dim, eps=EPS)
    if channel_dim == -1:
        return _over_features(kind, num_channels)
    return _over_images(kind, num_channels, spatial_dims)


def _check_norm_name(kind: str) -> None:
    """Raise `InvalidConfig` for a name that `make_norm` does not take."""
    if kind not in NORMS and kind not in PARTS:
        raise unknown("norm", kind, (*NORMS, *PARTS))


def num_groups(num_channels: int) -> int:
    """How many groups `make_norm("group", num_channels)` makes.

    The largest divisor of `num_channels` that is at most 32 (the number in Wu & He 2018) and leaves 4
    channels or more to a group; fewer than 4 channels make one group.
    """
    most = max(1, min(32, num_channels // 4))
    return max(groups for groups in range(1, most + 1) if num_channels % groups == 0)


def _refuse_single_values(kind: str, num_channels: int, channel_dim: int, spatial_dims: int) -> None:
    if kind == "instance" and channel_dim == 1 and spatial_dims == 0:
        raise InvalidConfig(
            "norm 'instance' averages over positions, and features have none: choose 'layer' or 'batch'"
        )
    one_position = channel_dim == -1 or spatial_dims == 0
    if kind in ("group", "layer", "rms") and num_channels == 1 and one_position:
        raise InvalidConfig(
            f"norm {kind!r} over a single value leaves nothing of it: use 2 channels or more, or 'batch'"
        )


def _over_images(kind: str, num_channels: int, spatial_dims: int) -> nn.Module:
    if kind == "batch":
        family = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[spatial_dims]
        return family(num_channels, eps=EPS)
    if kind == "instance":
        family = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[spatial_dims - 1]
        return family(num_channels, eps=EPS, affine=True)
    if kind == "rms":
        return ChannelRMSNorm(num_channels)
    return nn.GroupNorm(num_groups(num_channels) if kind == "group" else 1, num_channels, eps=EPS)


def _over_features(kind: str, num_channels: int) -> nn.Module:
    if kind == "batch":
        return TokenBatchNorm(num_channels, eps=EPS)
    if kind == "instance":
        return TokenInstanceNorm(num_channels, eps=EPS, affine=True)
    if kind == "rms":
        return nn.RMSNorm(num_channels, eps=EPS)
    if kind == "layer":
        return nn.LayerNorm(num_channels, eps=EPS)
    return TokenGroupNorm(num_groups(num_channels), num_channels, eps=EPS)


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch normalization of each feature of (..., features), over all dims in front of the last."""

    channel_dim = -1

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., features) in and out."""
        return super().forward(input.reshape(-1, input.shape[-1])).reshape(input.shape)


class TokenGroupNorm(nn.GroupNorm):
    """Group normalization of the features of (..., features), token by token: none sees a later one."""

    channel_dim = -1

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., features) in and out."""
        return super().forward(input.reshape(-1, input.shape[-1])).reshape(input.shape)


class TokenInstanceNorm(nn.InstanceNorm1d):
    """Instance normalization of each feature of (batch, *tokens, features), over the tokens of an example."""

    channel_dim = -1

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, *tokens, features) in and out; raises `InvalidModel` without tokens."""
        if input.dim() < 3:
            shape = tuple(input.shape)
            raise InvalidModel(f"norm 'instance' needs (batch, tokens, features), not shape {shape}")
        channels_first = input.flatten(1, -2).transpose(1, 2)
        return super().forward(channels_first).transpose(1, 2).reshape(input.shape)


class ChannelRMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, the mean over all channels and positions of an example."""

    channel_dim = 1

    def __init__(self, num_channels: int, *, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, channels, *positions) in and out."""
        mean_square = input.square().mean(dim=tuple(range(1, input.dim())), keepdim=True)
        return input * torch.rsqrt(mean_square + self.eps) * _along(self.weight, input, 1)

    def extra_repr(self) -> str:
        """Show the number of channels and eps."""
        return f"{self.weight.numel()}, eps={self.eps}"


class DynamicTanh(nn.Module):
    """weight · tanh(alpha · x) + bias: a bound without statistics.

    From Zhu et al. 2025, "Transformers without Normalization". `alpha` is one learned number, 0.5 at first as
    there; weight and bias are one number a channel.
    """

    def __init__(self, num_channels: int, *, channel_dim: int = 1, alpha: float = 0.5) -> None:
        super().__init__()
        self.channel_dim = channel_dim
        self.alpha = nn.Parameter(torch.tensor([alpha]))
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, channels, *positions), or (..., features) with `channel_dim=-1`, in and out."""
        weight, bias = (_along(each, input, self.channel_dim) for each in (self.weight, self.bias))
        return weight * torch.tanh(self.alpha * input) + bias

    def extra_repr(self) -> str:
        """Show the number of channels and where they are."""
        return f"{self.weight.numel()}, channel_dim={self.channel_dim}"


def _along(per_channel: Tensor, input: Tensor, channel_dim: int) -> Tensor:
    """Reshape (channels,) so that it broadcasts along `channel_dim` of `input`."""
    return per_channel if channel_dim == -1 else per_channel.reshape(-1, *[1] * (input.dim() - 2))
