"""The line θ − α∇ℓ_B(θ): every point is reached from θ itself, and nothing but θ differs between points."""

import pytest
import torch
from torch import nn
from zoo import ZOO, by_name, disturb, no_trace, squared_error

from normscope.descent.gradient_line import gradient_line
from normscope.errors import InvalidBatch, InvalidModel


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_a_point_does_not_depend_on_the_points_before(entry):
    model, batch = entry.build(0), entry.batch(0)
    with gradient_line(model, batch, entry.loss_fn) as line:
        there, _, again, start = (line.loss_at(alpha) for alpha in (0.3, 5.0, 0.3, 0.0))
    assert torch.equal(there, again)
    assert torch.equal(start, line.loss)  # the same kernels, the same bits


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_leaves_no_trace(entry):
    model, batch = disturb(entry.build(0)), entry.batch(0)
    with no_trace(model, batch), gradient_line(model, batch, entry.loss_fn) as line:
        line.loss_at(0.5)


def test_a_small_step_lowers_the_loss_by_the_squared_norm():
    entry = by_name("layer_norm")
    model, batch, alpha = entry.build(0).double(), entry.batch(0), 1e-6
    batch = (batch[0].double(), batch[1])
    with gradient_line(model, batch) as line:
        slope = (line.loss_at(alpha) - line.loss_at(-alpha)) / (2 * alpha)
    # central difference: the error is of order α² and 1e-16/α of rounding
    torch.testing.assert_close(-slope, line.gradient_norm.square(), rtol=1e-6, atol=0)


def test_buffers_that_the_forward_pass_changes_start_anew_at_every_point():
    """Spectral norm goes one power iteration further in every forward pass, and keeps it in a buffer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(7, 7)), nn.Linear(7, 4))
    batch = (torch.randn(6, 7), torch.arange(6) % 4)
    with no_trace(model, batch), gradient_line(model, batch) as line:
        torch.testing.assert_close(line.loss_at(0.2), line.loss_at(0.2), rtol=0, atol=0)
        assert torch.equal(line.loss_at(0.0), line.loss)


def test_works_where_the_caller_has_switched_gradients_off():
    entry = by_name("mlp")
    with torch.no_grad(), gradient_line(entry.build(0), entry.batch(0)) as line:
        assert not torch.is_grad_enabled()
        assert line.gradient_norm > 0


def test_a_model_without_trainable_parameters_is_refused():
    entry = by_name("mlp")
    model = entry.build(0).requires_grad_(False)
    with pytest.raises(InvalidModel, match="no trainable parameter"), gradient_line(model, entry.batch(0)):
        pass


def test_a_loss_through_the_inputs_alone_is_refused():
    model = nn.Linear(3, 1)
    inputs = torch.ones(4, 3, requires_grad=True)
    with (
        pytest.raises(InvalidModel, match="depends on no trainable parameter"),
        gradient_line(model, (inputs, torch.ones(4)), lambda _, batch: batch[0].sum()),
    ):
        pass


def test_what_fails_along_the_line_is_said_in_one_line():
    """A loss that refuses what it finds after a large step."""

    def fragile(model, batch):
        loss = squared_error(model, batch)
        if not torch.is_grad_enabled():
            raise ValueError("loss\nout of range")
        return loss

    entry = by_name("regression")
    with (
        gradient_line(entry.build(0), entry.batch(0), fragile) as line,
        pytest.raises(InvalidBatch, match="ValueError: loss out of range"),
    ):
        line.loss_at(1.0)
