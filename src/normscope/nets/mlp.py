"""Multilayer perceptrons over flattened images."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from normscope.errors import InvalidConfig
from normscope.nets.norms import make_norm


class MLP(nn.Module):
    """`depth` linear layers: depth - 1 hidden ones of `width` units, each followed by norm and ReLU, and fc.

    With `final_norm` a BatchNorm1d stands in front of fc, behind the last ReLU. Inputs (batch, ...) of
    `in_features` numbers each are flattened; logits (batch, num_classes) out.
    """

    def __init__(
        self,
        depth: int,
        *,
        in_features: int,
        norm: str = "none",
        final_norm: bool = False,
        num_classes: int = 10,
        width: int = 128,
        bias: bool | None = None,
    ) -> None:
        if depth < 1:
            raise InvalidConfig(f"MLP depth must be at least 1, not {depth}")
        super().__init__()
        self.depth = depth
        features = [in_features] + [width] * (depth - 1)
        hidden = [HiddenLayer(fan_in, fan_out, norm=norm, bias=bias) for fan_in, fan_out in pairwise(features)]
        self.hidden = nn.Sequential(*hidden)
        self.final_norm = make_norm("batch" if final_norm else "none", features[-1], spatial_dims=0)
        self.fc = nn.Linear(features[-1], num_classes)

    def forward(self, input: Tensor) -> Tensor:
        """Logits (batch, num_classes) of inputs (batch, ...) of `in_features` numbers each."""
        x = self.hidden(input.flatten(1))
        return self.fc(self.final_norm(x))


class HiddenLayer(nn.Module):
    """relu(norm(linear(x))); with `bias` None the linear layer has a bias where the norm brings none."""

    def __init__(self, in_features: int, out_features: int, *, norm: str, bias: bool | None) -> None:
        super().__init__()
        normalizer = make_norm(norm, out_features, spatial_dims=0)
        if bias is None:
            bias = getattr(normalizer, "bias", None) is None
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.norm = normalizer

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, in_features) in, (batch, out_features) out."""
        return F.relu(self.norm(self.linear(input)))
