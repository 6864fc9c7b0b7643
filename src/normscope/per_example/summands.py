"""What each example adds to the gradient of one parameter, from an operation's input and the gradient at its output.

With δ = ∂loss/∂output, example b and positions p (tokens, pixels), the gradient of a weight is

    linear        Σ_b Σ_p δ_bp x_bpᵀ            convolution   the same, x_bp being the patch that p sees
    embedding     Σ_b Σ_p onehot(token_bp) δ_bpᵀ    scale and shift  Σ_b Σ_p δ_bp x_bp  and  Σ_b Σ_p δ_bp

and a `Summand` gives the terms of Σ_b, a few examples at a time so that they never lie in memory all at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normscope.model.vector_norm import are_safe, norms_of, unsafe
from normscope.per_example.layout import Examples
from normscope.per_example.patches import Convolution, Patches, PatchSize

CHUNK_BYTES = {"cpu": 13 * 2**16, "cuda": 2**28}
"""Work space for the examples taken at once: what fits into a core's cache; what keeps a GPU busy."""

SHARED_CHUNKS = 1.5
"""Of these, how many for each thread where there are more: what outgrows the cache costs less than threads that wait
for each other after every small product."""

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


def _chunk_bytes(device: torch.device) -> int:
    """Work space for the examples taken at once."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        return CHUNK_BYTES["cuda"]
    return CHUNK_BYTES["cpu"] if threads == 1 else int(SHARED_CHUNKS * threads * CHUNK_BYTES["cpu"])


def squared_norms_and_sum(
    summands: Sequence[Summand], num_examples: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Squared norm of each example's gradient, (examples,) in float64, and their sum, of a parameter whose uses gave
    these summands; an example's terms are added up before the norm is taken."""
    if len(summands) == 1 and summands[0].closed_form is not None:
        return summands[0].closed_form()
    step = max(1, _chunk_bytes(device) // max(1, sum(s.row_bytes for s in summands)))
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

    def closed_form() -> tuple[Tensor, Tensor]:
        return norms_of(rows.reshape(len(rows), -1)).square(), rows.sum(0)

    return Summand(lambda low, high: rows[low:high], rows[0].numel() * rows.element_size(), closed_form)


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


def of_convolution(x: Tensor, delta: Tensor, weight: Tensor, how: Convolution, examples: Examples) -> Summand:
    """A kernel from x (images, channels, *positions) and delta (images, out channels, *positions), where each example
    has as many images, one after the other."""
    each = x.shape[0] // examples.count
    if how.groups > 1 or how.transposed:

        def grouped(low: int, high: int) -> Tensor:
            some = slice(low * each, high * each)
            return _grouped_terms(x[some], delta[some], weight, how).unflatten(0, (high - low, each)).sum(1)

        return Summand(grouped, each * (x[0].numel() + delta[0].numel() + 2 * weight.numel()) * x.element_size())

    size = PatchSize.of(x, delta, how)
    flat_delta = delta.movedim(1, -1).flatten(1, -2).transpose(1, 2)

    def rows_of(some_x: Tensor, some_delta: Tensor) -> Tensor:
        patches = Patches(size, some_x.shape[0], some_x.shape[0])
        patches.fill(some_x.movedim(1, -1), some_delta, patches.terms.unbind())
        return size.in_kernel_shape(patches.terms.unflatten(1, (-1, each)).sum(2))

    def rows(low: int, high: int) -> Tensor:
        some = slice(low * each, high * each)
        return rows_of(x[some], flat_delta[some])

    def closed_form() -> tuple[Tensor, Tensor]:
        norms, total = work_space(size, x.shape[0], each, examples).norms_and_sum(x.movedim(1, -1), flat_delta, each)
        squares = norms.double().square().sum(0)
        if not are_safe(norms):
            for some in unsafe(norms).any(0).nonzero().flatten().split(8):
                apart = [tensor.unflatten(0, (-1, each))[some].flatten(0, 1) for tensor in (x, flat_delta)]
                squares[some] = norms_of(rows_of(*apart).flatten(1)).square()
        return squares, size.in_kernel_shape(total)[0]

    return Summand(rows, each * (size.bytes_of_patches + size.bytes_of_terms), closed_form)


def work_space(size: PatchSize, images: int, each: int, examples: Examples) -> Patches:
    """Room for as many patches and terms as fit, which layers of the same shape share."""
    key = (size, images)
    if key not in examples.work_space:
        space = _chunk_bytes(size.device)
        kept = max(1, space // size.bytes_of_terms)
        step = evenly(images, min(kept, space // size.bytes_of_patches))
        kept = max(step, kept // step * step) if each == 1 else each * max(1, kept // each)
        examples.work_space[key] = Patches(size, step, min(kept, images))
    return examples.work_space[key]


def evenly(count: int, most: int) -> int:
    """The largest divisor of `count` up to `most`, if that is not much less; else `most`, but at least 1."""
    divisor = next((step for step in range(min(count, most), 0, -1) if count % step == 0), 1)
    return divisor if 2 * divisor >= min(count, most) else max(1, most)


def _grouped_terms(x: Tensor, delta: Tensor, weight: Tensor, how: Convolution) -> Tensor:
    """(images, *weight's shape) for any convolution: every image becomes a group of its own."""
    images = len(x)
    kernels = weight.repeat(images, *[1] * (weight.ndim - 1))
    one_delta, one_x = (tensor.reshape(1, -1, *tensor.shape[2:]) for tensor in (delta, x))
    return how.backward(one_delta, one_x, kernels, images, [False, True, False])[1].view(images, *weight.shape)
