"""The gradient of a convolution's kernel, image by image, as products of matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from normscope.model.vector_norm import norm_dtype


@dataclass(frozen=True)
class Convolution:
    """How a kernel is moved over its input; one number for each spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def backward(self, delta: Tensor, x: Tensor, weight: Tensor, copies: int, mask: list[bool]) -> tuple[Tensor, ...]:
        """torch's own backward pass of `copies` convolutions side by side."""
        output_padding = list(self.output_padding or [0] * len(self.kernel))
        return torch.ops.aten.convolution_backward(
            delta,
            x,
            weight,
            None,
            list(self.stride),
            list(self.padding),
            list(self.dilation),
            self.transposed,
            output_padding,
            self.groups * copies,
            mask,
        )


@dataclass(frozen=True)
class PatchSize:
    """The shapes of one image in a convolution without groups, and what its tensors are made of."""

    how: Convolution
    channels: int
    sizes: tuple[int, ...]
    out_channels: int
    out_sizes: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor, delta: Tensor, how: Convolution) -> "PatchSize":
        """From x (images, channels, *sizes) and delta (images, out channels, *out sizes)."""
        return cls(how, x.shape[1], x.shape[2:], delta.shape[1], delta.shape[2:], x.dtype, x.device)

    @property
    def padded(self) -> tuple[int, ...]:
        """The image's sizes with its padding."""
        return tuple(size + 2 * padding for size, padding in zip(self.sizes, self.how.padding, strict=True))

    @property
    def width(self) -> int:
        """Entries of a patch in one row of the kernel."""
        return self.how.kernel[-1] * self.channels

    @property
    def bytes_of_patches(self) -> int:
        """Work space of one image."""
        in_a_row = self.padded[-1] * self.channels + self.out_sizes[-1] * self.width
        return prod(self.padded[:-1]) * in_a_row * self.dtype.itemsize

    @property
    def bytes_of_terms(self) -> int:
        """Of what one image adds to the kernel's gradient."""
        return prod(self.how.kernel) * self.channels * self.out_channels * self.dtype.itemsize

    def in_kernel_shape(self, terms: Tensor) -> Tensor:
        """(kernel's rows, images, out channels, width) as (images, out channels, channels, *kernel)."""
        apart = terms.unflatten(3, (self.how.kernel[-1], -1)).movedim(0, 2)
        rows = self.how.kernel[:-1]
        return (apart.unflatten(2, rows) if rows else apart.squeeze(2)).movedim(-1, 2)


class Patches:
    """Σ_p δ_p x_pᵀ of `images` images at once, in work space that is kept, with room for the terms of `kept` images.

    Patches are copied along the last spatial dimension only, where a patch and its channels are one run of numbers;
    along the others they are slices of that copy. One product of matrices for each row of the kernel then does it.
    """

    def __init__(self, size: PatchSize, images: int, kept: int) -> None:
        how, rows = size.how, size.how.kernel[:-1]
        made_of = {"dtype": size.dtype, "device": size.device}
        padded = torch.zeros(images, *size.padded, size.channels, **made_of)  # what lies outside the image stays zero
        inside = [slice(padding, padding + n) for padding, n in zip(how.padding, size.sizes, strict=True)]
        self._image = padded[(slice(None), *inside)]
        strides = padded.stride()
        last = (strides[-2] * how.stride[-1], strides[-2] * how.dilation[-1], 1)
        shape = (images, *size.padded[:-1], size.out_sizes[-1], how.kernel[-1], size.channels)
        self._view = padded.as_strided(shape, (*strides[:-2], *last))
        self._copy = torch.empty(shape, **made_of)
        self._shape = (images, prod(size.out_sizes), size.width)
        self._slices = []
        for place in product(*map(range, rows)):
            begins = [i * dilation for i, dilation in zip(place, how.dilation[:-1], strict=True)]
            ends = [b + (n - 1) * s + 1 for b, n, s in zip(begins, size.out_sizes[:-1], how.stride[:-1], strict=True)]
            patches = self._copy[(slice(None), *map(slice, begins, ends, how.stride[:-1]))]
            self._slices.append(patches.view(self._shape) if set(how.stride[:-1]) <= {1} else patches)
        self._size = size
        self.terms = torch.empty(prod(rows), kept, size.out_channels, size.width, **made_of)
        """Of the images that came last: (kernel's rows, images, out channels, width)."""
        self._rooms = [few.unbind() for few in self.terms.split(images, 1)]
        self._ones = torch.ones(prod(rows), 1, kept, **made_of)

    def norms_and_sum(self, x: Tensor, delta: Tensor, each: int) -> tuple[Tensor, Tensor]:
        """Norms (kernel's rows, examples) of the examples' terms, which may have overflown (`norms.are_safe`), and the
        sum of these (kernel's rows, 1, out channels, width), from x (images, *positions, channels) and delta (images,
        out channels, positions), where each example has `each` images and `kept` is a multiple of that."""
        images, kept = self._shape[0], self.terms.shape[1]
        norms, total = [], torch.zeros_like(self.terms[:, :1]).flatten(2)
        for some_x, some_delta in zip(x.split(kept), delta.split(kept), strict=True):
            for few_x, few_delta, room in zip(
                some_x.split(images), some_delta.split(images), self._rooms, strict=False
            ):
                self.fill(few_x, few_delta, room)
            found = self.terms[:, : some_x.shape[0]]
            found = (found if each == 1 else found.unflatten(1, (-1, each)).sum(2)).flatten(2)
            norms.append(torch.linalg.vector_norm(found, dim=-1, dtype=norm_dtype(found)))
            total.baddbmm_(self._ones[..., : found.shape[1]], found)  # a sum over images, faster than .sum(1)
        return torch.cat(norms, 1), total.unflatten(2, self.terms.shape[2:])

    def fill(self, x: Tensor, delta: Tensor, terms: Sequence[Tensor]) -> None:
        """Compute the terms of as many images as this is made for, or fewer; `terms` is where, one a row of the
        kernel."""
        images = x.shape[0]
        if images < self._shape[0]:
            return Patches(self._size, images, 0).fill(x, delta, [term[:images] for term in terms])
        self._image.copy_(x)
        self._copy.copy_(self._view)
        for patches, term in zip(self._slices, terms, strict=True):
            torch.bmm(delta, patches if patches.ndim == 3 else patches.reshape(self._shape), out=term)
