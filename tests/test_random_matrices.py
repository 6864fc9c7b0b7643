"""The Fuss-Catalan law against its moments and special cases; drawn products against 50-digit arithmetic."""

from math import comb

import matplotlib
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy.integrate import quad
from scipy.stats import kstest

from normscope.curvature.singular_values import RESOLUTION, conditioning, effective_rank
from normscope.errors import InvalidConfig
from normscope.figures.singular_values import plot_effective_rank, plot_singular_values
from normscope.paper.random_matrices import (
    fuss_catalan_cdf,
    fuss_catalan_edge,
    ks_distance,
    product_singular_values,
    singular_value_cdf,
    singular_value_density,
)
from normscope.results import labelled, load, save

matplotlib.use("agg")


def fuss_catalan_moment(order: int, m: int) -> int:
    """Mean of x^order under the law, by its closed form."""
    return comb((m + 1) * order, order) // (m * order + 1)


def fuss_catalan_density(x: ArrayLike, m: int) -> np.ndarray:
    """Of squared singular values, from that of the singular values."""
    s = np.sqrt(x)
    return singular_value_density(s, m) / (2 * s)


MANY = (1, 2, 3, 5, 9)


@pytest.mark.parametrize("m", MANY)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_the_density_has_the_fuss_catalan_numbers_as_moments(m: int, order: int) -> None:
    edge = fuss_catalan_edge(m) ** 2

    def integrand(u: float) -> float:
        x = edge * u ** (m + 1)  # takes the divergence at zero, x^(-m/(m+1)), out of the integrand
        return float(fuss_catalan_density(x, m)) * x**order * edge * (m + 1) * u**m

    # Quadrature asks for 1e-8 by itself and reaches 1e-12 on an integrand as smooth as this.
    assert quad(integrand, 0, 1)[0] == pytest.approx(fuss_catalan_moment(order, m), rel=1e-8)


def test_moments_are_those_that_are_known() -> None:
    assert [fuss_catalan_moment(k, 1) for k in range(6)] == [1, 1, 2, 5, 14, 42]  # Catalan
    assert [fuss_catalan_moment(k, 2) for k in range(5)] == [1, 1, 3, 12, 55]  # ternary trees
    assert [fuss_catalan_moment(2, m) for m in MANY] == [m + 1 for m in MANY]


@pytest.mark.parametrize("m", MANY)
def test_the_angles_of_the_paper_give_density_and_cdf(m: int) -> None:
    phi = np.linspace(0, np.pi / (m + 1), 22)[1:-1]
    x = np.sin((m + 1) * phi) ** (m + 1) / (np.sin(phi) * np.sin(m * phi) ** m)
    rho = np.sin(phi) ** 2 * np.sin(m * phi) ** (m - 1) / (np.pi * np.sin((m + 1) * phi) ** m)
    # Near the edge x hardly moves with phi, so inverting it loses half the digits: 1e-16^(1/2) over phi.
    np.testing.assert_allclose(fuss_catalan_density(x, m), rho, rtol=1e-8)
    beyond = [
        quad(lambda t: float(fuss_catalan_density(t, m)), a, b, epsabs=1e-12)[0]
        for a, b in zip(x[1:], x[:-1], strict=True)
    ]
    np.testing.assert_allclose(-np.diff(fuss_catalan_cdf(x, m)), beyond, atol=1e-9)


def test_one_factor_is_the_quarter_circle() -> None:
    s = np.linspace(0, 2, 41)
    np.testing.assert_allclose(singular_value_density(s, 1), np.sqrt(4 - s**2) / np.pi, atol=1e-7)
    area = (s * np.sqrt(4 - s**2) / 2 + 2 * np.arcsin(s / 2)) / np.pi
    np.testing.assert_allclose(singular_value_cdf(s, 1), area, atol=1e-14)


def test_edges_are_the_published_ones() -> None:
    assert [round(fuss_catalan_edge(m), 2) for m in (1, 3, 5)] == [2.0, 3.08, 3.86]


@given(st.integers(1, 200), st.lists(st.floats(-1, 40), min_size=2, max_size=30))
def test_the_cdf_rises_from_zero_to_one_and_the_density_is_never_negative(m: int, points: list[float]) -> None:
    s = np.sort(points)
    below, density = singular_value_cdf(s, m), singular_value_density(s, m)
    assert (np.diff(below) >= -1e-14).all()  # the rounding of numbers up to one
    assert (below[s <= 0] == 0).all() and (below[s >= fuss_catalan_edge(m)] == 1).all()
    assert (density >= 0).all() and not density[(s < 0) | (s >= fuss_catalan_edge(m))].any()


def test_far_below_the_mean_the_cdf_keeps_its_relative_precision() -> None:
    """To leading order F(x) = (M+1)/pi sin(pi/(M+1)) x^{1/(M+1)}."""
    for m in MANY:
        x = 1e-60
        leading = (m + 1) / np.pi * np.sin(np.pi / (m + 1)) * x ** (1 / (m + 1))
        assert float(fuss_catalan_cdf(x, m)) == pytest.approx(leading, rel=1e-5)  # the next order is x^{1/(M+1)}


def test_ks_distance_equals_scipys() -> None:
    values = np.random.default_rng(0).uniform(0, 3, 50)
    twin = kstest(values, lambda s: singular_value_cdf(s, 3)).statistic
    assert ks_distance(values, 3) == pytest.approx(twin, abs=1e-15)


def test_products_follow_the_law() -> None:
    ds = product_singular_values((1, 3, 5), 200, draws=3, seed=1)
    # A matrix's singular values repel each other, so the distance falls like 1/N: 3/N measured, 5/N allowed.
    assert float(ds["ks_distance"].max()) < 5 / 200
    assert np.allclose(ds["effective_rank"].mean("draw"), 200 / (ds["factor"] + 1), rtol=0.1)
    # The largest value's own fluctuation is of order N^(-2/3), 3 %; its mean lies 1 to 5 % low at N = 200.
    assert np.allclose(ds["largest"].mean("draw"), ds["edge"], rtol=0.08)
    assert not ds["condition_is_bound"].any() and (np.diff(ds["condition_number"].median("draw")) > 0).all()


def test_a_wrong_law_is_told_apart() -> None:
    values = product_singular_values(3, 200, draws=1)["singular_value"].values
    assert ks_distance(values, 3) < 0.02 < 0.08 < min(ks_distance(values, 2), ks_distance(values, 4))


@pytest.mark.parametrize(("size", "factors"), [(12, 3), (8, 24)])
def test_resolved_values_equal_50_digit_arithmetic(size: int, factors: int) -> None:
    ds = product_singular_values(factors, size, draws=1, seed=5).isel(factor=0, draw=0)
    rng = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(0,)))
    with mpmath.workdps(50):
        product = mpmath.eye(size)
        for _ in range(factors):
            product = mpmath.matrix((rng.standard_normal((size, size)) / size**0.5).tolist()) * product
        exact = np.sort([abs(float(s)) for s in mpmath.svd_r(product, compute_uv=False)])[::-1]
    resolved = ds["resolved"].values
    np.testing.assert_allclose(ds["singular_value"].values[resolved], exact[resolved], rtol=0.01)
    assert (resolved == (exact > RESOLUTION * exact[0])).all()
    assert bool(ds["condition_is_bound"]) == (not resolved.all())
    condition = exact[0] / exact[-1]
    if resolved.all():
        assert float(ds["condition_number"]) == pytest.approx(condition, rel=0.01)
    else:
        assert float(ds["condition_number"]) == pytest.approx(1 / RESOLUTION)
        assert condition > 1 / RESOLUTION


def test_both_sizes_above_matter() -> None:
    """One of the two products above is resolved wholly, the other is not: the test would else be blind on one
    side."""
    assert bool(product_singular_values(3, 12, draws=1, seed=5)["resolved"].all())
    assert not bool(product_singular_values(24, 8, draws=1, seed=5)["resolved"].all())


def test_a_draw_depends_on_the_seed_and_its_number_alone() -> None:
    # seed (3, 1) draw 0 once collided with seed 3 draw 1
    some, more = (
        product_singular_values((1, 2), 10, draws=2, seed=3),
        product_singular_values(2, 10, draws=4, seed=3),
    )
    assert np.array_equal(some["singular_value"].sel(factor=2), more["singular_value"].sel(factor=2, draw=[0, 1]))
    other = product_singular_values(2, 10, draws=2, seed=(3, 1))["singular_value"]
    assert len({float(v) for v in np.concatenate([more["largest"].values.ravel(), other.values[..., 0].ravel()])}) == 6


def test_conditioning_and_effective_rank_of_known_matrices() -> None:
    values = np.array([[4.0, 2.0], [1.0, 0.0], [0.0, 0.0], [np.nan, np.nan], [3e-200, 3e-200]])
    condition, is_bound, resolved = conditioning(values, 1e-3)
    np.testing.assert_allclose(condition, [2, 1000, np.nan, np.nan, 1])
    assert is_bound.tolist() == [False, True, False, False, False]
    assert resolved.tolist() == [[True, True], [True, False], [False, False], [False, False], [True, True]]
    np.testing.assert_allclose(effective_rank(values), [25 / 17, 1, np.nan, np.nan, 2])


def test_it_survives_the_disk(tmp_path) -> None:
    ds = product_singular_values((1, 3), 8, draws=2)
    assert load(save(ds, tmp_path / "products.nc")).identical(ds)
    assert all({"long_name", "units"} <= set(v.attrs) for v in ds.variables.values())


@pytest.mark.parametrize(
    "wrong", [{"num_factors": 0}, {"num_factors": ()}, {"size": 0}, {"draws": 0}, {"num_factors": 1.5}]
)
def test_counts_that_cannot_be_are_refused_in_one_line(wrong: dict) -> None:
    with pytest.raises(InvalidConfig, match=r"^[^\n]+$"):
        product_singular_values(**{"num_factors": 2, "size": 4, "draws": 1, **wrong})


def test_the_histogram_has_area_one_beside_the_theory() -> None:
    ds = product_singular_values((1, 3), 100, draws=2)
    ax = plot_singular_values(ds)
    for container in ax.containers:
        assert sum(bar.get_height() * bar.get_width() for bar in container) == pytest.approx(1)
    theory, edge = ax.lines[0], ax.lines[1]
    np.testing.assert_allclose(theory.get_xdata()[-1], edge.get_xdata()[0])
    assert edge.get_xdata()[0] == 2 and ax.get_xlabel() == "singular value of the product"
    legend = ax.get_legend()
    assert legend is not None
    assert {t.get_text() for t in legend.get_texts()} == {f"M = {m}, {w}" for m in (1, 3) for w in ("drawn", "theory")}
    matplotlib.pyplot.close("all")


def test_effective_ranks_are_drawn_for_each_network() -> None:
    rank = np.arange(1.0, 25).reshape(2, 2, 2, 3)
    dims = ("family", "norm", "depth", "seed")
    coords = {
        "family": ["plain", "resnet"],
        "norm": ["none", "batch"],
        "depth": [8, 20],
        "seed": [0, 1, 2],
        "feature": range(64),
    }
    ds = labelled(
        {"network_effective_rank": (dims, rank, "effective rank", "1")},
        {k: (list(v), k, "1") for k, v in coords.items()},
    )
    ax = plot_effective_rank(ds)
    lines = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert len(lines) == 4 and lines[0].get_linestyle() == "--" and lines[2].get_linestyle() == "-"
    np.testing.assert_allclose(lines[0].get_ydata(), [6 ** (1 / 3), 120 ** (1 / 3)])
    assert ax.get_yscale() == "log" and ax.get_ylabel() == "effective rank"
    matplotlib.pyplot.close("all")
