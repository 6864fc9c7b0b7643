"""Plain deep CNNs: a CIFAR ResNet's main path without its shortcuts, as in He et al. 2016."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from normscope.nets.staged import StagedCNN, conv_and_norm


class PlainCNN(StagedCNN):
    """3×3 convolutions, each followed by norm and ReLU.

    Layers have the names and shapes of the `ResNet` of the same depth 6n + 2.
    Images (batch, in_channels, height, width) of any size in, logits (batch, num_classes) out.
    """

    def __init__(
        self,
        depth: int,
        *,
        norm: str = "none",
        final_norm: bool = False,
        in_channels: int = 3,
        num_classes: int = 10,
        width: int = 16,
        bias: bool | None = None,
    ) -> None:
        def block(channels_in: int, channels_out: int, stride: int) -> PlainBlock:
            return PlainBlock(channels_in, channels_out, stride, norm=norm, bias=bias)

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


class PlainBlock(nn.Module):
    """relu(norm2(conv2(relu(norm1(conv1(x)))))); height and width are divided by `stride`, and rounded up."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, norm: str, bias: bool | None) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv_and_norm(in_channels, out_channels, 3, stride, norm=norm, bias=bias)
        self.conv2, self.norm2 = conv_and_norm(out_channels, out_channels, 3, 1, norm=norm, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, in_channels, height, width) in, (batch, out_channels, height', width') out."""
        x = F.relu(self.norm1(self.conv1(input)))
        return F.relu(self.norm2(self.conv2(x)))
