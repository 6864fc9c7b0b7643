"""One step as a line: every point is reached from θ itself, and nothing but θ differs between points."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory import kept_bytes, peak_bytes
from torch import nn
from zoo import ZOO, by_name, disturb, no_trace, squared_error

from normscope.descent.step_line import crossing, lowest_step_size, step_line
from normscope.descent.update import update_of
from normscope.errors import InvalidBatch, InvalidConfig, InvalidModel
from normscope.model.loss import default_loss


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_a_point_does_not_depend_on_the_points_before(entry):
    model, batch = entry.build(0), entry.batch(0)
    with step_line(model, batch, entry.loss_fn) as line:
        there, _, again, start = (line.loss_at(alpha) for alpha in (0.3, 5.0, 0.3, 0.0))
    assert torch.equal(there, again)
    assert torch.equal(start, line.loss)  # the same kernels, the same bits


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_leaves_no_trace(entry):
    model, batch = disturb(entry.build(0)), entry.batch(0)
    with no_trace(model, batch), step_line(model, batch, entry.loss_fn) as line:
        line.loss_at(0.5)


def test_a_small_step_lowers_the_loss_by_the_squared_norm():
    entry = by_name("layer_norm")
    model, batch, alpha = entry.build(0).double(), entry.batch(0), 1e-6
    batch = (batch[0].double(), batch[1])
    with step_line(model, batch) as line:
        slope = (line.loss_at(alpha) - line.loss_at(-alpha)) / (2 * alpha)
    # central difference: the error is of order α² and 1e-16/α of rounding
    torch.testing.assert_close(-slope, line.gradient_norm.square(), rtol=1e-6, atol=0)


def test_buffers_that_the_forward_pass_changes_start_anew_at_every_point():
    """Spectral norm goes one power iteration further in every forward pass, and keeps it in a buffer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(7, 7)), nn.Linear(7, 4))
    batch = (torch.randn(6, 7), torch.arange(6) % 4)
    with no_trace(model, batch), step_line(model, batch) as line:
        torch.testing.assert_close(line.loss_at(0.2), line.loss_at(0.2), rtol=0, atol=0)
        assert torch.equal(line.loss_at(0.0), line.loss)


def test_works_where_the_caller_has_switched_gradients_off():
    entry = by_name("mlp")
    with torch.no_grad(), step_line(entry.build(0), entry.batch(0)) as line:
        assert not torch.is_grad_enabled()
        assert line.gradient_norm > 0


def test_a_model_without_trainable_parameters_is_refused():
    entry = by_name("mlp")
    model = entry.build(0).requires_grad_(False)
    with pytest.raises(InvalidModel, match="no trainable parameter"), step_line(model, entry.batch(0)):
        pass


def test_a_loss_through_the_inputs_alone_is_refused():
    model = nn.Linear(3, 1)
    inputs = torch.ones(4, 3, requires_grad=True)
    with (
        pytest.raises(InvalidModel, match="depends on no trainable parameter"),
        step_line(model, (inputs, torch.ones(4)), lambda _, batch: batch[0].sum()),
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
        step_line(entry.build(0), entry.batch(0), fragile) as line,
        pytest.raises(InvalidBatch, match="ValueError: loss out of range"),
    ):
        line.loss_at(1.0)


@given(st.lists(st.one_of(st.floats(1e-6, 1e9), st.just(math.inf), st.just(math.nan)), min_size=1, max_size=12))
def test_the_crossing_is_the_first_and_lies_between_its_neighbours(values):
    relative = np.array(values)
    steps = np.geomspace(1e-3, 1, len(relative))
    found = crossing(steps, relative)
    passed = ~(relative <= 1e3)
    if not passed.any():
        assert found == math.inf
        return
    first = int(passed.argmax())
    # a rounding error on either side
    assert steps[max(first - 1, 0)] * (1 - 1e-12) <= found <= steps[first] * (1 + 1e-12)


def test_the_crossing_is_interpolated_in_logarithms():
    assert crossing(np.array([1e-3, 1e-1]), np.array([1e1, 1e5])) == pytest.approx(1e-2)
    assert crossing(np.array([1e-3, 1e-1]), np.array([1e1, math.inf])) == 1e-1
    assert crossing(np.array([1e-3, 1e-1]), np.array([1e1, math.nan])) == 1e-1
    assert crossing(np.array([1e-3, 1e-1]), np.array([1e4, 1e5])) == 1e-3


def test_the_lowest_point_is_a_finite_one():
    assert lowest_step_size(np.array([1.0, 2.0, 3.0]), np.array([np.nan, 0.5, 0.7])) == 2.0
    assert math.isnan(lowest_step_size(np.array([1.0, 2.0]), np.array([np.nan, np.inf])))


def test_a_crossing_that_is_measured_lies_just_above_the_level():
    asked = []

    def measure(step_size):
        asked.append(step_size)
        return step_size**2

    steps = np.geomspace(1e-3, 1e3, 7)
    found = crossing(steps, steps**2, 50.0, measure=measure)
    assert math.sqrt(50) < found < math.sqrt(50) * 10 ** (1 / 2**6)  # six halvings of a decade
    assert len(asked) == 6 and found in asked
    assert crossing(steps, steps**2, 1e9, measure=measure) == math.inf


def test_a_model_that_rebinds_a_buffer_sees_its_start_at_every_point():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(7, 4)
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            y = self.fc(x)
            self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
            return y - self.mean

    torch.manual_seed(0)
    model, batch = Running(), by_name("mlp").batch(0)
    with step_line(model, batch) as line:
        assert torch.equal(line.loss_at(0.0), line.loss)
        assert torch.equal(line.loss_at(0.1), line.loss_at(0.1))


def sgd(params, lr):
    return torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=0.01, nesterov=True)


def adamw(params, lr):
    return torch.optim.AdamW(params, lr=lr, weight_decay=0.1)


def two_groups(params, lr):
    params = list(params)
    return torch.optim.SGD([{"params": params[:2], "lr": lr / 4}, {"params": params[2:]}], lr=lr, momentum=0.5)


OPTIMIZERS = [sgd, adamw, two_groups, lambda params, lr: torch.optim.RMSprop(params, lr=lr, momentum=0.9)]


def loss_after_a_real_step(entry, model, optimizer, batch, rate, seed):
    """The loss after one step of a copy of model and optimizer, at this rate (of the largest group)."""
    model, optimizer = copy.deepcopy((model, optimizer))
    largest = max(group["lr"] for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        group["lr"] *= rate / largest
    loss_fn = entry.loss_fn or default_loss
    model.train()
    optimizer.zero_grad()
    torch.manual_seed(seed)
    loss_fn(model, batch).backward()
    optimizer.step()
    torch.manual_seed(seed)
    return float(loss_fn(model, batch).detach())


def trained(entry, make, steps=3):
    """A model and its optimizer after a few steps, so that momentum and moments are not zero."""
    model = entry.build(0)
    optimizer = make([p for p in model.parameters() if p.requires_grad], 1e-2)
    for seed in range(steps):
        optimizer.zero_grad()
        (entry.loss_fn or default_loss)(model, entry.batch(seed)).backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["sgd", "adamw", "two groups", "rmsprop"])
@pytest.mark.parametrize("steps", [0, 3], ids=["fresh", "as it stands"])
@pytest.mark.parametrize("entry", [entry for entry in ZOO if entry.dtype == torch.float32], ids=str)
def test_along_an_optimizers_update_lies_its_own_step(entry, steps, make):
    model, optimizer = trained(entry, make, steps)
    batch, rates = entry.batch(9), (1e-3, 1e-2, 0.1)
    with step_line(model, batch, entry.loss_fn, direction=update_of(optimizer, model), seed=5) as line:
        found = line.losses(rates)
    expected = [loss_after_a_real_step(entry, model, optimizer, batch, rate, 5) for rate in rates]
    np.testing.assert_allclose(found, expected, rtol=2e-5)  # two float32 roundings of every parameter instead of one


def test_a_fresh_optimizer_by_name_equals_one_that_has_not_stepped():
    entry = by_name("cnn_inplace")
    model, batch = entry.build(0), entry.batch(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with step_line(model, batch, direction=update_of("adam", model)) as line:
        by_its_name = line.losses([0.01, 0.1])
    with step_line(model, batch, direction=update_of(optimizer, model)) as line:
        np.testing.assert_array_equal(line.losses([0.01, 0.1]), by_its_name)


def test_along_plain_sgd_lies_the_gradients_line():
    entry = by_name("cnn_inplace")
    model, batch = entry.build(0), entry.batch(0)
    with step_line(model, batch) as line:
        expected = line.losses([0.1, 1.0])
    with step_line(model, batch, direction=update_of("sgd", model)) as line:
        np.testing.assert_allclose(line.losses([0.1, 1.0]), expected, rtol=1e-5)  # u is rounded once more


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["sgd", "adamw", "two groups", "rmsprop"])
def test_the_optimizer_and_the_model_stay_as_they_are(make):
    entry = by_name("batch_norm")
    model, optimizer = trained(entry, make)
    other = torch.ones(3, requires_grad=True)  # one optimizer may hold the parameters of several models
    other.grad = torch.ones(3)
    optimizer.add_param_group({"params": [other]})
    before = copy.deepcopy(optimizer.state_dict())
    stepped = []
    optimizer.register_step_post_hook(lambda *_: stepped.append(1))
    with (
        no_trace(disturb(model), entry.batch(0)),
        step_line(model, entry.batch(0), direction=update_of(optimizer, model)) as line,
    ):
        line.loss_at(0.5)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, state in before["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after["state"][index][name]))
    assert torch.equal(other, torch.ones(3)) and torch.equal(other.grad, torch.ones(3))
    assert not stepped


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("sgdd", "unknown optimizer 'sgdd'"),
        (torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1), "holds no parameter that"),
        (lambda params, lr: torch.optim.LBFGS(params, lr=lr), "the optimizer's step raised TypeError"),
        (lambda params, lr: None, "gave a NoneType, not a torch optimizer"),
    ],
    ids=["unknown", "another model's", "with a closure", "none"],
)
def test_an_optimizer_that_gives_no_update_is_refused_in_one_line(optimizer, message):
    entry = by_name("mlp")
    model = disturb(entry.build(0))
    with (
        no_trace(model),
        pytest.raises(InvalidConfig, match=message) as caught,
        step_line(model, entry.batch(0), direction=update_of(optimizer, model)),
    ):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "copies"), [(None, 2), (torch.optim.SGD, 3), (sgd, 4)], ids=["gradient", "sgd", "momentum"]
)
def test_memory_is_that_of_the_passes_and_a_copy_of_the_model_and_of_the_step(make, copies):
    """An optimizer's update is taken with its gradient and its state still there: a copy more for each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 4))
    batch = by_name("mlp").batch(0)
    parameters = sum(4 * p.numel() for p in model.parameters())
    optimizer = None if make is None else make(model.parameters(), lr=0.1)

    def passes():
        default_loss(model, batch).backward()
        model.zero_grad()

    def walk():
        direction = None if optimizer is None else update_of(optimizer, model)
        with step_line(model, batch, direction=direction) as line:
            line.losses([0.1, 0.2])

    assert parameters < peak_bytes(walk) <= peak_bytes(passes) + copies * parameters


def test_only_the_copy_of_the_model_and_the_step_are_held_along_an_optimizers_update():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 4))
    batch = by_name("mlp").batch(0)
    parameters = sum(4 * p.numel() for p in model.parameters())
    optimizer = sgd(model.parameters(), 0.1)
    model(batch[0]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()

    lines = []

    def held():
        lines.append(step_line(model, batch, direction=update_of(optimizer, model)))
        lines[-1].__enter__()

    kept = kept_bytes(held)
    lines[-1].__exit__(None, None, None)
    assert 1.9 * parameters < kept < 2.1 * parameters
