"""Euclidean norms of vectors, gradients and whole models that do not overflow before what they measure does."""

from collections.abc import Sequence

import torch
from torch import Tensor

Gradient = list[Tensor]
"""One tensor a trainable parameter, of its shape; zeros where the loss does not depend on it."""

SMALLEST_SAFE_NORM = 1e-15
"""Below this the squares behind a float32 norm start to lose digits."""

PIECE = 2**20
"""So many entries at a time are taken to float64: of a large model the whole would be the largest thing in memory."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """What gradients are computed and added up in: float32 where they have fewer bits."""
    return torch.promote_types(dtype, torch.float32)


def norm_dtype(tensor: Tensor) -> torch.dtype:
    """What a norm is taken in first: on a GPU float64 costs nothing more."""
    return torch.float64 if tensor.is_cuda else wide(tensor.dtype)


def norms_of(rows: Tensor) -> Tensor:
    """Euclidean norm over the last dimension, in float64, finite wherever the rows are."""
    norms = torch.linalg.vector_norm(rows, dim=-1, dtype=norm_dtype(rows))
    if are_safe(norms):
        return norms.double()
    again = unsafe(norms)
    norms = norms.double()
    norms[again] = torch.linalg.vector_norm(rows[again].double(), dim=-1)
    return norms


def unsafe(norms: Tensor) -> Tensor:
    """Where squares behind these float32 norms left the range of their precision (or are all zero)."""
    return ~((norms > SMALLEST_SAFE_NORM) & (norms < torch.inf))


def are_safe(norms: Tensor) -> bool:
    """Whether no square behind these norms left the range of their precision; float64 norms always are."""
    if norms.dtype == torch.float64:
        return True
    low, high = norms.aminmax()
    return bool((low > SMALLEST_SAFE_NORM) & (high < torch.inf))


def norm_of_each(parts: Gradient) -> Tensor:
    """Norm of every part: (parts,) in float64, finite wherever the parts are."""
    norms = torch.stack(torch._foreach_norm([part.to(wide(part.dtype)) for part in parts]))  # pyright: ignore
    if are_safe(norms):
        return norms.double()
    each = zip(parts, norms.double(), unsafe(norms).tolist(), strict=True)
    return torch.stack([part.double().norm() if again else norm for part, norm, again in each])


def norm(tensor: Tensor) -> Tensor:
    """Norm of all entries, accumulated in float64, finite wherever they are: a scalar. Taken a piece at a time, since
    torch makes a float64 copy."""
    norms = [torch.linalg.vector_norm(p, dtype=torch.float64) for p in tensor.detach().reshape(-1).split(PIECE)]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def dot(a: Tensor, b: Tensor) -> float:
    """aᵀ b of two vectors (n,), accumulated in float64, a piece at a time."""
    return sum(float(x.double() @ y.double()) for x, y in zip(a.split(PIECE), b.split(PIECE), strict=True))


def norm_of_all(parts: Sequence[Tensor]) -> Tensor:
    """Norm of all parts together, in float64: a scalar. Taken a piece at a time: in float64 the largest weight of a
    network would be the largest thing in memory."""
    dense = (part.detach().coalesce().values() if part.is_sparse else part.detach() for part in parts)
    pieces = (piece for part in dense for piece in part.reshape(-1).split(2**16))
    return torch.stack([piece.double().square().sum() for piece in pieces]).sum().sqrt()
