"""Moments along a step: equal to a float64 twin that copies the model, and finite wherever the activations are."""

import copy

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import CLASSES, ZOO, by_name, in_float64, scaled

import normscope as ns
from normscope.errors import InvalidConfig, InvalidModel
from normscope.model.layers import channel_dim, owns_weight
from normscope.model.loss import default_loss
from normscope.model.output import first_tensor

matplotlib.use("Agg")
FRACTIONS = (0.0, 0.3, 1.0)


def naive(model, batch, loss_fn, step_size, fractions):
    """{(fraction, call): (mean, variance)} from a deep copy stepped anew for every fraction, and the losses."""
    loss_fn = loss_fn or default_loss
    found, losses = {}, []
    for fraction in fractions:
        net = copy.deepcopy(model).train()
        trainable = [p for p in net.parameters() if p.requires_grad]
        state = torch.get_rng_state()
        gradients = torch.autograd.grad(loss_fn(net, batch), trainable, allow_unused=True)
        torch.set_rng_state(state)
        for parameter, gradient in zip(trainable, gradients, strict=True):
            if gradient is not None:
                parameter.data -= fraction * step_size * gradient
        seen = []

        def keep(module, _, output, seen=seen):
            tensor = first_tensor(output)
            seen.append((channel_dim(module, tensor), tensor.clone()))

        for module in net.modules():
            if owns_weight(module):
                module.register_forward_hook(keep)
        losses.append(float(loss_fn(net, batch).detach()))
        torch.set_rng_state(state)
        for i, (dim, output) in enumerate(seen):
            columns = output.movedim(dim, -1).reshape(-1, output.shape[dim])
            mean = columns.sum(0) / len(columns)
            variance = ((columns - mean) ** 2).sum(0) / len(columns)
            found[fraction, i] = (mean.detach().numpy(), variance.detach().numpy())
    return found, losses


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_equals_its_float64_twin(entry):
    model, batch = entry.build(0), entry.batch(0)
    torch.manual_seed(7)
    if entry.dtype == torch.bfloat16:  # eight bits of mantissa, over three layers and a step
        rtol, atol = 5e-2, 5e-2
    else:  # float32 passes of a few dozen summands; variances of nearly constant channels keep an absolute error
        rtol, atol = 1e-4, 1e-6
    dataset = ns.moments_along_step(model, batch, step_size=0.5, fractions=FRACTIONS, loss_fn=entry.loss_fn)
    torch.manual_seed(7)
    double = in_float64(model), in_float64(batch)
    if entry.random:  # dropout draws other masks in float64
        double = model, batch
    found, losses = naive(*double, entry.loss_fn, 0.5, FRACTIONS)
    assert len(found) == len(FRACTIONS) * dataset.sizes["layer"]
    for (fraction, i), (mean, variance) in found.items():
        at = dataset.sel(fraction=fraction).isel(layer=i)
        width = int(at["num_channels"])
        assert width == len(mean)
        np.testing.assert_allclose(at["mean"].values[:width], mean, rtol=rtol, atol=atol)
        np.testing.assert_allclose(at["variance"].values[:width], variance, rtol=rtol, atol=atol)
        assert np.isnan(at["mean"].values[width:]).all()
    np.testing.assert_allclose(dataset["loss"], losses, rtol=rtol)


def test_the_step_starts_at_the_network_as_it_is():
    entry = by_name("cnn_inplace")
    model, batch = entry.build(0), entry.batch(0)
    start = ns.moments_along_step(model, batch, step_size=3.0, fractions=[0.0]).isel(fraction=0)
    now = ns.channel_moments(model, batch)
    for moment in ("mean", "variance"):
        np.testing.assert_array_equal(start[moment], now[moment])  # the same kernels, the same bits
    np.testing.assert_array_equal(start["depth"], now["depth"])


def test_a_shared_module_is_seen_at_each_call():
    entry = by_name("shared")
    dataset = ns.moments_along_step(entry.build(0), entry.batch(0), step_size=0.1, fractions=[0, 1])
    assert dataset["layer"].values.tolist() == ["first", "twice", "twice#2", "last"]
    assert (dataset["mean"].sel(layer="twice") != dataset["mean"].sel(layer="twice#2")).all()


def test_along_an_optimizers_update_ends_where_its_own_step_does():
    entry = by_name("cnn_inplace")
    model, batch = entry.build(0), entry.batch(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        default_loss(model, batch).backward()
        optimizer.step()
    along = ns.moments_along_step(model, batch, step_size=0.1, fractions=[0, 1], optimizer=optimizer)
    optimizer.zero_grad()
    default_loss(model, batch).backward()
    optimizer.step()
    there = ns.channel_moments(model, batch)
    for moment in ("mean", "variance"):  # every parameter is rounded twice on the way
        np.testing.assert_allclose(along[moment].sel(fraction=1), there[moment], rtol=1e-4, atol=1e-6)


def test_a_linear_layer_moves_linearly():
    """The first layer sees the same input all along: its mean is linear in the fraction, its variance quadratic."""
    entry = by_name("mlp")
    fractions = np.linspace(0, 1, 5)
    dataset = ns.moments_along_step(
        entry.build(0).double(), in_float64(entry.batch(0)), step_size=2.0, fractions=fractions, layers="0"
    )
    mean, variance = (dataset[name].isel(layer=0).values for name in ("mean", "variance"))
    np.testing.assert_allclose(np.diff(mean, 2, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.diff(variance, 3, axis=0), 0, atol=1e-12)


class OverLargest(nn.Module):
    """A norm that squares nothing: torch's own layer norm overflows at 1e25 itself, with torch 2.6 to NaN."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.abs().amax(1, keepdim=True)


def test_statistics_do_not_overflow_before_the_network_does():
    """Activations of 1e25 are fine in float32; their squares are not."""
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(7, 6), OverLargest(), nn.Linear(6, CLASSES)), by_name("mlp").batch(0)
    batch = scaled(batch, 1e25)
    dataset = ns.moments_along_step(model, batch, step_size=1e-3, fractions=[0, 1], layers="0")
    variance = dataset["variance"].isel(layer=0)
    assert np.isfinite(variance).all() and (variance > 1e38).any()
    assert np.isfinite(dataset["loss"]).all()


def test_an_overflow_of_the_network_is_kept():
    entry = by_name("mlp")
    model, batch = entry.build(0), entry.batch(0)
    dataset = ns.moments_along_step(model, batch, step_size=1e30, fractions=[0, 1])
    last = dataset["variance"].isel(layer=-1, channel=slice(CLASSES))
    assert np.isfinite(last.sel(fraction=0)).all()
    assert not np.isfinite(last.sel(fraction=1)).any()
    assert not np.isfinite(dataset["loss"].sel(fraction=1))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5, unique=True), st.floats(1e-6, 1e2))
def test_a_point_depends_on_its_own_step_size_only(fractions, step_size):
    entry = by_name("batch_norm")
    model, batch, points = entry.build(0), entry.batch(0), sorted(fractions)
    whole = ns.moments_along_step(model, batch, step_size=step_size, fractions=points)
    alone = ns.moments_along_step(model, batch, step_size=step_size, fractions=points[-1:])
    assert whole.isel(fraction=[-1]).equals(alone)


@pytest.mark.parametrize("step_size", [0, -1.0, float("nan"), float("inf")])
def test_refuses_a_step_size_that_is_none(step_size):
    entry = by_name("mlp")
    with pytest.raises(InvalidConfig, match=f"positive and finite, not {step_size}"):
        ns.moments_along_step(entry.build(0), entry.batch(0), step_size=step_size)


@pytest.mark.parametrize("fractions", [[], [-0.1, 1], [1, 0.5], [0.5, 0.5], [0, float("nan")], [[0, 1]]])
def test_refuses_fractions_that_are_none(fractions):
    entry = by_name("mlp")
    with pytest.raises(InvalidConfig, match="fractions must be"):
        ns.moments_along_step(entry.build(0), entry.batch(0), step_size=1, fractions=fractions)


class Fickle(nn.Module):
    """Leaves its second layer out once the first has moved."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(7, 4), nn.Linear(4, 4)
        self.start = self.first.weight.detach().clone()

    def forward(self, x):
        x = self.first(x)
        return self.second(x) if torch.equal(self.first.weight, self.start) else x


def test_refuses_a_model_whose_calls_change_on_the_way():
    with pytest.raises(InvalidModel, match="calls other layers"):
        ns.moments_along_step(Fickle(), by_name("mlp").batch(0), step_size=0.1, fractions=[0, 1])
    alone = ns.moments_along_step(Fickle(), by_name("mlp").batch(0), step_size=0.1, fractions=[0, 1], layers="first")
    assert alone["layer"].values.tolist() == ["first"]


def test_refuses_layers_that_are_never_called():
    model = by_name("mlp").build(0)
    model.idle = nn.Linear(3, 3)
    model.forward = lambda x: nn.Sequential(*list(model)[:5])(x)
    with pytest.raises(InvalidModel, match="none of the chosen layers is called"):
        ns.moments_along_step(model, by_name("mlp").batch(0), step_size=0.1, layers="idle")


@pytest.fixture
def grown():
    """Two layers of three and two channels: variance grows tenfold a tenth of the step, one cell overflowed."""
    entry = by_name("mlp")
    dataset = ns.moments_along_step(
        entry.build(0), entry.batch(0), step_size=0.1, fractions=np.linspace(0, 1, 11), layers=["2", "4"]
    )
    dataset["variance"][:] = 10.0 ** np.arange(11)[:, None, None]
    dataset["variance"][10, 1, 0] = np.inf
    dataset["mean"][:] = np.linspace(-3, 2, 11)[:, None, None]
    return dataset


def figure_axes():
    return matplotlib.figure.Figure().subplots()


def test_picture_shows_channels_by_percent_of_the_step(grown):
    ax = ns.plot_moments_along_step(grown, ax=figure_axes())
    mesh = ax.collections[0]
    shown = mesh.get_array()
    assert ax.get_title() == "4" and shown.shape == (11, CLASSES)  # the deepest layer, without its padding
    assert ax.get_xlabel() == "channel" and ax.get_ylabel() == "fraction of the step [%]"
    assert ax.get_ylim() == pytest.approx((-5, 105))
    assert mesh.norm.vmin == 0 and mesh.norm.vmax == 1e10
    assert np.argwhere(shown.mask).tolist() == [[10, 0]]  # what overflowed is masked, and nothing else
    assert matplotlib.colors.to_hex(mesh.cmap.get_bad()) == matplotlib.colors.to_hex("0.35")
    assert mesh.get_rasterized()


def test_pictures_of_means_are_symmetric_about_zero(grown):
    mesh = ns.plot_moments_along_step(grown, moment="mean", layer="2", ax=figure_axes()).collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-3, 3)
    assert mesh.get_array().shape == (11, 10)


@pytest.mark.parametrize("moment", ["mean", "variance"])
def test_a_logarithmic_scale_shows_what_a_linear_one_hides(grown, moment):
    grown["variance"][0] = 0.0
    mesh = ns.plot_moments_along_step(grown, moment=moment, log=True, ax=figure_axes()).collections[0]
    places = mesh.norm(mesh.get_array()[:, 1])
    assert (np.diff(places) >= 0).all() and len(set(places.tolist())) > 5
    assert np.isfinite(places).all()  # a variance of zero is drawn at the lower end


def test_a_picture_of_all_zeros_or_all_inf_can_be_drawn(grown):
    for value in (0.0, np.inf):
        for log in (False, True):
            grown["variance"][:] = value
            ax = ns.plot_moments_along_step(grown, log=log, ax=figure_axes())
            ax.figure.draw_without_rendering()
            assert np.ma.getmaskarray(ax.collections[0].get_array()).all() == np.isinf(value)


def test_picture_refuses_what_it_cannot_show(grown):
    with pytest.raises(InvalidConfig, match="unknown moment 'std'"):
        ns.plot_moments_along_step(grown, moment="std")
    with pytest.raises(InvalidConfig, match="unknown layer 'fc'"):
        ns.plot_moments_along_step(grown, layer="fc")
    with pytest.raises(InvalidConfig, match="choose along seed"):
        ns.plot_moments_along_step(grown.expand_dims("seed"))
