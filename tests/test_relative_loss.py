"""Relative loss along the gradient equals a naive float64 twin; bad input is one line, the model untouched."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from zoo import ZOO, by_name, disturb, in_float64, no_trace, scaled

from normscope.errors import InvalidBatch, InvalidConfig, InvalidModel, NormscopeError
from normscope.model.loss import default_loss
from normscope.probes.relative_loss import relative_loss

STEP_SIZES = [1e-3, 1e-2, 0.1, 1.0]


def naive_relative_loss(entry, model, batch, step_sizes):
    """The equation, on a fresh copy of the model for every step size, with the same random numbers in every pass."""

    def loss_of(model):
        torch.manual_seed(7)
        return (entry.loss_fn or default_loss)(model.train(), batch)

    before = loss_of(model)
    before.backward()
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
    after = []
    for step_size in step_sizes:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for there, here in zip(moved.parameters(), model.parameters(), strict=True):
                if here.grad is not None:
                    there -= step_size * here.grad
            after.append(float(loss_of(moved)))
    return float(before.detach()), norm, np.array(after)


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_equals_a_naive_float64_twin(entry):
    model, batch = entry.build(0), entry.batch(0)
    torch.manual_seed(7)
    dataset = relative_loss(model, batch, loss_fn=entry.loss_fn, step_sizes=STEP_SIZES)
    twin = in_float64(model), in_float64(batch)
    before, norm, after = naive_relative_loss(entry, *twin, STEP_SIZES)
    # the network runs in float32 (bfloat16), whose rounding of 6e-8 (4e-3) adds up along its passes
    rounding = 5e-2 if entry.dtype == torch.bfloat16 else 1e-4
    np.testing.assert_allclose(dataset["loss_before"], before, rtol=rounding)
    np.testing.assert_allclose(dataset["gradient_norm"], norm, rtol=rounding)
    np.testing.assert_allclose(dataset["loss"], after, rtol=rounding)
    np.testing.assert_allclose(dataset["relative_loss"], after / before, rtol=rounding)


@pytest.mark.parametrize(
    "entry", [by_name(name) for name in ("mlp", "cnn_inplace", "shared", "grouped_dilated")], ids=str
)
def test_driven_to_1e25_it_equals_the_twin_as_far_as_the_network_is_finite(entry):
    step_sizes = [1e-33, 1e-30, 1e-28, 1e-3]  # gradients are about 1e25 as well
    model, batch = entry.build(0), scaled(entry.batch(0), 1e25)
    dataset = relative_loss(model, batch, step_sizes=step_sizes)
    exact = naive_relative_loss(entry, in_float64(model), in_float64(batch), step_sizes)
    own = naive_relative_loss(entry, model, batch, step_sizes)
    found = float(dataset["loss_before"]), float(dataset["gradient_norm"]), dataset["loss"].values
    for one, twin, same_precision in zip(found, exact, own, strict=True):
        np.testing.assert_allclose(one, same_precision, rtol=1e-4)  # inf and NaN where the network itself has them
        finite = np.isfinite(one)
        np.testing.assert_allclose(np.asarray(one)[finite], np.asarray(twin)[finite], rtol=1e-3)
    assert np.isfinite(dataset["gradient_norm"]) and np.isfinite(dataset["loss"]).sum() >= 3


class RunningMean(nn.Module):
    """Subtracts a running mean, which every call binds anew."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(7, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        y = self.body(x)
        self.mean = 0.5 * self.mean + 0.5 * y.detach().mean(0)
        return y - self.mean


def test_a_buffer_that_the_model_rebinds_starts_anew_at_every_point():
    torch.manual_seed(0)
    model, entry = RunningMean(), by_name("mlp")
    batch = entry.batch(0)
    with no_trace(model, batch):
        found = relative_loss(model, batch, step_sizes=STEP_SIZES)
    exact, batch = in_float64(model), in_float64(batch)
    for step_size, loss in zip(STEP_SIZES, found["loss"].values, strict=True):
        moved, graded = copy.deepcopy(exact), copy.deepcopy(exact)
        default_loss(graded, batch).backward()
        with torch.no_grad():
            for there, here in zip(moved.parameters(), graded.parameters(), strict=True):
                there -= step_size * here.grad
            np.testing.assert_allclose(loss, float(default_loss(moved, batch)), rtol=1e-5)  # float32 rounds at 6e-8


class Parabola(nn.Module):
    """ℓ(θ) = k θ² / 2, so that relative loss(α) = (1 − αk)²."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))


def parabola_loss(model, curvature):
    return (curvature * model.theta.square() / 2).sum()


def test_a_parabola_has_the_relative_loss_of_the_textbook():
    curvature = 8.0
    dataset = relative_loss(Parabola(), curvature, loss_fn=parabola_loss, step_sizes=np.geomspace(1e-3, 100, 401))
    steps = dataset["step_size"].values
    np.testing.assert_allclose(dataset["relative_loss"], (1 - steps * curvature) ** 2, rtol=1e-9, atol=1e-15)
    assert float(dataset["gradient_norm"]) == pytest.approx(curvature * 3)
    assert float(dataset["lowest_step_size"]) == pytest.approx(1 / curvature, rel=0.02)  # the grid's spacing
    # passes 10³ where αk − 1 = √1000; interpolation in logarithms is off by the curve's bend over one spacing
    assert float(dataset["divergence_step_size"]) == pytest.approx((1 + math.sqrt(1000)) / curvature, rel=1e-4)


def test_a_loss_of_exactly_zero_has_no_relative_loss():
    dataset = relative_loss(Parabola(), 0.0, loss_fn=parabola_loss, step_sizes=[0.1])
    assert np.isnan(dataset["relative_loss"]).all()


def test_a_loss_that_is_not_finite_at_the_start_is_a_result():
    entry = by_name("mlp")
    dataset = relative_loss(entry.build(0), scaled(entry.batch(0), math.nan), step_sizes=STEP_SIZES)
    assert np.isnan(dataset["relative_loss"]).all()
    assert float(dataset["divergence_step_size"]) == STEP_SIZES[0]


FEATURES, LABELS = by_name("mlp").batch(0)


def detached_loss(model, batch):
    return default_loss(model, batch).detach()


def no_parameter_in_the_loss(model, batch):
    return torch.zeros((), requires_grad=True) * 2


BAD = {
    "no parameter": (nn.Flatten(), (FEATURES, LABELS), None, InvalidModel, "Flatten has no trainable parameter"),
    "frozen": (by_name("mlp").build().requires_grad_(False), (FEATURES, LABELS), None, InvalidModel, "no trainable"),
    "loss not scalar": (None, (FEATURES, LABELS), lambda m, b: m(b[0]), InvalidBatch, r"not one number but \(6, 4\)"),
    "loss no tensor": (None, (FEATURES, LABELS), lambda m, b: 1.5, InvalidBatch, "not one number but float"),
    "label too high": (None, (FEATURES, LABELS + 9), None, InvalidBatch, r"labels go from \d+ to \d+, but the model"),
    "label negative": (None, (FEATURES, LABELS - 5), None, InvalidBatch, "labels must lie in 0 to 3"),
    "labels all ignored": (None, (FEATURES, LABELS * 0 - 100), None, InvalidBatch, "every label is -100"),
    "float labels": (None, (FEATURES, LABELS.float()), None, InvalidBatch, "labels are torch.float32, not integers"),
    "input too wide": (None, (FEATURES.repeat(1, 2), LABELS), None, InvalidBatch, "take this batch: RuntimeError"),
    "fewer labels": (None, (FEATURES, LABELS[:4]), None, InvalidBatch, "does not take this batch: ValueError"),
    "three parts": (None, (FEATURES, LABELS, LABELS), None, InvalidBatch, "not a tuple of Tensor, Tensor, Tensor:"),
    "arrays": (None, (FEATURES.numpy(), LABELS.numpy()), None, InvalidBatch, "not a tuple of ndarray, ndarray: make"),
    "inputs alone": (None, FEATURES, None, InvalidBatch, "not a Tensor: give a loss_fn"),
    "unknown input": (None, {"x": FEATURES}, None, InvalidBatch, "does not take this batch: TypeError"),
    "empty": (None, (FEATURES[:0], LABELS[:0]), None, InvalidBatch, "the batch is empty"),
    "no gradient": (None, (FEATURES, LABELS), detached_loss, InvalidModel, "depends on no trainable parameter"),
    "other gradient": (None, (FEATURES, LABELS), no_parameter_in_the_loss, InvalidModel, "depends on no trainable"),
    "no labels": (by_name("several_inputs").build(), {"input_ids": LABELS[:, None], "pixels": FEATURES[:, :6]}, None,
                  InvalidBatch, "gives no `.loss`"),
    "one under batch norm": (nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4)), (FEATURES[:1], LABELS[:1]), None,
                             InvalidBatch, "one example has no batch statistics: give two or more"),
    "one under batch norm, own loss": (nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4)), {"x": FEATURES[:1]},
                                       lambda m, b: m(b["x"]).sum(), InvalidBatch, "no batch statistics"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "batch", "loss_fn", "error", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_measured_is_said_in_one_line(model, batch, loss_fn, error, message):
    model = disturb(model or by_name("mlp").build(0))
    with no_trace(model, batch), pytest.raises(error, match=message) as caught:
        relative_loss(model, batch, loss_fn=loss_fn, step_sizes=STEP_SIZES)
    assert isinstance(caught.value, NormscopeError)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "steps", [[], [0.0], [-1.0, 1.0], [1.0, 0.5], [1.0, 1.0], [1.0, math.inf], [math.nan], [[1.0]]]
)
def test_step_sizes_are_positive_finite_and_increasing(steps):
    with pytest.raises(InvalidConfig, match="step_sizes must be positive, finite and increasing"):
        relative_loss(by_name("mlp").build(0), by_name("mlp").batch(0), step_sizes=steps)


def test_an_expanded_buffer_is_no_obstacle():
    entry = by_name("mlp")
    model = entry.build(0)
    model.register_buffer("mask", torch.ones(1).expand(4))
    with no_trace(model):
        found = relative_loss(model, entry.batch(0), step_sizes=STEP_SIZES)
    assert found.identical(relative_loss(entry.build(0), entry.batch(0), step_sizes=STEP_SIZES))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_may_be_any_integers(dtype):
    model = by_name("mlp").build(0)
    found = relative_loss(model, (FEATURES, LABELS.to(dtype)), step_sizes=STEP_SIZES)
    assert found.identical(relative_loss(model, (FEATURES, LABELS), step_sizes=STEP_SIZES))


def test_an_optimizer_with_momentum_takes_a_step_of_its_own():
    """With the buffer b of the steps before, θ − α (μ b + ∇ℓ) on the parabola ℓ = k θ² / 2."""
    curvature, momentum = 8.0, 0.9
    model = Parabola()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
    parabola_loss(model, curvature).backward()
    optimizer.step()  # θ = 3 − 0.01 · 24, b = 24
    theta, buffer = 2.76, 24.0
    steps = np.geomspace(1e-3, 1, 7)
    dataset = relative_loss(model, curvature, loss_fn=parabola_loss, step_sizes=steps, optimizer=optimizer)
    moved = theta - steps * (momentum * buffer + curvature * theta)
    np.testing.assert_allclose(dataset["relative_loss"], (moved / theta) ** 2, rtol=1e-9)
    assert float(dataset["gradient_norm"]) == pytest.approx(curvature * theta)
