"""Sharpness: equal to a dense float64 Hessian's eigenvalues, known answers on quadratics, no trace, clear errors."""

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import ZOO, by_name, disturb, in_float64, no_trace, scaled

import normscope as ns
from normscope.curvature.hessian import hessian
from normscope.curvature.lanczos import lanczos
from normscope.errors import InvalidConfig, InvalidModel
from normscope.model.loss import default_loss

matplotlib.use("Agg")


def dense_hessian(model, batch, loss_fn):
    """The gradient (n,) and Hessian (n, n) of all trainable parameters, all rows in one vectorized pass."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = (loss_fn or default_loss)(model, batch)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    unit_vectors = torch.eye(len(gradient), dtype=gradient.dtype)
    columns = torch.autograd.grad(gradient, parameters, unit_vectors, is_grads_batched=True, materialize_grads=True)
    return gradient.detach().numpy(), torch.cat([c.flatten(1) for c in columns], 1).numpy()


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_equals_the_eigenvalues_of_the_dense_hessian(entry):
    model, batch = entry.build(0), entry.batch(0)
    torch.manual_seed(3)
    dataset = ns.sharpness(model, batch, loss_fn=entry.loss_fn, num_eigenvalues=3, lowest=True)
    torch.manual_seed(3)
    gradient, matrix = dense_hessian(in_float64(model), in_float64(batch), entry.loss_fn)
    eigenvalues = np.linalg.eigvalsh(matrix)[::-1]
    curvature = gradient @ matrix @ gradient / (gradient @ gradient)
    if entry.dtype == torch.bfloat16:  # eight bits of mantissa in each of some ten operations
        rtol = 5e-2
        assert not dataset["converged"].any()
    else:
        rtol = 1e-3  # the tolerance asked for
        assert dataset["converged"].all() and dataset["lowest_converged"]
        assert (abs(dataset["eigenvalue"].values - eigenvalues[:3]) <= dataset["error"].values).all()
        assert abs(float(dataset["lowest_eigenvalue"]) - eigenvalues[-1]) <= float(dataset["lowest_error"])
    np.testing.assert_allclose(dataset["eigenvalue"], eigenvalues[:3], rtol=rtol)
    np.testing.assert_allclose(dataset["lowest_eigenvalue"], eigenvalues[-1], atol=rtol * abs(eigenvalues).max())
    np.testing.assert_allclose(dataset["curvature"], curvature, rtol=max(rtol, 1e-4), atol=1e-4 * eigenvalues[0])
    np.testing.assert_allclose(dataset["gradient_norm"], np.linalg.norm(gradient), rtol=rtol)


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_leaves_no_trace_and_repeats_to_the_bit(entry):
    model, batch = disturb(entry.build(0)), entry.batch(0)
    with no_trace(model, batch):
        first = ns.sharpness(model, batch, loss_fn=entry.loss_fn, tolerance=0.05)
    assert first.identical(ns.sharpness(model, batch, loss_fn=entry.loss_fn, tolerance=0.05))


class Quadratic(nn.Module):
    """The loss ½ θᵀ A θ, whose Hessian is A."""

    def __init__(self, matrix, at):
        super().__init__()
        self.matrix = torch.as_tensor(matrix, dtype=torch.float32)
        self.theta = nn.Parameter(torch.as_tensor(at, dtype=torch.float32))

    def forward(self, batch):
        return 0.5 * self.theta @ self.matrix.to(self.theta) @ self.theta


def value(model, batch):
    return model(batch)


def test_quadratic_gives_its_curvatures_and_the_edge_of_stability():
    model = Quadratic(np.diag([4.0, 1.0, -2.0]), [1.0, 1.0, 0.0])
    dataset = ns.sharpness(model, None, loss_fn=value, num_eigenvalues=3, lr=0.2, momentum=0.9)
    np.testing.assert_allclose(dataset["eigenvalue"], [4, 1, -2], rtol=1e-5)
    assert float(dataset["curvature"]) == pytest.approx((4 * 16 + 1) / 17)
    assert float(dataset["edge_lr"]) == pytest.approx(2 * 1.9 / 4)
    assert float(dataset["threshold"]) == pytest.approx(2 * 1.9 / 0.2)
    assert int(dataset["num_products"]) == 4


@pytest.mark.parametrize("share", [0.98, 1.02])
def test_descent_with_momentum_is_stable_below_the_edge_and_not_above(share):
    model = Quadratic(np.diag([4.0, 1.0, 0.5]), [1.0, 1.0, 1.0])
    edge = float(ns.sharpness(model, None, loss_fn=value, momentum=0.8)["edge_lr"])
    sgd = torch.optim.SGD(model.parameters(), lr=share * edge, momentum=0.8)
    start = float(model(None).detach())
    for _ in range(400):
        sgd.zero_grad()
        model(None).backward()
        sgd.step()
    assert (float(model(None).detach()) < 1e-3 * start) == (share < 1)


def test_finds_a_sharp_direction_at_right_angles_to_the_gradient():
    model = Quadratic(np.diag([10.0, 1.0, 1.0, 1.0]), [0.0, 1.0, 2.0, 3.0])
    dataset = ns.sharpness(model, None, loss_fn=value)
    assert float(dataset["eigenvalue"][0]) == pytest.approx(10, rel=1e-5)
    assert float(dataset["curvature"]) == pytest.approx(1)


def test_an_eigenvalue_that_occurs_several_times_is_found_again_once_the_space_is_exhausted():
    model = Quadratic(np.diag([3.0, 3.0, 1.0, 1.0]), [1.0, 2.0, 3.0, 4.0])
    dataset = ns.sharpness(model, None, loss_fn=value, num_eigenvalues=4)
    np.testing.assert_allclose(dataset["eigenvalue"], [3, 3, 1, 1], rtol=1e-5)


def test_at_a_minimum_there_is_no_gradient_to_look_along():
    dataset = ns.sharpness(Quadratic(np.diag([4.0, 1.0]), [0.0, 0.0]), None, loss_fn=value)
    assert float(dataset["eigenvalue"][0]) == pytest.approx(4) and np.isnan(dataset["curvature"])


def test_a_linear_loss_has_no_curvature_and_no_edge():
    model = nn.Linear(3, 1)
    dataset = ns.sharpness(model, torch.ones(2, 3), loss_fn=lambda m, x: m(x).mean())
    assert float(dataset["eigenvalue"][0]) == 0 and dataset["converged"].all()
    assert float(dataset["edge_lr"]) == np.inf


def test_a_saddle_without_positive_curvature_has_no_edge():
    dataset = ns.sharpness(Quadratic(np.diag([-1.0, -3.0]), [1.0, 1.0]), None, loss_fn=value, lowest=True)
    assert float(dataset["edge_lr"]) == np.inf
    assert float(dataset["lowest_eigenvalue"]) == pytest.approx(-3)


def test_a_float64_model_is_measured_in_float64():
    entry = by_name("batch_norm")
    model, batch = in_float64(entry.build(0)), in_float64(entry.batch(0))
    _, matrix = dense_hessian(in_float64(model), batch, None)
    dataset = ns.sharpness(model, batch, tolerance=1e-9)
    assert float(dataset["eigenvalue"][0]) == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-9)


@pytest.mark.parametrize("scale", [1e-20, 1e19])
def test_extreme_scales_neither_overflow_nor_vanish(scale):
    dataset = ns.sharpness(Quadratic(scale * np.diag([4.0, 1.0, -2.0]), [1.0, 1.0, 0.5]), None, loss_fn=value)
    assert float(dataset["eigenvalue"][0]) == pytest.approx(4 * scale, rel=1e-3)


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_overflow_is_a_result(entry):
    model, batch = entry.build(0), scaled(entry.batch(0), 1e38)
    dataset = ns.sharpness(model, batch, loss_fn=entry.loss_fn, max_products=8)
    if not np.isfinite(dataset["gradient_norm"]):
        assert np.isnan(dataset["eigenvalue"]).all() and np.isnan(dataset["lowest_eigenvalue"])
        assert np.isnan(dataset["edge_lr"]) and np.isnan(dataset["curvature"])
        assert not dataset["converged"].any() and not dataset["lowest_converged"]
        assert int(dataset["num_products"]) == 0


def test_a_product_that_overflows_is_nan():
    model = Quadratic(np.diag([3e38, 3e38]), [0.1, 0.2])
    dataset = ns.sharpness(model, None, loss_fn=lambda m, b: m(b) * m(b))
    assert np.isnan(dataset["eigenvalue"]).all() and not dataset["converged"].any()


def test_products_that_run_out_are_said():
    entry = by_name("cnn_inplace")
    dataset = ns.sharpness(entry.build(0), entry.batch(0), max_products=3, tolerance=1e-6)
    assert int(dataset["num_products"]) == 3 and not dataset["converged"].any()
    _, matrix = dense_hessian(in_float64(entry.build(0)), in_float64(entry.batch(0)), None)
    eigenvalue = np.linalg.eigvalsh(matrix)[-1]
    assert float(dataset["eigenvalue"][0]) <= eigenvalue * (1 + 1e-5), "a Ritz value lies below the eigenvalue"


def test_channels_last_and_frozen_parts_keep_their_place():
    entry = by_name("functional_relu")
    plain, batch = entry.build(0), entry.batch(0)
    there = entry.build(0).to(memory_format=torch.channels_last)
    there.conv2.bias.requires_grad_(False)
    plain.conv2.bias.requires_grad_(False)
    with hessian(plain, batch) as a, hessian(there, batch) as b:
        assert a.size == b.size
        lengths = [float(h.product(torch.ones(h.size)).norm()) for h in (a, b)]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)


class FirstOrderOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def test_what_cannot_be_differentiated_twice_is_said_in_one_line():
    model = nn.Linear(3, 4)
    batch = torch.randn(5, 3), torch.randint(4, (5,))
    with pytest.raises(InvalidModel, match="Linear cannot be differentiated twice") as error:
        ns.sharpness(model, batch, loss_fn=lambda m, b: default_loss(lambda x: FirstOrderOnly.apply(m(x)), b))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_eigenvalues": 0}, "num_eigenvalues must be at least 1, not 0"),
        ({"num_eigenvalues": 5000, "max_products": 6000}, "num_eigenvalues is 5000, but the loss depends on"),
        ({"num_eigenvalues": 5, "max_products": 5}, "need 6 or more"),
        ({"lr": 0.0}, "lr must be positive and finite, not 0.0"),
        ({"momentum": 1.0}, "momentum must lie in 0 to 1"),
        ({"tolerance": 0.0}, "tolerance must lie between 0 and 1"),
    ],
)
def test_numbers_that_cannot_be(options, said):
    entry = by_name("mlp")
    with pytest.raises(InvalidConfig, match=said):
        ns.sharpness(entry.build(0), entry.batch(0), **options)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=12), st.integers(0, 1000))
def test_error_bounds_hold_on_the_way(eigenvalues, seed):
    """Of a random symmetric matrix, from the fourth product on; before that one or two Ritz values stand for all."""
    rng = np.random.default_rng(seed)
    size = len(eigenvalues)
    rotation = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = torch.from_numpy(rotation @ np.diag(eigenvalues) @ rotation.T)
    start = torch.from_numpy(rng.standard_normal(size))
    slack = 1e-9 * max(1.0, np.abs(eigenvalues).max())
    for known in lanczos(lambda v: matrix @ v, start):
        distances = np.abs(known.values[:, None] - np.array(eigenvalues)[None]).min(1)
        assert (distances <= known.residuals + slack).all()
        assert known.values[0] <= max(eigenvalues) + slack and known.values[-1] >= min(eigenvalues) - slack
    assert len(known.values) == size
    np.testing.assert_allclose(known.values, np.sort(eigenvalues)[::-1], atol=slack)


def test_plot_shows_eigenvalues_threshold_and_what_did_not_converge():
    entry = by_name("batch_norm")
    dataset = ns.sharpness(entry.build(0), entry.batch(0), num_eigenvalues=3, max_products=5, lr=0.1)
    ax = ns.plot_sharpness(dataset)
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_array_equal(lines["eigenvalue of the Hessian"].get_ydata(), dataset["eigenvalue"])
    assert lines["threshold 2(1 + μ)/lr"].get_ydata()[0] == pytest.approx(20)
    assert ("not converged" in lines) == (not dataset["converged"].all())
    assert ax.get_yscale() == "symlog" and ax.get_xlabel() == "rank, the largest first"


def test_plot_along_another_dimension_draws_the_largest_and_marks_what_is_not_finite():
    import xarray as xr

    entry = by_name("mlp")
    parts = [ns.sharpness(entry.build(seed), entry.batch(0), num_eigenvalues=2) for seed in range(3)]
    dataset = xr.concat(parts, xr.DataArray([0, 5, 10], dims="epoch", name="epoch"), data_vars="all")
    dataset["eigenvalue"][1] = np.nan
    dataset["converged"][1] = False
    ax = ns.plot_sharpness(dataset, along="epoch")
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_array_equal(lines["eigenvalue of the Hessian"].get_ydata(), dataset["eigenvalue"][:, 0])
    np.testing.assert_array_equal(lines["not finite"].get_xdata(), [5])
    with pytest.raises(InvalidConfig, match="unknown dimension 'lr'"):
        ns.plot_sharpness(dataset, along="lr")


class DetachedBackward(torch.autograd.Function):
    """Its backward pass is computed outside of autograd, as hand-written kernels do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return (2 * ctx.saved_tensors[0] * gradient).detach()


def test_a_gradient_that_hides_its_own_derivative_never_passes_for_converged():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, last = nn.Linear(3, 6), nn.Linear(6, 4)
        batch = torch.randn(5, 3), torch.randint(4, (5,))
    model = nn.Sequential(first, last)
    loss_fn = lambda _, b: default_loss(lambda x: last(DetachedBackward.apply(first(x))), b)  # noqa: E731
    dataset = ns.sharpness(model, batch, loss_fn=loss_fn)
    assert not dataset["converged"].any() and not dataset["lowest_converged"]
    assert float(dataset["error"][0]) > 0.01 * float(dataset["eigenvalue"][0])


class FusedAttention(nn.Module):
    """Attention by the kernel that torch chooses: the fast ones have no second derivative."""

    def __init__(self):
        super().__init__()
        self.maps, self.head = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x):
        queries, keys, values = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.maps(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.head(y.transpose(1, 2).flatten(2).mean(1))


def test_fused_attention_is_differentiated_twice_also_where_gradients_are_off():
    model, batch = FusedAttention(), (torch.randn(5, 6, 8), torch.randint(4, (5,)))
    with torch.no_grad():
        dataset = ns.sharpness(model, batch)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, matrix = dense_hessian(in_float64(model), in_float64(batch), None)
    assert float(dataset["eigenvalue"][0]) == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-3)


def test_an_edge_that_nothing_is_known_of_is_nan() -> None:
    """One positive eigenvalue behind many large negative ones: a few products see only these."""
    model = Quadratic(np.diag([*np.linspace(-9e4, -1e5, 60), 1e-3]), [1.0] * 61)
    dataset = ns.sharpness(model, None, loss_fn=value, max_products=3)
    assert float(dataset["eigenvalue"][0]) < 0 and not dataset["converged"].any()
    assert np.isnan(dataset["edge_lr"])


@pytest.mark.parametrize("weight", [0.5, -0.5])
def test_of_one_parameter_the_curvature_is_found_whichever_way_the_gradient_points(weight):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    batch = (torch.ones(4, 1), torch.zeros(4, 1))
    dataset = ns.sharpness(model, batch, loss_fn=lambda model, batch: (model(batch[0]) - batch[1]).square().mean())
    assert dataset["converged"].all() and float(dataset["eigenvalue"][0]) == pytest.approx(2, rel=1e-6)


def test_a_hard_sigmoid_is_differentiated_twice():
    """Torch's own kernel is not; the same function of ReLU6 is."""

    class Spelled(nn.Module):
        def forward(self, x):
            return nn.functional.relu6(x + 3) / 6

    def net(activation):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), activation, nn.Linear(6, 3))

    torch.manual_seed(1)
    batch = torch.randn(8, 5), torch.arange(8) % 3
    found = [float(ns.sharpness(net(act), batch)["eigenvalue"][0]) for act in (nn.Hardsigmoid(inplace=True), Spelled())]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
