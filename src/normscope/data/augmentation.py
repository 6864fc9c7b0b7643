"""Random crops and flips of a whole batch at once, on the device.

A crop shifts the image inside a border of `pad` black pixels, a flip mirrors it left to right:

    augmented[b, c, y, x] = padded[b, c, y + dy_b, x' + dx_b],   x' = W - 1 - x if flipped, else x

with dy, dx uniform on 0 .. 2 pad and flips in one image of two. Black is the pixel value 0 before
standardization; a 0 after it would be the mean colour, and draw a grey frame around digits on black.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a training image: shifts by up to `pad` pixels, and mirroring if `flip`."""

    pad: int
    flip: bool


@dataclass(frozen=True)
class Draws:
    """The random part, one entry for each image: dy and dx (N,) int64 in 0 .. 2 pad, and flip (N,) bool."""

    dy: Tensor
    dx: Tensor
    flip: Tensor

    def __getitem__(self, part: slice) -> Draws:
        """The draws of a part of the images."""
        return Draws(self.dy[part], self.dx[part], self.flip[part])


def draw(n: int, augmentation: Augmentation, generator: torch.Generator) -> Draws:
    """Draw shifts and flips for n images, on the generator's device."""
    device = generator.device
    shifts = torch.randint(2 * augmentation.pad + 1, (2, n), generator=generator, device=device)
    flip = torch.randint(2, (n,), generator=generator, device=device).bool() & augmentation.flip
    return Draws(shifts[0], shifts[1], flip)


def augment(images: Tensor, draws: Draws, *, pad: int, fill: Tensor) -> Tensor:
    """Crop and flip, by one gather over the whole batch.

    images: (B, C, H, W). draws: B entries, made with the same `pad`. fill: (C,), the colour of the border.
    Returns a new tensor (B, C, H, W).
    """
    size, channels, height, width = images.shape
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    columns = torch.where(draws.flip[:, None], width - 1 - x, x) + draws.dx[:, None] - pad
    rows = y + draws.dy[:, None] - pad
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    source = source.view(size, 1, -1).expand(size, channels, -1)
    moved = images.reshape(size, channels, -1).gather(2, source).view_as(images)
    return torch.where(inside[:, None], moved, fill[:, None, None])
