"""The ends of a symmetric matrix's spectrum from its products with vectors, by Lanczos's method.

k products span the Krylov space of the start vector; the eigenvalues of the matrix on that space, the Ritz values,
close in on both ends of the spectrum first. Every new vector is made orthogonal to all before it: without that,
rounding brings converged eigenvalues back as copies.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from normscope.model.vector_norm import norm

HIDDEN_MARGIN = 10.0
"""What r²/gap is multiplied by, for the eigenvalues that no Ritz value stands for yet. Over 3,000 random spectra of
many shapes, a search that stopped at 1e-3 was then off by more in 1.5 % of the cases (6 % without the factor, 0.3 %
with the residual alone, which takes one to three products more)."""


@dataclass(frozen=True)
class Ritz:
    """What k products say about the spectrum; NaN throughout once a product was not finite."""

    values: np.ndarray
    """(k,) Ritz values, the largest first."""
    residuals: np.ndarray
    """(k,) ‖Hy − θy‖ of each Ritz value θ and unit Ritz vector y: an eigenvalue lies within this of θ."""
    asymmetry: float = 0.0
    """How far the products were from those of a symmetric matrix: the largest length they had along earlier vectors,
    where a symmetric matrix has none. Rounding, or a wrong product."""

    @property
    def errors(self) -> np.ndarray:
        """(k,) how far an eigenvalue may be from each Ritz value: its residual r or, where that is less, 10 r²/gap.

        The gap is what is left between θ and the intervals θ' ± r' of its neighbours. The second is a bound but for
        eigenvalues that no Ritz value stands for yet: hence the factor.
        """
        low, high = self.values - self.residuals, self.values + self.residuals
        above, below = np.full(len(low), np.inf), np.full(len(low), np.inf)
        above[1:] = low[:-1] - self.values[1:]
        below[:-1] = self.values[:-1] - high[1:]
        gaps = np.minimum(above, below)
        if len(gaps) == 1:  # one vector says nothing about the rest of the spectrum
            return self.residuals
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            squared = np.where(gaps > 0, HIDDEN_MARGIN * self.residuals**2 / gaps, np.inf)
        return np.where(squared < self.residuals, squared, self.residuals)


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, *, seed: int = 0) -> Iterator[Ritz]:
    """What is known after each product of a symmetric matrix with a vector; the caller stops when it is enough.

    Ends by itself once the basis spans the whole space, or after a product that is not finite. Holds one vector for
    each product.

    Args:
        product: maps a unit vector (n,) to a new vector (n,) of the same type, which may be overwritten.
        start: (n,) floating point, not zero. A direction without any of the eigenvector sought does not find it.
        seed: of the random directions in which it goes on where the Krylov space is exhausted.
    """
    generator = torch.Generator().manual_seed(seed)
    precision = torch.finfo(start.dtype)
    vector = unit(start)
    del start  # as long as all the parameters
    basis: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []
    asymmetry = 0.0
    while True:
        basis.append(vector)
        new = product(vector)
        size = float(norm(new))
        if not size <= precision.max:
            nothing = np.full(len(basis), np.nan)
            yield Ritz(nothing, nothing)
            return
        # Scaled to length 1 first, so that nothing overflows that the product itself could hold.
        new /= size or 1.0
        along = float(vector @ new)
        new.sub_(vector, alpha=along)
        if beside:
            new.sub_(basis[-2], alpha=beside[-1] / (size or 1.0))
        length, overlap = _orthogonalize(new, basis)
        diagonal.append(along * size)
        beside.append(length * size)
        asymmetry = max(asymmetry, overlap * size)
        yield _ritz(np.array(diagonal), np.array(beside), asymmetry)
        if len(basis) == len(vector):
            return
        if length * size <= 10 * precision.eps * max(np.abs(diagonal).max(), *beside):
            # An invariant subspace: all that is coupled to the start vector has been found.
            beside[-1] = 0.0
            new = torch.randn(len(vector), generator=generator, dtype=vector.dtype).to(vector.device)
            length, _ = _orthogonalize(new.div_(float(norm(new))), basis)
        vector = new.div_(length)


def _ritz(diagonal: np.ndarray, beside: np.ndarray, asymmetry: float = 0.0) -> Ritz:
    """Ritz values and residuals of a (k,) diagonal and the (k,) entries beside it, the last one leading out."""
    values, vectors = eigh_tridiagonal(diagonal, beside[:-1])
    residuals = beside[-1] * np.abs(vectors[-1])
    return Ritz(values[::-1], residuals[::-1], asymmetry)


def _orthogonalize(vector: Tensor, basis: list[Tensor]) -> tuple[float, float]:
    """Take all of `basis`, (n,) unit vectors, out of `vector`, of length 1 at most, in place, and again where little is
    left of it; returns the length of the rest and the length that was taken out."""
    before = after = float(torch.linalg.vector_norm(vector))
    overlaps = []
    for _ in range(3):
        for known in basis:
            overlaps.append(known @ vector)
            vector.addcmul_(known, overlaps[-1], value=-1)
        after = float(torch.linalg.vector_norm(vector))
        if after > 0.7 * before or after == 0:
            break
        before = after
    return after, float(norm(torch.stack(overlaps)))


def unit(vector: Tensor) -> Tensor:
    """The vector (n,) at length 1, by way of its largest entry, since its length may overflow; it must not be zero."""
    scaled = vector / vector.abs().max()
    return scaled.div_(float(norm(scaled)))
