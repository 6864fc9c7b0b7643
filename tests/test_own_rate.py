"""Somebody's own rate, judged in worlds whose losses are known by rate: cell 0 is the rate itself."""

import numpy as np
import pytest

from normscope.descent.outcome import Outcome
from normscope.rates.own_rate import Judgement, judge_own
from normscope.rates.search import Search, lr_of
from normscope.rates.trial import Trial

STEPS = 50


def judged(loss_at: dict[range, float]) -> Judgement:
    """The judgement where the loss ends so in these cells; it starts at 1, at which it stalls elsewhere."""

    def run(cell: int, seed: int, until: int) -> Trial:
        loss = next((end for cells, end in loss_at.items() if cell in cells), 1.0)
        outcome = Outcome.DIVERGED if loss > 10 else Outcome.STALLED if loss == 1 else Outcome.LEARNS
        return Trial(lr_of(cell), seed, outcome, np.linspace(1, loss, STEPS))

    return judge_own(Search(run, [0, 1], -40, 40, STEPS)).judgement


@pytest.mark.parametrize(
    ("loss_at", "expected"),
    [
        ({range(-40, 6): 0.1}, Judgement.GOOD),
        ({range(-40, 3): 0.1}, Judgement.NEAR),
        ({range(-40, 0): 0.1, range(0, 40): 100}, Judgement.DIVERGES),
        ({range(-40, -3): 0.1}, Judgement.NEAR),
        ({range(4, 20): 0.1}, Judgement.SMALL),
        ({range(-40, 4): 0.8, range(4, 20): 0.1}, Judgement.SMALL),
        ({}, Judgement.NOWHERE),
    ],
)
def test_the_verdict_is_what_the_world_says(loss_at: dict[range, float], expected: Judgement) -> None:
    assert judged(loss_at) is expected


@pytest.mark.parametrize("highest_that_learns", [-2, -10, -15, -20])
def test_a_rate_far_too_large_is_never_told_to_grow(highest_that_learns: int) -> None:
    """Above a rate that does not learn, a network can escape to a loss that is a little lower, and stays lost."""
    assert judged({range(-40, highest_that_learns + 1): 0.1, range(5, 15): 0.8}) is Judgement.NEAR
