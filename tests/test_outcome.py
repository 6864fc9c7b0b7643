"""The four outcomes, from real descents of tiny networks and from the rules' own edges."""

import math

import pytest
import torch
from torch import nn

from normscope.descent.loop import descend
from normscope.descent.outcome import Outcome, has_diverged, outcome
from normscope.errors import InvalidBatch
from normscope.model.loss import constant_loss, output_spread

L_C = math.log(2)


def blobs(seed: int):
    """Endless batches of two separable classes in the plane."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        labels = torch.arange(32) % 2
        yield torch.randn(32, 2, generator=generator) + 3 * labels[:, None], labels


def walked(net: nn.Module, lr: float, steps: int = 60) -> Outcome:
    sgd = torch.optim.SGD(net.parameters(), lr=lr)
    batches = [batch for batch, _ in zip(blobs(0), range(steps), strict=False)]
    losses = [float(step.loss) for step in descend(net, sgd, batches)]
    spread = output_spread(net, batches[-1])
    return outcome(losses, constant_loss=constant_loss(net, batches), output_spread=spread)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))


def test_a_sound_network_learns():
    assert walked(mlp(), lr=0.1) is Outcome.LEARNS


def test_too_large_a_rate_diverges():
    torch.manual_seed(0)
    deep = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(6)])
    with torch.no_grad():
        for weight in deep.parameters():
            weight.mul_(3)
    assert walked(deep, lr=10.0) is Outcome.DIVERGED


def test_units_that_never_fire_are_dead():
    net = mlp()
    nn.init.constant_(net[0].bias, -1e3)
    assert walked(net, lr=0.5) is Outcome.DEAD


def test_too_small_a_rate_stalls():
    assert walked(mlp(), lr=1e-9) is Outcome.STALLED


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1001 * L_C])
def test_what_diverges(loss):
    assert has_diverged(loss, start=0.1, best=0.1, constant_loss=L_C)
    assert outcome([0.1, loss], constant_loss=L_C) is Outcome.DIVERGED


def test_a_loss_within_a_thousand_constant_losses_has_not_diverged():
    assert not has_diverged(999 * L_C, start=0.1, best=1e-6, constant_loss=L_C)
    assert not has_diverged(900.0, start=1.0, best=1.0, constant_loss=math.nan), "without L_c the start is the measure"
    assert has_diverged(1001.0, start=1.0, best=1.0, constant_loss=math.nan)


def test_where_no_constant_is_known_coming_back_from_zero_is_not_to_diverge():
    assert not has_diverged(0.5, start=1.0, best=0.0, constant_loss=math.nan)
    assert outcome([1.0, 1e-9, 0.5], constant_loss=math.nan) is Outcome.LEARNS


def test_a_negative_loss_has_no_thousandfold():
    assert not has_diverged(-5.0, start=-5.0, best=-5.0, constant_loss=-1.0)
    assert outcome([-5.0] + [-9.0] * 20, constant_loss=-5.0) is Outcome.LEARNS
    assert outcome([-5.0, math.inf], constant_loss=-5.0) is Outcome.DIVERGED


@pytest.mark.parametrize("constant", [L_C, math.nan])
@pytest.mark.parametrize("start", [math.nan, math.inf, -math.inf])
def test_a_start_that_is_not_finite_has_diverged(start, constant):
    assert outcome([start], constant_loss=constant) is Outcome.DIVERGED
    assert outcome([start, 1.0, 0.5], constant_loss=constant) is Outcome.DIVERGED


def test_an_unknown_constant_leaves_the_start_to_be_beaten():
    assert outcome([1.0] + [0.9] * 20, constant_loss=math.nan) is Outcome.LEARNS
    assert outcome([1.0] * 20, constant_loss=math.nan, output_spread=0.0) is Outcome.STALLED, "dead needs L_c"


def test_no_mini_batch_has_no_outcome():
    with pytest.raises(InvalidBatch, match="no mini-batch"):
        outcome([], constant_loss=L_C)


def test_learning_beats_start_and_constant_by_three_percent():
    def ends_at(end: float, start: float = 2.0) -> Outcome:
        return outcome([start] + [end] * 50, constant_loss=L_C)

    assert ends_at(0.96 * L_C) is Outcome.LEARNS
    assert ends_at(0.98 * L_C) is Outcome.STALLED
    assert ends_at(L_C * 1.5) is Outcome.STALLED, "below a high start, but a constant does better"
    assert ends_at(0.5, start=0.5) is Outcome.STALLED, "below L_c, but not below its start"


def test_learning_beats_three_standard_errors():
    noisy = [2.0] + [0.0, 1.3] * 50
    assert outcome(noisy, constant_loss=0.7) is Outcome.STALLED


def test_dead_needs_outputs_that_are_known_not_to_vary():
    losses = [3.0] + [L_C] * 20
    assert outcome(losses, constant_loss=L_C, output_spread=0.0) is Outcome.DEAD
    assert outcome(losses, constant_loss=L_C, output_spread=0.5) is Outcome.STALLED
    assert outcome(losses, constant_loss=L_C, output_spread=lambda: 0.0) is Outcome.DEAD
    assert outcome(losses, constant_loss=L_C) is Outcome.STALLED


def test_fine_tuning_learns_by_not_ending_above_its_start():
    losses = [0.1] * 30
    assert outcome(losses, constant_loss=L_C) is Outcome.STALLED
    assert outcome(losses, constant_loss=L_C, fine_tuning=True) is Outcome.LEARNS
    assert outcome([0.1] + [0.2] * 30, constant_loss=L_C, fine_tuning=True) is Outcome.STALLED
    wild = [0.05] * 36 + [1.0, 200.0, 3.0, 4.0]
    assert outcome(wild, constant_loss=L_C, fine_tuning=True) is Outcome.STALLED
    assert outcome(wild, constant_loss=math.nan, fine_tuning=True) is not Outcome.LEARNS
