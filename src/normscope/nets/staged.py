"""The layout that CIFAR ResNets and their plain twins share (He et al. 2016, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from normscope.nets.names import blocks_per_stage
from normscope.nets.norms import make_norm

Block = Callable[[int, int, int], nn.Module]
"""(channels in, channels out, stride) -> a block of two convolutions."""


class StagedCNN(nn.Module):
    """3×3 convolutions: conv1, three stages of n blocks; global average pool; fc: depth 6n + 2.

    The stages have `width`, 2 · `width` and 4 · `width` channels; the first block of the second and of the
    third halves both sides of the image. With `final_norm` a BatchNorm1d stands between the pool and fc.
    """

    def __init__(
        self,
        depth: int,
        block: Block,
        *,
        norm: str,
        final_norm: bool,
        in_channels: int,
        num_classes: int,
        width: int,
        bias: bool | None,
    ) -> None:
        super().__init__()
        num_blocks = blocks_per_stage(depth, type(self).__name__)
        self.depth = depth
        self.conv1, self.norm1 = conv_and_norm(in_channels, width, 3, 1, norm=norm, bias=bias)
        self.layer1 = _stage(block, num_blocks, width, width, 1)
        self.layer2 = _stage(block, num_blocks, width, 2 * width, 2)
        self.layer3 = _stage(block, num_blocks, 2 * width, 4 * width, 2)
        self.final_norm = make_norm("batch" if final_norm else "none", 4 * width, spatial_dims=0)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, in_channels, height, width)."""
        x = F.relu(self.norm1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        pooled = x.mean(dim=(2, 3))
        return self.fc(self.final_norm(pooled))


def conv_and_norm(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, *, norm: str, bias: bool | None
) -> tuple[nn.Conv2d, nn.Module]:
    """A padded convolution and the norm behind it.

    With `bias` None the convolution has a bias where the norm behind it brings none ("none" and "rms").
    """
    normalizer = make_norm(norm, out_channels)
    if bias is None:
        bias = getattr(normalizer, "bias", None) is None
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias), normalizer


def _stage(block: Block, num_blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(block(out_channels, out_channels, 1) for _ in range(num_blocks - 1)))
