"""What each example adds to the gradient of one parameter, from an operation's input and the gradient at its output.

With δ = ∂loss/∂output, example b and positions p (tokens, pixels), the gradient of a weight is

    linear        Σ_b Σ_p δ_bp x_bpᵀ            convolution   the same, x_bp being the patch that p sees
    embedding     Σ_b Σ_p δ_bp onehot(token_bp)ᵀ    scale and shift  Σ_b Σ_p δ_bp x_bp  and  Σ_b Σ_p δ_bp

and a `Summand` gives the terms of Σ_b, a few examples at a time so that they never lie in memory all at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from normscope.per_example.norms import norms_of

CHUNK_BYTES = {"cpu": 5 * 2**18, "cuda": 2**28}
"""Work space for the examples taken at once: what fits into a core's cache; what keeps a GPU busy."""

GRAM_ADVANTAGE = 4
"""The Gram matrices of a linear layer must be this many times cheaper than the gradients themselves to be used."""


@dataclass(frozen=True)
class Summand:
    """What one operation adds to the gradient of one parameter, example by example."""

    rows: Callable[[int, int], Tensor]
    """The terms of examples lo to hi - 1: (hi - lo, *parameter's shape)."""
    row_bytes: int
    """Work space that `rows` takes for one example."""
    closed_form: Callable[[], tuple[Tensor, Tensor]] | None = None
    """The terms' squared norms, (examples,) in float64, and their sum, where these can be had without the terms."""


def squared_norms_and_sum(
    summands: Sequence[Summand], num_examples: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Squared norm of each example's gradient, (examples,) in float64, and their sum, of a parameter whose uses gave
    these summands; an example's terms are added up before the norm is taken."""
    if len(summands) == 1 and summands[0].closed_form is not None:
        return summands[0].closed_form()
    step = max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // max(1, sum(s.row_bytes for s in summands)))
    squares, total = [], None
    for low in range(0, num_examples, step):
        high = min(low + step, num_examples)
        rows = summands[0].rows(low, high)
        for other in summands[1:]:
            rows = rows.reshape(high - low, -1) + other.rows(low, high).reshape(high - low, -1)
        squares.append(norms_of(rows.reshape(high - low, -1)).square())
        part = rows.sum(0)
        total = part if total is None else total.add_(part)
    assert total is not None
    return torch.cat(squares), total


def of_rows(rows: Tensor) -> Summand:
    """Terms that are small enough to be had all at once: (examples, *parameter's shape)."""
    return Summand(lambda low, high: rows[low:high], rows[0].numel() * rows.element_size())


def of_linear(x: Tensor, delta: Tensor) -> Summand:
    """A linear map's weight (out, in) from x (examples, positions, in) and delta (examples, positions, out)."""
    (positions, fan_in), fan_out = x.shape[1:], delta.shape[2]

    def rows(low: int, high: int) -> Tensor:
        return torch.bmm(delta[low:high].transpose(1, 2), x[low:high])

    def closed_form() -> tuple[Tensor, Tensor]:
        # |Σ_p δ_p x_pᵀ|² = Σ_pq (δ_p·δ_q)(x_p·x_q): in float64, since the terms may cancel.
        wide_x, wide_delta = x.double(), delta.double()
        gram_x = torch.bmm(wide_x, wide_x.transpose(1, 2))
        gram_delta = torch.bmm(wide_delta, wide_delta.transpose(1, 2))
        return (gram_x * gram_delta).sum((1, 2)), delta.flatten(0, 1).t() @ x.flatten(0, 1)

    few = positions == 1 or GRAM_ADVANTAGE * positions * (fan_in + fan_out) <= fan_in * fan_out
    return Summand(rows, fan_in * fan_out * x.element_size(), closed_form if few else None)


def of_embedding(tokens: Tensor, delta: Tensor, num_words: int, padding_idx: int) -> Summand:
    """A table (words, features) from tokens (examples, positions) and delta (examples, positions, features); rows of
    the padding word get no gradient."""
    num_examples, width = len(tokens), delta.shape[2]
    delta = delta.masked_fill((tokens == padding_idx)[..., None], 0) if padding_idx >= 0 else delta

    def rows(low: int, high: int) -> Tensor:
        place = tokens[low:high] + num_words * torch.arange(high - low, device=tokens.device)[:, None]
        table = delta.new_zeros((high - low) * num_words, width)
        return table.index_add_(0, place.flatten(), delta[low:high].flatten(0, 1)).view(-1, num_words, width)

    def closed_form() -> tuple[Tensor, Tensor]:
        owner = torch.arange(num_examples, device=tokens.device)[:, None]
        seen, place = torch.unique(tokens + num_words * owner, return_inverse=True)
        terms = delta.new_zeros(len(seen), width).index_add_(0, place.flatten(), delta.flatten(0, 1))
        squares = torch.zeros(num_examples, dtype=torch.float64, device=delta.device)
        squares.index_add_(0, seen // num_words, norms_of(terms).square())
        return squares, delta.new_zeros(num_words, width).index_add_(0, tokens.flatten(), delta.flatten(0, 1))

    return Summand(rows, num_words * width * delta.element_size(), closed_form)


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


def of_convolution(x: Tensor, delta: Tensor, weight: Tensor, how: Convolution, num_examples: int) -> Summand:
    """A kernel from x (images, channels, *positions) and delta (images, out channels, *positions), where each example
    has as many images, one after the other."""
    each = len(x) // num_examples
    if how.groups > 1 or how.transposed:

        def grouped(low: int, high: int) -> Tensor:
            some = slice(low * each, high * each)
            return grouped_terms(x[some], delta[some], weight, how).unflatten(0, (high - low, each)).sum(1)

        work = each * (x[0].numel() + delta[0].numel() + 2 * weight.numel())
        return Summand(grouped, work * x.element_size())

    def rows(low: int, high: int) -> Tensor:
        some = slice(low * each, high * each)
        patches = one.for_images((high - low) * each)
        terms = patches.new_terms((high - low) * each)
        patches.fill(x[some].movedim(1, -1), wide_delta[some], terms.unbind())
        return in_kernel_shape(terms.unflatten(1, (high - low, each)).sum(2), how)

    def closed_form() -> tuple[Tensor, Tensor]:
        norms, total = kernel_norms_and_sum(x, wide_delta, one, each)
        return norms.square().sum(0), in_kernel_shape(total, how)[0]

    wide_delta = delta.movedim(1, -1).flatten(1, -2).transpose(1, 2)
    one = Patches(1, x, delta, how)
    return Summand(rows, each * (one.bytes_of_patches + one.bytes_of_terms), closed_form)


def kernel_norms_and_sum(x: Tensor, delta: Tensor, one: "Patches", each: int) -> tuple[Tensor, Tensor]:
    """Norms (kernel's rows, examples) of the terms, in float64, and the terms' sum (kernel's rows, 1, out
    channels, kernel width * channels), from delta (images, out channels, positions) and each example's `each` images.

    The images whose patches are copied at once, and those whose terms are kept at once, are as many as fit.
    """
    images, space = len(x), CHUNK_BYTES.get(x.device.type, CHUNK_BYTES["cpu"])
    kept = max(1, space // one.bytes_of_terms)
    step = evenly(images, min(kept, space // one.bytes_of_patches))
    kept = max(step, kept // step * step) if each == 1 else each * max(1, kept // each)
    patches = one.for_images(step)
    terms = patches.new_terms(min(kept, images))
    rooms = [few.unbind() for few in terms.split(step, 1)]
    norms, ones = [], x.new_ones(terms.shape[0], 1, kept)
    total = x.new_zeros(terms.shape[0], 1, terms[0, 0].numel())
    for some_x, some_delta in zip(x.movedim(1, -1).split(kept), delta.split(kept), strict=True):
        for few_x, few_delta, room in zip(some_x.split(step), some_delta.split(step), rooms, strict=False):
            patches.fill(few_x, few_delta, room)
        found = terms[:, : some_x.shape[0]]
        found = (found if each == 1 else found.unflatten(1, (-1, each)).sum(2)).flatten(2)
        norms.append(norms_of(found))
        total.baddbmm_(ones[..., : found.shape[1]], found)  # a sum over images, faster than .sum(1)
    return torch.cat(norms, 1), total.unflatten(2, terms.shape[2:])


def evenly(count: int, most: int) -> int:
    """The largest divisor of `count` up to `most`, if that is not much less; else `most`, but at least 1."""
    divisor = next((step for step in range(min(count, most), 0, -1) if count % step == 0), 1)
    return divisor if 2 * divisor >= min(count, most) else max(1, most)


class Patches:
    """Σ_p δ_p x_pᵀ of some images at once, in work space that is got once a layer.

    Patches are copied along the last spatial dimension only, where a patch and its channels are one run of numbers;
    along the others they are slices of that copy. One product of matrices for each row of the kernel then does it.
    """

    def __init__(self, images: int, x: Tensor, delta: Tensor, how: Convolution) -> None:
        self._made_for = images, x, delta, how
        channels, out = x.shape[1], delta.shape[2:]
        sizes = [size + 2 * padding for size, padding in zip(x.shape[2:], how.padding, strict=True)]
        padded = x.new_zeros(images, *sizes, channels)  # what lies outside the image stays zero
        inside = [slice(padding, padding + size) for padding, size in zip(how.padding, x.shape[2:], strict=True)]
        self._image = padded[(slice(None), *inside)]
        strides = padded.stride()
        last = (strides[-2] * how.stride[-1], strides[-2] * how.dilation[-1], 1)
        self._view = padded.as_strided((images, *sizes[:-1], out[-1], how.kernel[-1], channels), (*strides[:-2], *last))
        self._copy = torch.empty_like(self._view, memory_format=torch.contiguous_format)
        self._shape = (images, prod(out), how.kernel[-1] * channels)
        self._slices = []
        for place in product(*map(range, how.kernel[:-1])):
            begins = [i * dilation for i, dilation in zip(place, how.dilation[:-1], strict=True)]
            ends = [b + (n - 1) * stride + 1 for b, n, stride in zip(begins, out[:-1], how.stride[:-1], strict=True)]
            patches = self._copy[(slice(None), *map(slice, begins, ends, how.stride[:-1]))]
            self._slices.append(patches.view(self._shape) if set(how.stride[:-1]) <= {1} else patches)
        self.bytes_of_patches = (padded.numel() + self._copy.numel()) * x.element_size()
        self.bytes_of_terms = images * prod(how.kernel) * channels * delta.shape[1] * x.element_size()

    def for_images(self, images: int) -> "Patches":
        """The same for another number of images."""
        return Patches(images, *self._made_for[1:])

    def new_terms(self, images: int) -> Tensor:
        """Room for the terms of as many images: (kernel's rows, images, out channels, kernel width * channels)."""
        _, x, delta, _ = self._made_for
        return x.new_empty(len(self._slices), images, delta.shape[1], self._shape[2])

    def fill(self, x: Tensor, delta: Tensor, terms: Sequence[Tensor]) -> None:
        """Compute the terms, for each of the kernel's rows (images, out channels, kernel width * channels), from x
        (images, *positions, channels) and delta (images, out channels, positions); of fewer images, the first ones."""
        images = x.shape[0]
        if images < self._shape[0]:
            return self.for_images(images).fill(x, delta, [term[:images] for term in terms])
        self._image.copy_(x)
        self._copy.copy_(self._view)
        for patches, term in zip(self._slices, terms, strict=True):
            torch.bmm(delta, patches if patches.ndim == 3 else patches.reshape(self._shape), out=term)


def in_kernel_shape(terms: Tensor, how: Convolution) -> Tensor:
    """(kernel's rows, images, out channels, kernel width * channels) as (images, out channels, channels, *kernel)."""
    apart = terms.unflatten(3, (how.kernel[-1], -1)).movedim(0, 2)
    return apart.unflatten(2, how.kernel[:-1]).movedim(-1, 2) if how.kernel[:-1] else apart.squeeze(2).movedim(-1, 2)


def grouped_terms(x: Tensor, delta: Tensor, weight: Tensor, how: Convolution) -> Tensor:
    """(images, *weight's shape) for any convolution: every image becomes a group of its own."""
    images = len(x)
    kernels = weight.repeat(images, *[1] * (weight.ndim - 1))
    one_delta, one_x = (tensor.reshape(1, -1, *tensor.shape[2:]) for tensor in (delta, x))
    return how.backward(one_delta, one_x, kernels, images, [False, True, False])[1].view(images, *weight.shape)
