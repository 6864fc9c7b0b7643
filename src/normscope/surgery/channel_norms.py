"""The norm for a place: `make_norm` where the number of positions is known, else one that takes any number."""

from dataclasses import replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.errors import InvalidConfig, InvalidModel
from normscope.nets.norms import EPS, make_norm, num_groups
from normscope.surgery.places import Place

ON_IMAGES = 2


def norm_at(kind: str, place: Place, shape: torch.Size | None) -> nn.Module:
    """A fresh norm of `kind` for a place whose channels are known; `shape` is that of what it will normalize, if known.

    Raises:
        InvalidConfig: where it would average over a single value.
    """
    if shape is not None and place.channel_dim == -1 and len(shape) == 2:
        place = replace(place, channel_dim=1)  # (batch, features): there is no other dimension
    if shape is not None and place.channel_dim == 1:
        place = replace(place, spatial_dims=len(shape) - 2)
    if shape is not None and len(shape) > 2:  # without positions `make_norm` refuses by itself
        _refuse_single_value(kind, place, shape)
    if place.channel_dim == 1 and place.spatial_dims is None and kind in ("batch", "instance"):
        family = ChannelBatchNorm if kind == "batch" else ChannelInstanceNorm
        return family(place.num_channels)
    spatial_dims = ON_IMAGES if place.spatial_dims is None else place.spatial_dims
    return make_norm(kind, place.num_channels, channel_dim=place.channel_dim, spatial_dims=spatial_dims)


def _refuse_single_value(kind: str, place: Place, shape: torch.Size) -> None:
    channels = place.num_channels
    positions = prod(shape[2:]) if place.channel_dim == 1 else prod(shape[1:-1])
    in_group = channels // num_groups(channels)
    apart = positions if place.channel_dim == 1 else 1  # group, layer and rms see each token alone
    averaged = {"instance": positions, "group": in_group * apart, "layer": channels * apart, "rms": channels * apart}
    if averaged.get(kind) == 1:
        raise InvalidConfig(
            f"norm {kind!r} would average over a single value of shape {tuple(shape)}: choose 'batch' or 'tanh'"
        )


class ChannelBatchNorm(_BatchNorm):
    """Batch normalization of (batch, channels, *positions) with any number of position dims, none included."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, eps=EPS)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise InvalidModel(f"norm 'batch' needs (batch, channels, ...), not shape {tuple(input.shape)}")


class ChannelInstanceNorm(nn.Module):
    """Instance normalization of (batch, channels, *positions) with any number of position dims from one up."""

    channel_dim = 1

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, channels, *positions) in and out; raises `InvalidModel` without positions."""
        if input.dim() < 3:
            raise InvalidModel(f"norm 'instance' needs (batch, channels, positions), not shape {tuple(input.shape)}")
        return F.instance_norm(input, weight=self.weight, bias=self.bias, eps=EPS)

    def extra_repr(self) -> str:
        """Show the number of channels."""
        return f"{self.weight.numel()}"
