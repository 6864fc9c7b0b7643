"""Whose mistake an error is: the model's, in one line, or a bug of ours, in one line that says what to report."""

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns
from normscope.errors import InternalError, InvalidBatch, InvalidModel
from normscope.probes import relative_loss
from normscope.version import __version__


class Broken(nn.Module):
    """Whose shape, that of a tensor in somebody's hands, is no number of anything."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.inner, self.error = nn.Linear(4, 3), error

    def forward(self, x):
        raise self.error


BATCH = (torch.zeros(2, 4), torch.tensor([0, 1]))


def call(model, batch=BATCH):
    return ns.relative_loss(model, batch, step_sizes=[0.1])


@pytest.mark.parametrize("error", [KeyError("x"), AttributeError("x"), TypeError("x"), AssertionError("x")])
def test_what_a_model_raises_is_its_own(error):
    with pytest.raises(InvalidBatch, match=rf"{type(error).__name__}: .*\(at .*test_errors.py:\d+\)"):
        call(Broken(error))


def ours(act):
    """The function, as if it stood in a file of ours."""
    return type(act)(act.__code__.replace(co_filename=relative_loss.__file__), act.__globals__)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda *_, **__: {}["x"], "KeyError: 'x'"),
        (lambda *_, **__: np.zeros(2) + np.zeros(3), "ValueError: operands could not be broadcast"),
        (lambda *_, **__: np.concatenate([]), "ValueError: need at least one array"),
        (lambda *_, **__: None.item(), "AttributeError: 'NoneType' object has no attribute 'item'"),  # pyright: ignore
    ],
)
def test_a_mistake_of_ours_says_what_to_report(monkeypatch, act, said):
    monkeypatch.setattr(relative_loss, "step_line", ours(act))
    with pytest.raises(InternalError) as raised:
        call(nn.Linear(4, 3))
    text = str(raised.value)
    assert text.startswith(f"bug in normscope: {said}")
    assert f"(at normscope/probes/relative_loss.py:{act.__code__.co_firstlineno}, version {__version__})" in text
    assert text.endswith("please report this line") and "\n" not in text


def test_what_torch_refuses_is_the_models(monkeypatch):
    monkeypatch.setattr(relative_loss, "step_line", ours(lambda *_, **__: torch.zeros(2) @ torch.zeros(3)))
    with pytest.raises(InvalidModel, match="relative_loss does not work on this model: RuntimeError: inconsistent"):
        call(nn.Linear(4, 3))
