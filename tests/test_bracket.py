"""The pure logic of the search, on worlds whose boundaries are known."""

import math
from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from normscope.descent.outcome import Outcome
from normscope.rates.bracket import Edge, confirmed, edge, monotone, next_hunt, next_try
from normscope.rates.lowest_loss import smoothed
from normscope.rates.plan import find_all, find_both
from normscope.rates.recommended import Sure, recommendation
from normscope.rates.search import Found, Search, cell_of, find_stable, find_usable, lr_of, usable_monotone
from normscope.rates.trial import Trial
from normscope.statistics.ties import indistinguishable

LOWEST, HIGHEST = -40, 10
CELLS = st.integers(LOWEST, HIGHEST)


def searched(first_failure: dict[int, int], start: int) -> tuple[dict[tuple[int, int], bool], int]:
    """What is known at the end of a search in which seed s passes below `first_failure[s]`, and how many passed."""
    known: dict[tuple[int, int], bool] = {}
    seeds = list(first_failure)
    while (step := next_try(known, seeds=seeds, start=start, lowest=LOWEST, highest=HIGHEST)) is not None:
        assert step not in known, "tried twice"
        assert LOWEST <= step[0] <= HIGHEST
        known[step] = step[0] < first_failure[step[1]]
    return known, sum(known.values())


@given(st.dictionaries(st.integers(0, 3), CELLS, min_size=1), CELLS)
def test_finds_the_lowest_boundary_of_all_seeds(first_failure: dict[int, int], start: int) -> None:
    known, _ = searched(first_failure, start)
    first = min(first_failure.values())
    expected = Edge(first - 1 if first > LOWEST else None, first)
    assert edge(known) == expected
    assert confirmed(known, expected, seeds=list(first_failure), highest=HIGHEST) == (first > LOWEST)
    assert monotone(known)


@given(st.integers(-30, 10), st.integers(-5, 5))
def test_few_tries_pass_where_the_start_is_half_a_decade_off(first_failure: int, off: int) -> None:
    """Tries that pass are those that cost: three confirm the lower end, one lies below it, the others find the way."""
    _, passed = searched(dict.fromkeys(range(3), first_failure), min(max(first_failure + off, LOWEST), HIGHEST))
    assert passed <= 3 + 1 + 4


def test_nothing_fails_within_the_range() -> None:
    known, _ = searched(dict.fromkeys(range(3), HIGHEST + 1), -20)
    assert edge(known) == Edge(HIGHEST, None)
    assert confirmed(known, edge(known), seeds=[0, 1, 2], highest=HIGHEST)
    assert {(HIGHEST, seed) for seed in range(3)} <= known.keys()


def test_a_hole_two_cells_below_the_bracket_is_found() -> None:
    """The first failure going up is meant: seed 0 fails at 0 and 1, passes at 2 and 3."""
    known: dict[tuple[int, int], bool] = {}
    while (step := next_try(known, seeds=[0], start=3, lowest=LOWEST, highest=HIGHEST)) is not None:
        known[step] = step[0] not in (0, 1) and step[0] < 4
    assert edge(known) == Edge(-1, 0)
    assert not monotone(known)


def test_the_seed_that_failed_is_tried_first() -> None:
    known = {(4, 0): True, (8, 0): True, (8, 1): False}
    assert next_try(known, seeds=[0, 1, 2], start=8, lowest=LOWEST, highest=HIGHEST) == (6, 1)


def test_passing_above_a_failure_of_another_seed_is_no_contradiction() -> None:
    assert monotone({(0, 0): False, (1, 1): True})
    assert not monotone({(0, 0): False, (1, 0): True})


@given(CELLS, CELLS)
def test_the_hunt_goes_down_the_valley_of_the_loss(valley: int, start: int) -> None:
    losses: dict[int, float] = {}
    cell = next_hunt(losses, start=start, lowest=LOWEST, highest=HIGHEST)
    while cell is not None:
        assert cell not in losses and LOWEST <= cell <= HIGHEST
        losses[cell] = math.nan if cell > valley + 12 else 1 + (cell - valley) ** 2
        cell = next_hunt(losses, start=start, lowest=LOWEST, highest=HIGHEST)
    finite = [cell for cell, loss in losses.items() if not math.isnan(loss)]
    assert min(abs(cell - valley) for cell in finite) <= 3


def made_up(boundaries: dict[int, tuple[int, int, int]], steps: int = 100):
    """A try by (cell, seed): learns from the seed's first to below its second boundary, diverges from the third on."""

    def run(cell: int, seed: int, until: int = steps) -> Trial:
        slow, usable, stable = boundaries[seed]
        if cell >= stable:
            return Trial(lr_of(cell), seed, Outcome.DIVERGED, np.geomspace(1, 1e4, 5))
        learns = slow <= cell < usable
        loss = 0.5 + 0.01 * (cell - usable + 4) ** 2 if learns else 1.0
        return Trial(lr_of(cell), seed, Outcome.LEARNS if learns else Outcome.STALLED, np.linspace(1, loss, steps))

    return run


WORLDS = st.tuples(st.integers(-35, -15), st.integers(10, 15), st.integers(0, 8)).map(
    lambda t: (t[0], t[0] + t[1], t[0] + t[1] + t[2])
)


@settings(deadline=None, max_examples=40)
@given(WORLDS, st.lists(st.integers(-2, 2), min_size=3, max_size=3), st.integers(-12, 12))
def test_both_boundaries_where_seeds_differ(world: tuple[int, int, int], shifts: list[int], off: int) -> None:
    """The start may be off by more than a decade, and every rate that does not learn ends at the same loss."""
    boundaries = {seed: (world[0], world[1] + shift, world[2] + shift) for seed, shift in enumerate(shifts)}
    search = Search(made_up(boundaries), [0, 1, 2], LOWEST, HIGHEST, 100)
    stable, usable = find_both(search, stable=world[2] + off, usable=world[1] + off)
    first_divergence = min(b[2] for b in boundaries.values())
    assert stable == (Found.BRACKETED, Edge(first_divergence - 1, first_divergence))
    first_failure = min(b[1] for b in boundaries.values())
    assert usable == (Found.BRACKETED, Edge(first_failure - 1, first_failure))
    assert usable_monotone(search)
    best = search.learning()[0]
    assert all((best, seed) in search.tries for seed in range(3))
    assert set() < search.best() <= set(search.learning())


@given(st.integers(-30, 9), st.integers(-16, 16))
def test_early_divergences_bring_the_search_down_from_above(stable: int, off: int) -> None:
    """Tries that diverge take 5 steps of 100: besides three that confirm the lower end few pass, and none checks below
    so sharp a boundary."""
    search = Search(made_up(dict.fromkeys(range(3), (LOWEST, LOWEST, stable))), [0, 1, 2], LOWEST, HIGHEST, 100)
    assert find_stable(search, min(max(stable + off, LOWEST), HIGHEST)) == (Found.BRACKETED, Edge(stable - 1, stable))
    passed = [cell for (cell, _), t in search.tries.items() if t.outcome is not Outcome.DIVERGED]
    assert len(passed) <= 3 + 4
    assert search.train_steps <= 850


def test_late_divergences_are_not_crept_up_to_and_are_checked_below() -> None:
    late = np.append(np.ones(70), 1e4)
    search = Search(
        lambda cell, seed, until: (
            Trial(lr_of(cell), seed, Outcome.DIVERGED, late)
            if cell >= -20
            else Trial(lr_of(cell), seed, Outcome.STALLED, np.ones(100))
        ),
        [0],
        LOWEST,
        HIGHEST,
        100,
    )
    assert find_stable(search, 10) == (Found.BRACKETED, Edge(-21, -20))
    assert sum(t.outcome is Outcome.DIVERGED for t in search.tries.values()) <= 8
    assert (-23, 0) in search.tries


def test_the_last_steps_are_kept_for_boundaries() -> None:
    """The lowest loss lies far below both boundaries: looking for it ends at 95 % of the steps."""
    boundaries = {seed: (-38, -2, 0) for seed in range(3)}
    run = made_up(boundaries)
    unlimited = Search(run, [0, 1, 2], LOWEST, HIGHEST, 100)
    find_both(unlimited, stable=0, usable=-2)
    kept = Search(run, [0, 1, 2], LOWEST, HIGHEST, 100, most_steps=unlimited.train_steps)
    assert [b.found for b in find_both(kept, stable=0, usable=-2)] == [Found.BRACKETED] * 2
    assert kept.train_steps <= 0.95 * unlimited.train_steps


@settings(deadline=None, max_examples=40)
@given(WORLDS, st.integers(0, 2000))
def test_never_more_steps_than_allowed(world: tuple[int, int, int], most_steps: int) -> None:
    search = Search(made_up(dict.fromkeys(range(3), world)), [0, 1, 2], LOWEST, HIGHEST, 100, most_steps)
    stable, usable = find_both(search, stable=0, usable=0)
    assert search.train_steps <= most_steps
    for boundary in (stable, usable):
        if boundary.found is not Found.UNFINISHED:
            assert boundary.found is Found.BRACKETED
            low, high = boundary.edge
            assert low is not None and high == low + 1


def test_a_divergence_met_while_learning_is_looked_for_moves_the_stable_boundary() -> None:
    """Seed 0 diverges at -12 too, far below the bracket that was found first."""
    regular = made_up({0: (-30, -8, 0)})
    diverged = np.geomspace(1, 1e4, 5)
    search = Search(
        lambda cell, seed, until: (
            Trial(lr_of(cell), seed, Outcome.DIVERGED, diverged) if cell == -12 else regular(cell, seed)
        ),
        [0],
        LOWEST,
        HIGHEST,
        100,
    )
    assert find_both(search, stable=0, usable=-12)[0] == (Found.BRACKETED, Edge(-13, -12))


def test_a_deadline_in_the_past_allows_nothing() -> None:
    search = Search(made_up({0: (-20, -10, 0)}), [0], LOWEST, HIGHEST, 100, deadline=0.0)
    assert find_stable(search, 0).found is Found.UNFINISHED
    assert not search.tries


def test_a_search_cut_short_below_the_end_of_the_range_claims_no_bound() -> None:
    search = Search(made_up({0: (-20, 50, 50)}), [0], LOWEST, HIGHEST, 100, most_steps=100)
    assert find_stable(search, 0) == (Found.UNFINISHED, Edge(0, None))


def test_diverging_everywhere_lies_below_the_range() -> None:
    search = Search(made_up({0: (-60, -60, -60)}), [0], LOWEST, HIGHEST, 100)
    assert find_stable(search, 0) == (Found.BELOW_RANGE, Edge(None, LOWEST))
    assert find_usable(search, 0).found is Found.NOWHERE


def test_no_rate_above_a_failing_seed_is_among_the_best() -> None:
    losses = np.array([0.1, 0.1])
    search = Search(made_up({0: (-60, 50, 50)}), [0, 1], LOWEST, HIGHEST, 100)
    tries = {(-2, 0): "learns", (-2, 1): "learns", (0, 0): "stalled", (0, 1): "learns", (1, 1): "learns"}
    for (cell, seed), outcome in tries.items():
        search.tries[cell, seed] = Trial(lr_of(cell), seed, Outcome(outcome), losses)
    assert set(search.learning()) == {-2, 1} and search.best() == {-2}


def test_cells_and_rates() -> None:
    assert [cell_of(lr, 99) for lr in (1.0, 0.1, 0.126, 0.0, math.inf, math.nan)] == [0, -10, -9, 99, 99, 99]
    assert math.isclose(lr_of(-10), 0.1)


def test_best_is_told_apart_by_paired_differences() -> None:
    """Seeds differ by far more than rates do; only pairing shows that one rate is worse on every seed."""
    seeds = np.asarray([1.0, 2.0, 3.0])
    noise = np.asarray([0.01, -0.01, 0.0])
    cells = {0: seeds, -4: seeds + 0.02 + noise, 4: seeds + 0.5 + noise}
    horizons = {cell: {s: np.full(10, x) for s, x in enumerate(losses)} for cell, losses in cells.items()}
    # t = 0.02 / (0.01 / √3) = 3.46 for -4, above 2.92, the 95 % point with two degrees of freedom
    assert indistinguishable(horizons) == {0}
    horizons[-4] = {s: np.full(10, x) for s, x in enumerate(seeds + 0.005 + noise)}
    assert indistinguishable(horizons) == {0, -4}


def test_best_with_one_common_seed_compares_mini_batches() -> None:
    wobble = np.tile([0.1, -0.1], 5)
    assert indistinguishable({0: {0: np.ones(10)}, 1: {0: 1.01 + wobble}}) == {0, 1}
    assert indistinguishable({0: {0: np.ones(10)}, 1: {0: 1.5 + wobble}}) == {0}
    assert indistinguishable({}) == set()


def valley(
    lowest: float, *, plateau: float, cliff: int, steps: int = 100, noise: float = 0.0
) -> Callable[[int, int, int], Trial]:
    """Losses that fall from 4 towards a parabola over the cell, as fast as the rate is large; above the cliff they
    diverge, and nothing falls below the plateau in the first third of the steps."""

    def run(cell: int, seed: int, until: int = steps) -> Trial:
        if cell >= cliff:
            return Trial(lr_of(cell), seed, Outcome.DIVERGED, np.geomspace(4, 1e5, 6))
        wobble = np.random.default_rng((seed, cell + 1000)).normal(0, noise, steps)
        end = min(1 + 0.02 * (cell - lowest) ** 2, 4.0)
        way = np.clip(np.arange(steps) / steps * 1.5, 0, 1)
        losses = np.where(np.arange(steps) < steps / 3, np.maximum(plateau, 4 - 3 * way), 4 + (end - 4) * way) + wobble
        outcome = Outcome.LEARNS if losses[-10:].mean() < 0.97 * (plateau or 4) else Outcome.STALLED
        return Trial(lr_of(cell), seed, outcome if until >= steps else None, losses[:until])

    return run


@settings(deadline=None, max_examples=40)
@given(
    st.integers(-45, -5),
    st.integers(8, 30),
    st.integers(-20, 20),
    st.sampled_from([0.0, 3.5]),
    st.sampled_from([0, 0.02]),
)
def test_the_rate_to_train_at_lies_at_the_bottom_of_the_valley(
    lowest: int, cliff: int, off: int, plateau: float, noise: float
) -> None:
    run = valley(lowest, plateau=plateau, cliff=lowest + cliff, noise=noise)
    search = Search(run, [0, 1, 2], -70, 30, 100, 2400, constant_loss=plateau or math.nan)
    find_all(search, stable=lowest + cliff + off, usable=lowest + off, grows_with_gradient=False)
    found = recommendation(search)
    assert search.train_steps <= 2400
    assert found.found is Sure.LEARNS
    assert abs(round(10 * math.log10(found.lr)) - lowest) <= 2
    assert found.low <= found.lr <= found.high


def test_rates_that_are_alike_at_first_are_not_dropped() -> None:
    """For a quarter of the steps every rate gains the same; noise then ranks one far below the valley first."""
    run = valley(-17, plateau=0.0, cliff=-9, noise=0.02)
    search = Search(run, [0, 1, 2], -70, 30, 100, 2400)
    find_all(search, stable=-17, usable=-25, grows_with_gradient=False)
    assert abs(round(10 * math.log10(recommendation(search).lr)) + 17) <= 2


@settings(max_examples=60)
@given(st.integers(-25, -5), st.integers(3, 12), st.integers(-12, 12), st.integers(800, 2400))
def test_no_rate_at_which_a_seed_diverged_is_recommended(lowest: int, cliff: int, off: int, most_steps: int) -> None:
    """The valley's bottom on the first seed lies above the cliff of the second; the steps may run out on the way."""
    sound, early = (valley(lowest, plateau=0.0, cliff=lowest + c, noise=0.02) for c in (cliff, -2))
    search = Search(
        lambda c, s, u: (early if s == 1 else sound)(c, s, u), [0, 1, 2], -70, 30, 100, most_steps, constant_loss=4.0
    )
    find_all(search, stable=lowest + cliff + off, usable=lowest + off, grows_with_gradient=False)
    found = recommendation(search)
    diverged = {c for (c, _), t in search.tries.items() if t.outcome is Outcome.DIVERGED}
    assert math.isnan(found.lr) or round(10 * math.log10(found.lr)) not in diverged
    assert math.isnan(found.lr) or found.low <= found.lr <= found.high


def test_a_steep_rise_beside_a_rate_does_not_make_it_the_lowest() -> None:
    """The parabola through the last five lies far below all of them."""
    losses = {-37: 0.0108, -34: 0.0104, -32: 0.0106, -27: 0.0137, -22: 0.039, -19: 0.15, -11: 1.7, -3: 2.6}
    losses |= {3: 2.7, 5: 3.4, 7: 5.5, 8: 52.1}
    assert min(losses, key=lambda cell: smoothed(losses, cell)) < -25


def test_a_rate_is_recommended_wherever_one_lowers_the_loss() -> None:
    """Too slow to be called learning, the loss falls from 4 to 3.95 all the same."""

    def slow(cell: int, seed: int, until: int) -> Trial:
        if cell > -10:
            return Trial(lr_of(cell), seed, Outcome.DIVERGED, np.geomspace(4, 1e5, 6))
        losses = np.linspace(4, 4 - 0.05 * 10 ** ((cell + 10) / 10), 100)[:until]
        return Trial(lr_of(cell), seed, Outcome.STALLED if until >= 100 else None, losses)

    search = Search(slow, [0, 1, 2], -70, 30, 100, most_steps=2400)
    find_all(search, stable=0, usable=-10, grows_with_gradient=True)
    found = recommendation(search)
    assert found.found is Sure.LOWERS and math.isclose(found.lr, 0.1)
    rising = Search(
        lambda c, s, u: Trial(lr_of(c), s, Outcome.STALLED if u >= 100 else None, np.linspace(4, 5, 100)[:u]),
        [0],
        -20,
        0,
        100,
    )
    find_all(rising, stable=0, usable=-10, grows_with_gradient=True)
    assert recommendation(rising).found is Sure.NOWHERE and math.isnan(recommendation(rising).lr)
