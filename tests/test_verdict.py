"""Verdicts: known answers, and that a claim is reproduced only where the whole interval lies beyond the threshold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normscope.statistics.intervals import prediction_band, proportion_interval
from normscope.statistics.judgement import judge, judge_band, judge_proportion, judge_share
from normscope.statistics.multiplicity import benjamini_hochberg
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED

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


ANY = st.one_of(FINITE, st.sampled_from([math.inf, -math.inf, math.nan, 1.7e308, -1.7e308, 0.0]))
REQUIREMENTS = st.one_of(
    FINITE.map(lambda limit: {"above": limit}),
    FINITE.map(lambda limit: {"below": limit}),
    st.tuples(FINITE, st.floats(1e-3, 1e6)).map(lambda pair: {"equals": pair[0], "margin": pair[1]}),
    st.floats(1e-3, 1e3).map(lambda limit: {"above": limit, "scale": "log"}),
    st.tuples(st.floats(1e-3, 1e3), st.floats(1.1, 100)).map(
        lambda pair: {"equals": pair[0], "margin": pair[1], "scale": "log"}
    ),
)


@given(st.lists(ANY, max_size=8), REQUIREMENTS)
def test_whatever_the_seeds_nothing_is_concluded_but_from_the_whole_interval(values, requirement):
    """An infinite value is a bound on its own side; a single finite one beside bounds stands for itself."""
    claim = judge("it grows", "Figure 1", values, **requirement)
    margin = requirement.get("margin", 0.0)
    if "above" in requirement:
        low, high = requirement["above"], math.inf
    elif "below" in requirement:
        low, high = -math.inf, requirement["below"]
    elif requirement.get("scale") == "log":
        low, high = requirement["equals"] / margin, requirement["equals"] * margin
    else:
        low, high = requirement["equals"] - margin, requirement["equals"] + margin
    finite = [value for value in values if math.isfinite(value)]
    bounds = [value for value in values if math.isinf(value)]
    interval = (claim.low, claim.high) if len(finite) > 1 else (finite * 2 or None)
    if claim.verdict == REPRODUCED:
        assert interval is None or (low < interval[0] and interval[1] < high)
        assert all(low <= bound <= high for bound in bounds)
    if claim.verdict == NOT_REPRODUCED:
        assert interval is None or interval[1] < low or interval[0] > high
        assert not any(low <= bound <= high for bound in bounds)
    if claim.verdict != NOT_ENOUGH:
        assert len(values) >= 3 and not any(math.isnan(value) for value in values)
    assert (claim.seeds, claim.beyond) == (len(values), len(bounds))
    assert claim.diverged == len(values) - len(finite) - len(bounds)
    assert "\n" not in claim.measured


@pytest.mark.parametrize("values", [[], [math.nan] * 5, [math.nan, math.inf, math.inf], [1.7e308, -1.7e308, 1.7e308]])
def test_what_has_no_interval_settles_nothing(values):
    assert verdict(values, above=0) == verdict(values, below=0) == NOT_ENOUGH


def test_a_censored_value_is_said_to_be_one():
    claim = judge("no divergence", "Figure 3", [math.inf, math.inf, 50.0], above=1, unit=" times")
    assert claim.verdict == REPRODUCED
    assert claim.measured == "50 times beyond the range in 2 of 3 seeds"
    assert judge("no divergence", "Figure 3", [math.inf] * 3, above=1).measured == "beyond the range in 3 of 3 seeds"


def test_seeds_that_agree_have_an_interval_of_no_width():
    assert verdict([2.0] * 3, above=1) == REPRODUCED
    assert verdict([2.0] * 3, above=2) == NOT_ENOUGH, "exactly on the threshold"


@given(st.lists(FINITE, min_size=3, max_size=8), FINITE)
def test_below_mirrors_above(values, threshold):
    mirrored = [-value for value in values]
    assert verdict(values, below=threshold) == verdict(mirrored, above=-threshold)


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0]])
def test_fewer_than_three_seeds_are_not_enough(values):
    assert verdict(values, above=0) == NOT_ENOUGH


def test_the_interval_of_an_equality_is_that_of_two_one_sided_tests():
    values = [1.0, 2.0, 4.0, 7.0]
    claim = judge("", "", values, equals=3.5, margin=4)
    assert (claim.low, claim.high) == pytest.approx(stats.t.interval(0.90, 3, loc=3.5, scale=stats.sem(values)))
    sides = stats.ttest_1samp(values, -0.5, alternative="greater"), stats.ttest_1samp(values, 7.5, alternative="less")
    assert claim.p_value == pytest.approx(max(side.pvalue for side in sides)) and claim.interval == "90 %"


def test_p_values_are_one_sided():
    values = [1.0, 2.0, 4.0, 7.0]
    assert judge("", "", values, above=1).p_value == pytest.approx(
        stats.ttest_1samp(values, 1, alternative="greater").pvalue
    )
    assert judge("", "", values, below=1).p_value == pytest.approx(
        stats.ttest_1samp(values, 1, alternative="less").pvalue
    )
    assert judge("", "", [math.inf] * 4, above=1).p_value == 0.5**4
    assert math.isnan(judge("", "", [1.0, 2.0, math.nan], above=1).p_value)


@given(st.integers(0, 12), st.integers(1, 12))
def test_the_interval_of_a_proportion_is_the_exact_one(successes, trials):
    successes = min(successes, trials)
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert proportion_interval(successes, trials) == pytest.approx((expected.low, expected.high))


def test_proportions():
    def verdict_on(values, **more):
        return judge_proportion("in most", "Figure 1", values, above=0.5, **more)

    assert verdict_on([1] * 8).verdict == REPRODUCED
    assert verdict_on([1] * 7 + [0]).verdict == NOT_ENOUGH, "the exact interval of 7 of 8 begins at 0.473"
    assert verdict_on([0] * 8).verdict == NOT_REPRODUCED
    assert verdict_on([1] * 8 + [math.nan]).verdict == NOT_ENOUGH
    assert verdict_on([1] * 7 + [0]).measured == "7 of 8 seeds, a share of [0.473, 0.997]"
    assert verdict_on([1] * 8).p_value == pytest.approx(0.5**8)
    open_ = verdict_on([1] * 4)
    assert open_.seeds_needed == 6, "6 of 6 begin at 0.54"
    assert verdict_on([1, 1, math.nan], awaits=True).seeds_needed == 6


def test_what_is_open_says_how_many_seeds_would_settle_it():
    values = np.array([0.0, 1.0, 2.0, 3.0])
    claim = judge("", "", values, above=1)
    n, std = claim.seeds_needed, values.std(ddof=1)
    assert n is not None and claim.settled_by == f"about {n} seeds would settle it"
    half = [stats.t.ppf(0.975, k - 1) * std / math.sqrt(k) for k in (n - 1, n)]
    assert half[1] < 0.5 <= half[0]
    assert judge("", "", values, above=-9).settled_by == ""
    assert judge("", "", values[:2], above=1).settled_by == "it takes 3 seeds or more"
    assert judge("", "", [*values, math.nan], above=1).settled_by == "more seeds alone would not settle it"
    assert judge("", "", [math.nan] * 3, above=1).settled_by == "no seed has a value"
    assert judge("", "", [5.0, math.nan, math.nan], above=1, awaits=True).settled_by == "only one seed has a value"
    assert judge("", "", [*values, math.nan], above=1, awaits=True).seeds_needed == n
    to_come = judge("", "", [2.9, 3.0, 3.1, 3.0, math.nan], above=1, awaits=True).settled_by
    assert to_come == "the 1 of 5 seeds still to come would settle it, scattering as the others"


def test_benjamini_hochberg_is_scipys():
    random = np.random.default_rng(0)
    for _ in range(50):
        p = random.uniform(size=12) ** random.integers(1, 6)
        assert (benjamini_hochberg(p) == (stats.false_discovery_control(p) <= 0.05)).all()
    assert benjamini_hochberg([]).tolist() == []


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
    claim = judge("it grows", "Figure 1", [5.0, 5.1, 5.2, math.nan], above=1, no_value="not trained to 98 %")
    assert "1 of 4 seeds not trained to 98 %" in claim.measured


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


@pytest.mark.parametrize("points", [1, 2, 10])
def test_a_true_replica_lies_in_the_band_at_all_points_at_once_in_95_of_100_cases(points):
    """Of 2,000 draws ± 0.02 is four sigma; the points are independent, where Bonferroni loses next to nothing."""
    draws = np.random.default_rng(points).normal(size=(2000, 9, points))
    verdicts = [judge_band("", "", of[:8], of[8], of="points").verdict for of in draws]
    assert verdicts.count(REPRODUCED) / 2000 == pytest.approx(0.95, abs=0.02)
    assert verdicts.count(NOT_REPRODUCED) == 2000 - verdicts.count(REPRODUCED)


def test_the_prediction_interval_is_students():
    values = np.array([[1.0], [2.0], [4.0], [7.0]])
    low, high = prediction_band(values)
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) * math.sqrt(1 + 1 / 4)
    assert (low[0], high[0]) == pytest.approx((3.5 - half, 3.5 + half))


def test_a_band_so_wide_that_it_holds_nearly_anything_says_nothing():
    seeds = np.exp(2 * np.random.default_rng(0).normal(size=(12, 1)))
    claim = judge_band("", "", seeds, [1.0], of="the value", scale="log", widest=30)
    assert claim.verdict == NOT_ENOUGH and claim.seeds_needed is None
    assert judge_band("", "", seeds, [1.0], of="the value", scale="log", widest=1e9).verdict == REPRODUCED
    assert judge_band("", "", seeds, [1e9], of="the value", scale="log", widest=30).verdict == NOT_REPRODUCED


def test_band_verdicts():
    seeds = np.random.default_rng(0).normal(size=(5, 10))
    assert judge_band("", "", seeds, seeds.mean(0), of="layers").verdict == REPRODUCED
    assert judge_band("", "", seeds, seeds.mean(0) + 100, of="layers").verdict == NOT_REPRODUCED
    shifted = seeds.mean(0) + 100 * (np.arange(10) < 2)
    assert judge_band("", "", seeds, shifted, of="layers").verdict == NOT_REPRODUCED, "a replica is not so far off"
    assert judge_band("", "", seeds[:2], seeds.mean(0), of="layers").verdict == NOT_ENOUGH
    assert judge_band("", "", seeds[:1], seeds.mean(0), of="layers").measured == "–", "one seed has no band"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_seed_that_is_not_finite_leaves_the_band_open(value):
    seeds = np.random.default_rng(0).normal(size=(5, 10))
    seeds[2, 7] = value
    claim = judge_band("", "", seeds, np.zeros(10), of="layers")
    assert (claim.verdict, claim.diverged) == (NOT_ENOUGH, 1)


def share(part, whole, **requirement):
    return judge_share("it is half", "Variants", part, whole, **requirement)


def test_the_interval_of_a_share_is_where_the_rest_is_not_told_apart_from_zero():
    part, whole = np.array([4.0, 5.0, 7.0]), np.array([8.0, 9.0, 10.0])
    claim = share(part, whole, above=0.2)
    assert claim.mean == pytest.approx(16 / 27)
    for edge in (claim.low, claim.high):
        assert stats.ttest_1samp(part - edge * whole, 0).pvalue == pytest.approx(0.05)
    assert claim.low < claim.mean < claim.high and claim.verdict == REPRODUCED
    assert f"0.593 [{claim.low:.3g}, {claim.high:.3g}]" in claim.measured


def test_the_interval_of_a_share_of_three_seeds_holds_it_in_95_of_100_cases():
    random = np.random.default_rng(0)
    claims = [share(5 + random.normal(size=3), 10 + 0.1 * random.normal(size=3), above=0.5) for _ in range(2000)]
    held = np.mean([claim.low <= 0.5 <= claim.high for claim in claims])
    assert 0.935 <= held <= 0.965


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        ([1.0, 2.0, 1.5], [9.0, 9.0, 9.0], NOT_REPRODUCED),
        ([4.0, 5.0, 7.0], [9.0, 9.0, 9.0], NOT_ENOUGH),
        ([6.0, 7.0], [9.0, 9.0], NOT_ENOUGH),
        ([6.0, 7.0, math.nan], [9.0, 9.0, 9.0], NOT_ENOUGH),
        ([6.0, 7.0, 8.0], [9.0, 9.0, -1.0], NOT_ENOUGH),  # no effect in one seed: no share
    ],
)
def test_a_share_needs_all_of_its_interval_beyond_and_a_whole_above_zero(part, whole, expected):
    assert share(part, whole, above=0.5).verdict == expected


def test_a_share_of_what_may_be_nothing_has_no_bounds():
    claim = share([6.0, 7.0, 8.0], [9.0, 9.0, -1.0], above=0.5)
    assert claim.measured.endswith("[no bounds]")


def test_a_share_of_many_seeds_has_nearly_the_interval_of_the_delta_method():
    random = np.random.default_rng(1)
    whole = 10 + random.normal(size=40)
    part = 0.6 * whole + 0.5 * random.normal(size=40)
    claim = share(part, whole, above=0)
    residual = (part - claim.mean * whole) / whole.mean()
    half = stats.t.ppf(0.975, 39) * residual.std(ddof=1) / math.sqrt(40)
    assert (claim.low, claim.high) == pytest.approx((claim.mean - half, claim.mean + half), abs=0.15 * half)
