"""ResNets for CIFAR (He et al. 2016): depth 6n + 2, of which resnet110 is the paper's network."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from normscope.errors import unknown
from normscope.nets.staged import StagedCNN, conv_and_norm

SHORTCUTS: tuple[str, ...] = ("projection", "pad")


class ResNet(StagedCNN):
    """A CIFAR ResNet of basic blocks.

    The depth counts the main path: conv1, two convolutions a block, fc. What stands in a shortcut has
    `shortcut` in its path and is not counted. Where a stage changes the shape, the shortcut is a 1×1
    `projection` with the network's norm behind it, which restarts the residual stream at each stage, or
    `pad`: every second position, zeros for the new channels.

    Images (batch, in_channels, height, width) of any size in, logits (batch, num_classes) out.
    """

    def __init__(
        self,
        depth: int,
        *,
        norm: str = "none",
        final_norm: bool = False,
        shortcut: str = "projection",
        in_channels: int = 3,
        num_classes: int = 10,
        width: int = 16,
        bias: bool | None = None,
    ) -> None:
        if shortcut not in SHORTCUTS:
            raise unknown("shortcut", shortcut, SHORTCUTS)

        def block(channels_in: int, channels_out: int, stride: int) -> BasicBlock:
            return BasicBlock(channels_in, channels_out, stride, norm=norm, shortcut=shortcut, bias=bias)

        super().__init__(
            depth,
            block,
            norm=norm,
            final_norm=final_norm,
            in_channels=in_channels,
            num_classes=num_classes,
            width=width,
            bias=bias,
        )


class BasicBlock(nn.Module):
    """relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x)).

    Height and width are divided by `stride`, and rounded up.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, norm: str, shortcut: str, bias: bool | None
    ) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv_and_norm(in_channels, out_channels, 3, stride, norm=norm, bias=bias)
        self.conv2, self.norm2 = conv_and_norm(out_channels, out_channels, 3, 1, norm=norm, bias=bias)
        if in_channels == out_channels and stride == 1:
            self.shortcut: nn.Module = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = PaddedShortcut(out_channels - in_channels, stride)
        else:
            conv, normalizer = conv_and_norm(in_channels, out_channels, 1, stride, norm=norm, bias=bias)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=normalizer))

    @property
    def residual_tail(self) -> str:
        """The last child of the residual branch that has a weight: norm2, or conv2 without norms."""
        return "conv2" if getattr(self.norm2, "weight", None) is None else "norm2"

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, in_channels, height, width) in, (batch, out_channels, height', width') out."""
        x = F.relu(self.norm1(self.conv1(input)))
        x = self.norm2(self.conv2(x))
        return F.relu(x + self.shortcut(input))


class PaddedShortcut(nn.Module):
    """Take every `stride`-th position and append `extra_channels` channels of zeros; no parameters."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, channels, height, width) in, (batch, channels + extra, height', width') out."""
        sampled = input[:, :, :: self.stride, :: self.stride]
        return F.pad(sampled, (0, 0, 0, 0, 0, self.extra_channels))

    def extra_repr(self) -> str:
        """Show what is padded."""
        return f"extra_channels={self.extra_channels}, stride={self.stride}"
