r"""What does a product of random matrices do to a vector? Its singular values, beside theory (figure 7).

The product of M independent N x N matrices, entries Gaussian of variance 1/N, has for N to infinity squared
singular values x = s^2 spread by the Fuss-Catalan law. With an angle phi from 0, the edge, to pi/(M+1):

    x(phi)   = sin^{M+1}((M+1) phi) / (sin phi  sin^M(M phi))
    rho(phi) = sin^2 phi  sin^{M-1}(M phi) / (pi sin^M((M+1) phi))              density of x
    F(phi)   = 1 - ((M+1) phi - M sin phi sin((M+1) phi) / sin(M phi)) / pi     share of the mass below x
    largest x = (M+1)^{M+1} / M^M

F is the imaginary part of M B - log(B - 1), the integral of the resolvent, with B = 1 + B^{M+1}/x; so no
quadrature is needed. The k-th moment of x is the Fuss-Catalan number binom((M+1)k, k) / (Mk + 1): mass 1,
mean 1 and second moment M + 1, so that the effective rank (sum x)^2 / sum x^2 falls as N / (M+1).
"""

from collections.abc import Sequence
from math import pi

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from normscope.curvature.singular_values import RESOLUTION, Floats, conditioning, effective_rank
from normscope.errors import InvalidConfig
from normscope.results import labelled, provenance


def fuss_catalan_edge(num_factors: int) -> float:
    """The largest singular value of the product of `num_factors` large matrices: sqrt((M+1)^{M+1} / M^M)."""
    m = _checked(num_factors)
    return float(((m + 1) * (1 + 1 / m) ** m) ** 0.5)


def fuss_catalan_cdf(x: ArrayLike, num_factors: int) -> Floats:
    """Share of the squared singular values below `x`, of any shape, to about 1e-15."""
    m, x = _checked(num_factors), np.asarray(x, np.float64)
    gap = _gap(x, m)
    small, full, wide = _sines(x, m, gap)
    # With phi = pi/(M+1) - gap the leading 1 cancels on paper, so nothing is lost where F is tiny.
    inside = ((m + 1) * gap + m * small * full / wide) / pi
    return np.where(x <= 0, 0.0, np.where(x >= fuss_catalan_edge(m) ** 2, 1.0, inside))


def singular_value_density(s: ArrayLike, num_factors: int) -> Floats:
    """Density at the singular values `s` themselves, 2 s rho(s^2): the curve of figure 7. M = 1 is the
    quarter circle."""
    m, s = _checked(num_factors), np.asarray(s, np.float64)
    small, full, wide = _sines(s**2, m)
    with np.errstate(divide="ignore", over="ignore"):
        inside = 2 / pi * (small if m == 1 else small**1.5 / full**0.5 * (wide / full) ** (m / 2 - 1))
    return np.where((s >= 0) & (s < fuss_catalan_edge(m)), inside, 0.0)


def singular_value_cdf(s: ArrayLike, num_factors: int) -> Floats:
    """Share of the singular values below `s`, of any shape."""
    s = np.asarray(s, np.float64)
    return fuss_catalan_cdf(np.where(s > 0, s, 0.0) ** 2, num_factors)


def ks_distance(singular_values: ArrayLike, num_factors: int) -> float:
    """Kolmogorov-Smirnov distance of observed singular values, shape (n,), from the law: largest gap of the
    two CDFs."""
    theory = singular_value_cdf(np.sort(np.ravel(singular_values)), num_factors)
    steps = np.arange(theory.size + 1) / theory.size
    return float(max((steps[1:] - theory).max(), (theory - steps[:-1]).max()))


def product_singular_values(
    num_factors: int | Sequence[int] = (1, 3, 5),
    size: int = 1000,
    *,
    draws: int = 10,
    seed: int | Sequence[int] = 0,
) -> xr.Dataset:
    """Draw products of Gaussian matrices in float64 and compare their singular values with the law.

    Args:
        num_factors: M, or several; within a draw the longer product goes on from the shorter one.
        size: N; entries have variance 1/N.
        draws: independent repetitions.
        seed: one number or several; draw k depends on them and on k alone.

    Returns:
        Over (factor, draw, index): `singular_value`, descending, and `resolved`, False where rounding has
        eaten the value (see `RESOLUTION`). Over (factor, draw): `largest`, `effective_rank`, `ks_distance`,
        `condition_number` = largest / smallest, and `condition_is_bound`, True where the smallest was not
        resolved, so that the true number is at least the one given. The theory: `edge(factor)`, its largest
        singular value, and `density(factor, fraction)`, of singular values at fractions of the edge.

    Raises:
        InvalidConfig: where a count is not a positive integer.

    Example:
        The product of two has its largest singular value at (27/4)^½ for large N.

        >>> dataset = ns.product_singular_values(2, size=200, draws=2)
        >>> round(float(dataset["edge"][0]), 4)
        2.5981
    """
    factors = sorted({_checked(m) for m in np.atleast_1d(num_factors).tolist()})
    if not factors or size < 1 or draws < 1:
        raise InvalidConfig(f"num_factors={factors}, size={size}, draws={draws}: each must be at least 1")
    values = np.array([_spectra(factors, size, seed, draw) for draw in range(draws)]).transpose(1, 0, 2)
    condition, is_bound, resolved = conditioning(values, RESOLUTION)
    distance = [[ks_distance(row, m) for row in rows] for m, rows in zip(factors, values, strict=True)]
    edges = np.array([fuss_catalan_edge(m) for m in factors])
    fractions = np.linspace(0.02, 1, 200) ** 2  # closer together at zero, where the density grows without bound
    density = [singular_value_density(fractions * edge, m) for m, edge in zip(factors, edges, strict=True)]
    of = "of the product"
    return labelled(
        {
            "singular_value": (("factor", "draw", "index"), values, f"singular value {of}", "1"),
            "resolved": (("factor", "draw", "index"), resolved, "above the rounding of the product", "1"),
            "largest": (("factor", "draw"), values[..., 0], f"largest singular value {of}", "1"),
            "condition_number": (("factor", "draw"), condition, f"condition number {of}", "1"),
            "condition_is_bound": (
                ("factor", "draw"),
                is_bound,
                "the condition number is only a lower bound",
                "1",
            ),
            "effective_rank": (("factor", "draw"), effective_rank(values), f"effective rank {of}", "1"),
            "ks_distance": (
                ("factor", "draw"),
                distance,
                "Kolmogorov-Smirnov distance from Fuss-Catalan",
                "1",
            ),
            "edge": (("factor",), edges, "largest singular value in theory", "1"),
            "density": (("factor", "fraction"), density, "density of singular values in theory", "1"),
        },
        {
            "factor": (factors, "number of factors", "1"),
            "draw": (np.arange(draws), "draw", "1"),
            "fraction": (fractions, "fraction of the theory's edge", "1"),
            "index": (np.arange(size), "place, the largest first", "1"),
        },
        probe="product_singular_values",
        **provenance(dtype="float64", seed=seed, size=size),
    )


def _spectra(factors: Sequence[int], size: int, seed: int | Sequence[int], draw: int) -> list[Floats]:
    """Descending singular values of one growing product, one array of shape (size,) for each wanted
    length."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(draw,)))
    spectra, product = [], None
    for length in range(1, factors[-1] + 1):
        matrix = rng.standard_normal((size, size)) / size**0.5
        product = matrix if product is None else matrix @ product
        if length in factors:
            spectra.append(np.linalg.svd(product, compute_uv=False))
    return spectra


def _gap(x: Floats, m: int) -> Floats:
    """pi/(M+1) - phi(x), by bisection: zero at x = 0, where the mass piles up and relative precision is
    needed."""
    low, high = np.zeros_like(x), np.full_like(x, pi / (m + 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        target = np.log(x)
        for _ in range(120):
            middle = (low + high) / 2
            small, full, wide = (np.log(v) for v in _sines(x, m, middle))
            below = (m + 1) * full - small - m * wide < target
            low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def _sines(x: Floats, m: int, gap: Floats | None = None) -> tuple[Floats, Floats, Floats]:
    """sin(phi), sin((M+1) phi), sin(M phi) at squared singular values x."""
    gap = np.where(x > 0, _gap(x, m), 0.0) if gap is None else gap
    phi = np.maximum(pi / (m + 1) - gap, 1e-9)  # nearer to the edge than float64 can say of x
    # sin(t) = sin(pi - t), written with the smaller of the two arguments: exact at both ends of the support.
    return np.sin(phi), np.sin((m + 1) * np.minimum(gap, phi)), np.sin(m * phi)


def _checked(num_factors: int) -> int:
    if int(num_factors) != num_factors or num_factors < 1:
        raise InvalidConfig(f"num_factors={num_factors}: the number of matrices must be a whole number from 1 on")
    return int(num_factors)
