"""The rate for a longer training: trials that go on and cool down, and what is extrapolated from them."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import normscope as ns
from normscope.checkup.as_json import check_json
from normscope.checkup.headline import headline
from normscope.descent.optimizers import OPTIMIZERS
from normscope.descent.outcome import Outcome
from normscope.descent.recipe import Recipe
from normscope.errors import InvalidConfig
from normscope.rates.longer import DRIFT, Length, extrapolated, longer_training
from normscope.rates.search import Search, lr_of
from normscope.rates.starting_point import Starts
from normscope.rates.trial import Trial
from tests.test_stable_lr import Noisy, data, shallow


def starts_of(model: nn.Module, steps: int, longest: int) -> Starts:
    return Starts(model, data(), steps, loss_fn=None, fine_tuning=False, longest=longest)


def test_a_trial_goes_on_beyond_its_end_with_the_same_bits() -> None:
    torch.manual_seed(0)
    starts = starts_of(Noisy(), 6, 15)
    whole = starts.descent(0.03, 1, Recipe(OPTIMIZERS["adam"], 15, warmup=4)).go_on()
    parts = starts.descent(0.03, 1, Recipe(OPTIMIZERS["adam"], 6, warmup=4), may_go_on=True)
    assert len(parts.go_on().losses) == 6
    np.testing.assert_array_equal(parts.go_on(15).losses, whole.losses)


def test_a_cooldown_is_a_branch_whose_rate_falls_linearly_to_zero() -> None:
    torch.manual_seed(0)
    model, lr = nn.Linear(12, 4), 0.5
    starts = starts_of(model, 5, 20)
    stem = starts.descent(lr, 1, Recipe(OPTIMIZERS["momentum"], 5), may_go_on=True)
    stem.go_on()
    cooled = stem.cooled_down(4)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr, momentum=0.9)
    losses = []
    for index, (inputs, labels) in zip(range(9), starts.batches(1), strict=False):
        optimizer.param_groups[0]["lr"] = lr * (1.0 if index < 5 else (9 - index) / 4)
        optimizer.zero_grad()
        loss = F.cross_entropy(twin(inputs), labels)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    np.testing.assert_allclose(cooled.losses, losses, rtol=1e-6)  # the same operations in float32
    straight = starts.descent(lr, 1, Recipe(OPTIMIZERS["momentum"], 10)).go_on()
    np.testing.assert_array_equal(stem.go_on(10).losses, straight.losses)


def test_a_line_as_the_prior_has_it_is_extrapolated_exactly() -> None:
    lengths = [Length(100 * 2**i, -10.0 + DRIFT[False] * i, 1.0, 1.0) for i in range(3)]
    cell, error = extrapolated(lengths, 3200, DRIFT[False])
    assert math.isclose(cell, -10.0 + DRIFT[False] * 5)
    assert error > extrapolated(lengths, 400, DRIFT[False])[1] > 0
    assert all(map(math.isnan, extrapolated([], 3200, DRIFT[False])))


def falling(drift: float, best: int, seeds: int, cliff: int = 100) -> Search:
    """Losses of a parabola whose lowest cell moves by `drift` with each doubling, and diverge from `cliff` on."""

    def run_beyond(cell: int, seed: int, steps: int, cooldown: int) -> Trial:
        place = best + drift * math.log2((steps + cooldown) / 100) + 0.3 * (seed - (seeds - 1) / 2)
        outcome = Outcome.DIVERGED if cell >= cliff else Outcome.LEARNS
        search.steps_beyond += steps
        return Trial(lr_of(cell), seed, outcome, np.full(steps, 1 + 0.01 * (cell - place) ** 2))

    def never(*_: Any) -> Trial:
        raise AssertionError

    search = Search(never, range(seeds), -70, 30, 100)
    search.run_beyond, search.most_beyond = run_beyond, math.inf
    return search


@settings(max_examples=60)
@given(st.floats(-2.0, 0.5), st.integers(-40, 0), st.integers(1, 3), st.integers(-4, 4), st.booleans())
def test_the_moving_minimum_is_followed_and_lies_in_the_interval(
    drift: float, best: int, seeds: int, off: int, cooldown: bool
) -> None:
    search = falling(drift, best, seeds)
    found = longer_training(search, lr_of(best + off), 1600, cooldown=cooldown)
    assert found.complete and len(found.lengths) == 3
    for one in found.lengths:
        assert abs(one.cell - (best + drift * math.log2(one.steps / 100))) <= 0.5
    assert found.low <= lr_of(best + drift * 4) <= found.high
    assert found.low < found.lr < found.high


def test_a_cliff_beside_the_lowest_loss_is_not_stepped_over() -> None:
    found = longer_training(falling(0.0, -10, 2, cliff=-9), lr_of(-10), 800, cooldown=False)
    assert all(one.cell < -9 for one in found.lengths)


def test_time_that_ends_leaves_the_lengths_measured() -> None:
    search = falling(-1.0, -10, 2)
    search.most_beyond = 2 * 3 * 100 + 200
    found = longer_training(search, lr_of(-10), 1600, cooldown=False)
    assert not found.complete and [one.steps for one in found.lengths] == [100]
    search.stopped = True
    assert math.isnan(longer_training(search, lr_of(-10), 1600, cooldown=False).lr)


def test_check_says_the_rate_of_a_longer_training() -> None:
    told = {"optimizer": "sgd", "steps": 10, "seeds": 1, "repair": [], "workers": 1}
    tree = ns.check(shallow, data(), train_steps=300, **told)
    assert "For a training of 300 steps: about" in headline(tree) and "extrapolated from 40 steps" in headline(tree)
    assert '"train_steps": 300' in check_json(tree)
    rates = tree["as_it_is/rates"].to_dataset()
    assert rates["length"].values.tolist() == [10, 20, 40]
    assert float(rates["lr_for_training_low"]) < float(rates["lr_for_training"]) < float(rates["lr_for_training_high"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"train_steps": 5}, "train_steps is 5: give 10 or more"),
        ({"train_steps": 11, "cooldown": True}, "train_steps is 11: give 13 or more"),
        ({"cooldown": True}, "give its train_steps too"),
        ({"train_steps": 50, "scheduler": torch.optim.lr_scheduler.ConstantLR}, "leave out the scheduler"),
        ({"train_steps": 50, "recommend": False}, "leave out recommend=False"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], line: str) -> None:
    with pytest.raises(InvalidConfig, match=line):
        ns.stable_lr(shallow, data(), optimizer="sgd", steps=10, **options)
