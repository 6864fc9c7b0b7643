"""Outputs fitted to a loss whose targets only it knows."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope as ns
from normscope.diagnosis.fitted_outputs import fitted_reach
from normscope.diagnosis.outputs import reach

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :2] * 1.5 - 1


class Ends(nn.Sequential):
    """A small network that ends in some activation."""

    def __init__(self, last: nn.Module, outputs: int = 6) -> None:
        super().__init__(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, outputs), last)


def mse(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def reconstruction(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    return (model(batch[0]) - batch[0]).square().mean()


@pytest.mark.parametrize("last", ["identity", "relu", "sigmoid", "tanh"])
def test_they_come_to_what_the_known_targets_say(last: str) -> None:
    model, batches = Ends(nn.Identity(), 2), [(X, Y)]
    like = [model(X).detach()]
    known, fitted = reach(model, batches, mse, like, last), fitted_reach(model, batches, mse, like, last)
    assert known is not None and fitted is not None
    assert fitted.constant == pytest.approx(known.constant, rel=1e-3)
    assert fitted.lowest == pytest.approx(known.lowest, abs=1e-4)
    assert fitted.in_range == pytest.approx(known.in_range, rel=1e-3, abs=1e-4)


def test_a_loss_without_a_lowest_value_has_no_reach() -> None:
    model = Ends(nn.Identity(), 1)
    assert fitted_reach(model, [(X,)], lambda m, b: m(b[0]).mean(), [model(X).detach()], "relu") is None
    assert fitted_reach(model, [(X,)], lambda m, b: torch.tensor(0.0), [model(X).detach()], "relu") is None


def first_fault(last: nn.Module, batches: list[Any], loss: Any, outputs: int) -> str:
    torch.manual_seed(0)
    tree = ns.diagnose(Ends(last, outputs), batches, optimizer="adam", loss_fn=loss, lr=3e-3, steps=200, seconds=4.0)
    found = tree["findings"].to_dataset()
    return str(found["finding"].values[0]) if bool(found["fault"].values[0]) else ""


def values(model: nn.Module, transition: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    states, actions, returns = transition
    return nn.functional.smooth_l1_loss(model(states).gather(1, actions[:, None])[:, 0], returns)


@pytest.mark.parametrize(("last", "expected"), [(nn.Sigmoid(), "output_range"), (nn.Identity(), "")])
def test_an_autoencoder_that_cannot_reach_its_inputs_is_named(last: nn.Module, expected: str) -> None:
    assert first_fault(last, [(x,) for x in X.split(16)], reconstruction, 6) == expected


@pytest.mark.parametrize(("last", "expected"), [(nn.ReLU(), "output_range"), (nn.Identity(), "")])
def test_values_that_cannot_be_negative_are_named(last: nn.Module, expected: str) -> None:
    actions = torch.arange(64) % 3
    returns = -2 + X[:, 0] * (actions - 1)
    batches = list(zip(X.split(16), actions.split(16), returns.split(16), strict=True))
    assert first_fault(last, batches, values, 3) == expected
