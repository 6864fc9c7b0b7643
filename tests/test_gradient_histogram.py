"""Gradient histograms: every entry counted once, at the range of the data, and spread and tails of a float64 twin."""

import copy
import math

import matplotlib
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import ZOO, by_name, in_float64, scaled

import normscope as ns
from normscope.errors import InvalidConfig, InvalidModel
from normscope.model.layers import owns_weight
from normscope.model.loss import default_loss
from normscope.probes.gradient_histogram import histogram, kurtosis, tail_index
from normscope.results import attribute

matplotlib.use("Agg")


def naive_gradients(model, batch, loss_fn=None):
    """{path: gradient entries of its own weights} by `.backward()` on a deep copy."""
    net = copy.deepcopy(model).train()
    net.zero_grad()
    (loss_fn or default_loss)(net, batch).backward()
    found = {}
    for path, module in net.named_modules():
        if owns_weight(module):
            own = [p.grad for p in module.parameters(recurse=False) if p.ndim >= 2 and p.grad is not None]
            if own:
                found[path] = np.concatenate([g.double().numpy().ravel() for g in own])
    return found


def hill(values):
    """1 / mean log excess of the largest 5 % of the magnitudes over the next one, in plain numpy."""
    sizes = np.sort(np.abs(values[values != 0]))[::-1]
    k = min(max(1, round(0.05 * len(sizes))), len(sizes) - 1)
    return 1 / np.mean(np.log(sizes[:k] / sizes[k]))


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_equals_its_twin(entry):
    model, batch = entry.build(0), entry.batch(0)
    torch.manual_seed(7)
    dataset = ns.gradient_histogram(model, batch, loss_fn=entry.loss_fn, num_bins=17)
    torch.manual_seed(7)
    twin_of = (model, batch) if entry.random else (in_float64(model), in_float64(batch))
    twin = naive_gradients(*twin_of, entry.loss_fn)
    # float32 gradients of networks a few layers deep; bfloat16 ones have eight bits. A kurtosis is a fourth power.
    rtol = 5e-2 if entry.dtype == torch.bfloat16 else 1e-5
    assert set(dataset["layer"].values.tolist()) == set(twin)
    for path, values in twin.items():
        one = dataset.sel(layer=path)
        assert one["num_entries"] == len(values) == one["count"].sum()
        assert one["num_below"] == one["num_above"] == one["num_not_finite"] == 0
        assert one["num_zero"] == (values == 0).sum()
        scale = np.abs(values).max()
        np.testing.assert_allclose(one["std"], values.std(), rtol=rtol)
        np.testing.assert_allclose(one["mean"], values.mean(), rtol=rtol, atol=rtol * scale)
        np.testing.assert_allclose(
            [one["minimum"], one["maximum"]], [values.min(), values.max()], rtol=rtol, atol=rtol * scale
        )
        np.testing.assert_allclose(one["kurtosis"], scipy.stats.kurtosis(values, fisher=False), rtol=4 * rtol)
        assert one["bin_edge"][0] == one["minimum"] and one["bin_edge"][-1] == one["maximum"]


@pytest.mark.parametrize("entry", [e for e in ZOO if not e.random and e.dtype == torch.float32], ids=str)
def test_counts_and_tails_are_those_of_the_very_same_gradient(entry):
    model, batch = entry.build(0), entry.batch(0)
    dataset = ns.gradient_histogram(model, batch, loss_fn=entry.loss_fn, num_bins=17)
    for path, values in naive_gradients(model, batch, entry.loss_fn).items():
        one = dataset.sel(layer=path)
        edges = np.histogram_bin_edges(values, bins=17)
        np.testing.assert_array_equal(one["bin_edge"], edges)
        np.testing.assert_array_equal(one["count"], np.histogram(values, bins=edges)[0])
        np.testing.assert_allclose(one["tail_index"], hill(values), rtol=1e-9)


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)


@given(st.lists(numbers, min_size=1, max_size=60), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_every_entry_is_counted_once(values, num_bins):
    counts, edges = histogram(np.array(values), num_bins)
    finite = [v for v in values if math.isfinite(v)]
    assert counts.sum() == len(finite)
    if finite:
        assert edges[0] <= min(finite) and edges[-1] >= max(finite)
        np.testing.assert_array_equal(counts, np.histogram(finite, bins=edges)[0])
    else:
        assert np.isnan(edges).all()


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_what_lies_beyond_given_limits_is_counted_too(values):
    layer = nn.Linear(len(values), 1, bias=False)
    x = torch.tensor([values])
    dataset = ns.gradient_histogram(layer, x, loss_fn=lambda m, x: m(x).sum(), limits=(-1, 2), num_bins=5)
    one = dataset.isel(layer=0)
    assert one["num_below"] == sum(v < -1 for v in values) and one["num_above"] == sum(v > 2 for v in values)
    assert one["count"].sum() + one["num_below"] + one["num_above"] == len(values)
    np.testing.assert_allclose(one["bin_edge"], np.linspace(-1, 2, 6))


def test_known_tails():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(200_000, generator=generator).double().numpy()
    uniform = torch.rand(200_000, generator=generator).double().numpy()
    laplace = -np.log(uniform) * np.sign(normal)
    pareto = uniform ** (-1 / 1.5)
    # Standard errors: kurtosis of a normal √(24/N) = 0.011, of a Laplace about 0.2; Hill's index α/√k = 1 %.
    assert float(kurtosis(normal)) == pytest.approx(3, abs=0.06)
    assert float(kurtosis(laplace)) == pytest.approx(6, abs=0.6)
    assert float(tail_index(normal)) == pytest.approx(6.0, abs=0.25)
    assert float(tail_index(laplace)) == pytest.approx(1 / 0.2610, rel=0.05)
    assert float(tail_index(pareto)) == pytest.approx(1.5, rel=0.05)
    assert float(tail_index(np.array([1.0, math.e]))) == pytest.approx(1)
    assert float(kurtosis(np.array([-1.0, 1.0]))) == 1  # the smallest there is


@pytest.mark.parametrize("factor", [1e-45, 1e38])
def test_tails_do_not_depend_on_the_scale_even_at_the_ends_of_float32(factor):
    values = np.random.default_rng(0).normal(size=500)
    assert kurtosis(values * factor) == pytest.approx(kurtosis(values), rel=1e-12)
    assert tail_index(values * factor) == pytest.approx(tail_index(values), rel=1e-12)


def test_exact_zeros_are_counted_and_not_in_the_tail():
    values = np.concatenate([np.zeros(1000), np.random.default_rng(0).normal(size=1000)])
    assert tail_index(values) == tail_index(values[1000:])
    assert math.isnan(tail_index(np.zeros(5)))
    counts, edges = histogram(np.zeros(5), 3)
    close = 1e6 * (1 + 1e-16 * np.arange(3))
    assert histogram(close, 9)[0].sum() == 3 and histogram(close, 9)[1][0] < 6e5
    assert counts.tolist() == [0, 5, 0] and edges.tolist() == pytest.approx([-0.5, -1 / 6, 1 / 6, 0.5])


def test_a_gradient_of_zeros_is_a_result():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    nn.init.zeros_(model[1].weight)
    one = ns.gradient_histogram(model, (torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))).sel(layer="0")
    assert one["num_zero"] == 12 and one["std"] == 0 and np.isnan(one["kurtosis"]) and np.isnan(one["tail_index"])


def test_what_is_not_finite_is_a_result():
    layer = nn.Linear(4, 1, bias=False)
    x = torch.tensor([[1.0, -2.0, math.inf, math.nan]])
    one = ns.gradient_histogram(layer, x, loss_fn=lambda m, x: m(x).sum()).isel(layer=0)
    assert one["num_not_finite"] == 2 and one["count"].sum() == 2 and one["num_entries"] == 4
    assert one["bin_edge"][0] == -2 and one["bin_edge"][-1] == 1
    assert all(np.isnan(one[name]) for name in ("std", "mean", "kurtosis", "tail_index", "minimum", "maximum"))


def test_an_exploded_gradient_is_still_within_float64():
    model, batch = by_name("regression").build(0), by_name("regression").batch(0)
    loss_fn = by_name("regression").loss_fn
    dataset = ns.gradient_histogram(model, scaled(batch, 1e12), loss_fn=loss_fn)
    plain = ns.gradient_histogram(model, batch, loss_fn=loss_fn)
    assert np.isfinite(dataset["kurtosis"]).all() and (dataset["std"] > 1e20 * plain["std"]).all()


def test_the_mode_is_training_whatever_it_was():
    model, batch = by_name("batch_norm").build(0), by_name("batch_norm").batch(0)
    expected = ns.gradient_histogram(model, batch)
    assert ns.gradient_histogram(model.eval(), batch).equals(expected)


class Backwards(nn.Module):
    """Calls its layers in another order than it names them."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

    def forward(self, x):
        return self.last(self.first(x))


def test_layers_come_as_they_are_called():
    dataset = ns.gradient_histogram(Backwards(), (torch.ones(4, 3), torch.tensor([0, 1, 0, 1])))
    assert dataset["layer"].values.tolist() == ["first", "last"]


def test_layers_in_execution_order_and_those_without_a_gradient():
    frozen = by_name("frozen")
    dataset = ns.gradient_histogram(frozen.build(0), frozen.batch(0))
    assert dataset["layer"].values.tolist() == ["2", "4"] and attribute(dataset, "left_out") == ["0"]
    assert dataset["depth"].values.tolist() == [2, 3]
    attention = by_name("attention")
    dataset = ns.gradient_histogram(attention.build(0), attention.batch(0))
    depth = dict(zip(dataset["layer"].values.tolist(), dataset["depth"].values, strict=True))
    assert depth["attention"] == 1 and depth["head"] == 4
    assert np.isnan(depth["attention.out_proj"])  # its weight is used without a call of its own
    with pytest.raises(InvalidModel, match="none of 0 has a gradient"):
        ns.gradient_histogram(frozen.build(0), frozen.batch(0), layers="0")


@pytest.mark.parametrize("options", [{"num_bins": 0}, {"limits": (1.0, 1.0)}, {"limits": (0.0, math.inf)}])
def test_options_that_cannot_be_are_refused(options):
    model, batch = by_name("mlp").build(0), by_name("mlp").batch(0)
    with pytest.raises(InvalidConfig, match=next(iter(options))):
        ns.gradient_histogram(model, batch, **options)


def test_the_plot_shows_every_entry():
    model, batch = by_name("mlp").build(0), by_name("mlp").batch(0)
    dataset = ns.gradient_histogram(model, batch)
    ax = ns.plot_gradient_histogram(dataset, layer="2")
    outline = ax.patches[0]
    values, edges, _ = outline.get_data()
    assert values.sum() == 100 and edges[0] == dataset["minimum"].sel(layer="2")
    assert ax.get_yscale() == "log" and ax.get_ylim()[1] > values.max()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("gradient entry", "number of entries")
    assert not ax.texts
    with pytest.raises(InvalidConfig, match="no layer named: choose one of the 3"):
        ns.plot_gradient_histogram(dataset)
    with pytest.raises(InvalidConfig, match="no layer '7'"):
        ns.plot_gradient_histogram(dataset, layer="7")
    narrow = ns.gradient_histogram(model, batch, layers="2", limits=(-1e-3, 1e-3))
    beyond = int(narrow["num_below"].item() + narrow["num_above"].item())
    assert ns.plot_gradient_histogram(narrow).texts[0].get_text() == f"{beyond} entries in no bin"
    matplotlib.pyplot.close("all")


def test_the_plot_says_that_nothing_is_finite():
    layer, x = nn.Linear(2, 1, bias=False), torch.full((1, 2), math.nan)
    dataset = ns.gradient_histogram(layer, x, loss_fn=lambda m, x: m(x).sum())
    ax = ns.plot_gradient_histogram(dataset)
    assert not ax.patches and ax.texts[0].get_text() == "2 entries in no bin"
    matplotlib.pyplot.close("all")
