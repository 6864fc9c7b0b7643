"""Gradient norms: weights and activations against a naive float64 twin, in known cases, and drawn."""

import copy

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from zoo import ZOO, by_name, in_float64, scaled

import normscope as ns
from normscope.errors import InvalidModel
from normscope.model.layers import owns_weight
from normscope.model.loss import default_loss
from normscope.paper.exhibit import joined


def twin(model, batch, loss_fn=None):
    """{layer: (weight gradient, weight, output gradient, outputs)} of a deep copy, keeping every output's gradient by
    adding a zero of its own to it."""
    net = copy.deepcopy(model).train()
    net.zero_grad()
    zeros, counts, modules = {}, {}, {}

    def hook_for(path):
        def hook(module, _inputs, output):
            counts[path] = counts.get(path, 0) + 1
            name = path if counts[path] == 1 else f"{path}#{counts[path]}"
            modules[name] = module
            tensor = output[0] if isinstance(output, tuple) else output
            zeros[name] = torch.zeros_like(tensor, requires_grad=True)
            shifted = tensor + zeros[name]
            return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

        return hook

    for path, module in net.named_modules():
        inner = {part for part in module.modules() if part is not module}
        if owns_weight(module) and not any(owns_weight(part) for part in inner - {getattr(module, "out_proj", None)}):
            module.register_forward_hook(hook_for(path))
    (loss_fn or default_loss)(net, batch).backward()

    def norm(tensors):
        return np.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))

    found = {}
    for name, module in modules.items():
        own = [p for p in module.parameters(recurse=False) if p.ndim >= 2]
        gradients = [p.grad for p in own if p.grad is not None]
        output = zeros[name].grad
        found[name] = (norm(gradients) if gradients else np.nan, norm(own), norm([output]), output.numel())
    return found


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_equals_its_twin(entry):
    model, batch = entry.build(0), entry.batch(0)
    torch.manual_seed(7)
    dataset = ns.gradient_norms(model, batch, loss_fn=entry.loss_fn)
    torch.manual_seed(7)
    found = twin(*((model, batch) if entry.random else (in_float64(model), in_float64(batch))), entry.loss_fn)
    rtol = 5e-2 if entry.dtype == torch.bfloat16 else 1e-5  # eight bits; float32 through a few layers
    assert set(dataset["layer"].values) == set(found)
    for name, (weight_gradient, weight, output_gradient, outputs) in found.items():
        one = dataset.sel(layer=name)
        np.testing.assert_allclose(one["weight_gradient_norm"], weight_gradient, rtol=rtol)
        np.testing.assert_allclose(one["weight_norm"], weight, rtol=rtol)
        np.testing.assert_allclose(one["update_ratio"], weight_gradient / weight, rtol=rtol)
        if entry.name == "frozen" and name == "0":  # in front of all that is trained, nothing is differentiated
            assert np.isnan(one["activation_gradient_norm"]) and not one["has_activation_gradient"]
            continue
        np.testing.assert_allclose(one["activation_gradient_norm"], output_gradient, rtol=rtol)
        np.testing.assert_allclose(one["activation_gradient_rms"], output_gradient / np.sqrt(outputs), rtol=rtol)
        assert one["has_weight_gradient"] == (not np.isnan(weight_gradient)) and one["has_activation_gradient"]


def test_in_a_chain_of_orthogonal_layers_the_activations_gradient_keeps_its_norm():
    """Without nonlinearity the backward pass is a product of the same matrices: scaled by 2, it doubles each layer."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(6)])
    for layer in model:
        nn.init.orthogonal_(layer.weight, gain=2)
    dataset = ns.gradient_norms(model, (torch.randn(5, 8), torch.randint(8, (5,))))
    norms = dataset["activation_gradient_norm"].values
    np.testing.assert_allclose(norms[:-1] / norms[1:], 2, rtol=1e-5)
    np.testing.assert_allclose(dataset["weight_norm"], 2 * np.sqrt(8), rtol=1e-6)
    assert dataset["depth"].values.tolist() == [1, 2, 3, 4, 5, 6]


def test_what_has_no_gradient_says_so():
    model, batch = by_name("frozen").build(0), by_name("frozen").batch(0)
    dataset = ns.gradient_norms(model, batch)
    assert dataset["has_weight_gradient"].values.tolist() == [False, True, True]
    assert dataset["has_activation_gradient"].values.tolist() == [False, True, True]
    first = dataset.isel(layer=0)
    assert np.isnan(first["weight_gradient_norm"]) and np.isnan(first["activation_gradient_rms"])
    assert first["weight_norm"] > 0 and first["num_weights"] == 70


def test_a_weight_of_zeros_has_an_infinite_ratio_and_one_of_zero_gradient_none():
    model = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 4))
    nn.init.zeros_(model[2].weight)
    dataset = ns.gradient_norms(model, by_name("mlp").batch(0))
    assert dataset["update_ratio"][1] == np.inf
    assert dataset["weight_gradient_norm"][0] == 0 and dataset["update_ratio"][0] == 0


class ChangedView(nn.Module):
    """A layer that gives a view, which is then changed in place: its hooks fall out of the graph."""

    class Half(nn.Linear):
        def forward(self, x):
            return super().forward(x)[:, :4]

    def __init__(self):
        super().__init__()
        self.first, self.head = self.Half(7, 8), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(torch.relu_(self.first(x)))


def test_a_view_changed_in_place_keeps_its_gradient():
    model, batch = ChangedView(), by_name("mlp").batch(0)
    dataset = ns.gradient_norms(model, batch)
    assert dataset["has_activation_gradient"].all()
    outputs = model.first(batch[0])
    outputs.retain_grad()
    default_loss(nn.Sequential(nn.ReLU(), model.head), (outputs, batch[1])).backward()
    np.testing.assert_allclose(dataset["activation_gradient_norm"][0], outputs.grad.norm().item(), rtol=1e-5)


def test_gradients_that_float32_cannot_square():
    """A gradient of 1e25 is finite, its float32 square is not; a NaN in one example is the network's own."""
    entry = by_name("mlp")
    model, batch = entry.build(0), scaled(entry.batch(0), 1e25)

    def tilt(model, batch):
        return model(batch[0]).sum()

    dataset = ns.gradient_norms(model, batch, loss_fn=tilt)
    found = twin(in_float64(model), in_float64(batch), tilt)
    np.testing.assert_allclose(dataset["weight_gradient_norm"], [row[0] for row in found.values()], rtol=1e-5)
    x = entry.batch(0)[0].clone()
    x[0] = torch.nan
    dataset = ns.gradient_norms(model, (x, entry.batch(0)[1]))
    assert dataset["weight_gradient_norm"].isnull().all() and dataset["has_weight_gradient"].all()


def test_layers_by_pattern():
    model, batch = by_name("batch_norm").build(0), by_name("batch_norm").batch(0)
    dataset = ns.gradient_norms(model, batch, layers=["1", "8"])
    assert dataset["layer"].values.tolist() == ["1", "8"]
    assert dataset["num_weights"][0] == 12  # scales and shifts, where there is nothing with two dimensions
    with pytest.raises(InvalidModel, match="no layer matches 'conv'"):
        ns.gradient_norms(model, batch, layers="conv")


@pytest.fixture(scope="module")
def over_networks():
    batch = (torch.randn(6, 3, 8, 8), torch.randint(4, (6,)))
    nets = [
        [ns.build_net("resnet8", norm=norm, seed=seed, num_classes=4, width=4) for seed in (0, 1)]
        for norm in ("batch", "none")
    ]
    rows = [joined([ns.gradient_norms(net, batch) for net in row], "seed", (0, 1)) for row in nets]
    return joined(rows, "norm", ("batch", "none"))


@pytest.mark.parametrize("quantity", ["activation_gradient_rms", "weight_gradient_norm", "update_ratio"])
def test_the_picture_has_a_line_for_each_seed_and_their_mean(over_networks, quantity):
    ax = Figure().subplots()
    assert ns.plot_gradient_norms(over_networks, quantity=quantity, ax=ax) is ax
    assert len(ax.lines) == 6 and ax.get_yscale() == "log"
    main_path = over_networks.sel(layer=over_networks["depth"].notnull())[quantity]
    for line, (norm, seed) in zip([*ax.lines[:2], *ax.lines[3:5]], [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        np.testing.assert_allclose(line.get_ydata(), main_path.isel(norm=norm, seed=seed))
    np.testing.assert_allclose(ax.lines[2].get_ydata(), np.sqrt(np.prod(main_path.isel(norm=0).values, 0)))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["with batch norm", "without"]
    assert ax.get_ylabel() == over_networks[quantity].attrs["long_name"]


def test_what_exploded_is_drawn_as_such_and_what_is_missing_is_a_gap(over_networks):
    changed = over_networks.isel(norm=1, seed=0).copy(deep=True)
    changed["activation_gradient_rms"][2] = np.inf
    changed["activation_gradient_rms"][3] = np.nan
    changed["has_activation_gradient"][3] = False
    ax = Figure().subplots()
    ns.plot_gradient_norms(changed.drop_vars(["norm", "seed"]), ax=ax)
    line, triangles = ax.lines
    assert np.isnan(line.get_ydata()[2:4]).all()
    assert triangles.get_marker() == "^" and triangles.get_xdata().tolist() == [changed["depth"][2]]
