"""Verdicts: known answers, and that a claim is reproduced only where the whole interval lies beyond the threshold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normscope.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED, judge, judge_band

FINITE = st.floats(-1e6, 1e6)


def verdict(measured, **requirement):
    return judge("it grows", "Figure 1", measured, **requirement).verdict


def test_interval_is_students_t():
    values = [1.0, 2.0, 4.0, 7.0]
    claim = judge("it grows", "Figure 1", values, above=0)
    expected = stats.t.interval(0.95, 3, loc=3.5, scale=stats.sem(values))
    assert (claim.low, claim.high) == pytest.approx(expected)


def test_interval_on_a_log_scale_is_that_of_the_logarithms():
    values = np.array([1.0, 10.0, 1000.0])
    claim = judge("it grows", "Figure 1", values, above=0.1, scale="log")
    plain = judge("it grows", "Figure 1", np.log(values), above=0)
    assert (claim.mean, claim.low, claim.high) == pytest.approx(
        tuple(map(math.exp, (plain.mean, plain.low, plain.high)))
    )


@given(st.lists(FINITE, min_size=3, max_size=8), FINITE)
def test_reproduced_only_if_the_whole_interval_lies_beyond(values, threshold):
    claim = judge("it grows", "Figure 1", values, above=threshold)
    assert (claim.verdict == REPRODUCED) == (claim.low > threshold)
    assert (claim.verdict == NOT_REPRODUCED) == (claim.high < threshold)


@given(st.lists(FINITE, min_size=3, max_size=8), FINITE)
def test_below_mirrors_above(values, threshold):
    mirrored = [-value for value in values]
    assert verdict(values, below=threshold) == verdict(mirrored, above=-threshold)


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0]])
def test_fewer_than_three_seeds_are_not_enough(values):
    assert verdict(values, above=0) == NOT_ENOUGH


def test_equality_is_a_test_of_equivalence():
    assert verdict([1.0, 1.01, 0.99], equals=1, margin=0.1) == REPRODUCED
    assert verdict([0.0, 1.0, 2.0], equals=1, margin=0.1) == NOT_ENOUGH, "the mean fits, the interval does not"
    assert verdict([2.0, 2.01, 1.99], equals=1, margin=0.1) == NOT_REPRODUCED
    assert verdict([2.0, 2.1, 1.9], equals=1, margin=3, scale="log") == REPRODUCED


def test_infinite_values_count_for_the_side_they_lie_on():
    assert verdict([math.inf] * 3, above=100) == REPRODUCED
    assert verdict([math.inf] * 3, below=100) == NOT_REPRODUCED
    assert verdict([200.0, 210.0, math.inf], above=100, scale="log") == REPRODUCED
    assert verdict([2.0, 2.1, math.inf], above=100) == NOT_ENOUGH, "one seed supports it, the others do not"
    assert verdict([2.0, 2.1, 2.2, math.inf], below=100) == NOT_ENOUGH, "one seed speaks against it"


def test_seeds_without_a_value_are_counted_and_settle_nothing():
    claim = judge("it grows", "Figure 1", [5.0, 5.1, 5.2, math.nan], above=1)
    assert claim.verdict == NOT_ENOUGH
    assert claim.diverged == 1
    assert claim.mean == pytest.approx(5.1), "never averaged away, never averaged in"
    assert "1 of 4 seeds not finite" in claim.measured


def test_a_lower_bound_supports_only_claims_that_something_is_large():
    bound = [True, False, False]
    assert verdict([200.0, 210.0, 220.0], above=100, lower_bound=bound) == REPRODUCED
    assert verdict([20.0, 21.0, 22.0], above=100, lower_bound=bound) == NOT_ENOUGH
    assert verdict([20.0, 21.0, 22.0], below=100, lower_bound=bound) == NOT_ENOUGH
    assert verdict([200.0, 210.0, 220.0], below=100, lower_bound=bound) == NOT_REPRODUCED
    text = judge("it grows", "Figure 1", [200.0, 210.0, 220.0], above=100, lower_bound=bound, unit=" times").measured
    assert text.startswith("at least 210 times")
    assert text.endswith("(a bound in 1 of 3 seeds)")


def test_what_is_not_positive_has_no_logarithm_and_settles_nothing():
    assert verdict([1.0, 0.0, 2.0], above=1e-9, scale="log") == NOT_ENOUGH


@pytest.mark.parametrize("requirement", [{}, {"above": 1, "below": 2}, {"equals": 1}])
def test_exactly_one_requirement(requirement):
    with pytest.raises(ValueError, match=r"exactly one|margin"):
        judge("it grows", "Figure 1", [1.0, 2.0, 3.0], **requirement)


def test_band_holds_one_more_seed_of_the_same_kind():
    """The band holds a new draw at 95 % of the points on average: with 2,000 of them ± 0.02 is four sigma."""
    draws = np.random.default_rng(0).normal(size=(6, 2000))
    claim = judge_band("a seed like the others", "Figure 5", draws[:5], draws[5], of="points")
    assert claim.mean / 2000 == pytest.approx(0.95, abs=0.02)


def test_band_verdicts():
    seeds = np.random.default_rng(0).normal(size=(5, 10))
    assert judge_band("", "", seeds, seeds.mean(0), of="layers").verdict == REPRODUCED
    assert judge_band("", "", seeds, seeds.mean(0) + 100, of="layers").verdict == NOT_REPRODUCED
    shifted = seeds.mean(0) + 100 * (np.arange(10) < 2)
    assert judge_band("", "", seeds, shifted, of="layers").verdict == NOT_ENOUGH
    assert judge_band("", "", seeds[:2], seeds.mean(0), of="layers").verdict == NOT_ENOUGH
