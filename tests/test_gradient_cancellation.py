"""Gradient cancellation: equal to a float64 twin that writes every summand down, and true to its definition."""

import copy
import math

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from zoo import ZOO, by_name, disturb, in_float64, no_trace

import normscope as ns
from normscope.errors import InvalidModel
from normscope.model.loss import default_loss
from normscope.results import attribute

matplotlib.use("Agg")


def naive(model, batch, loss_fn=None):
    """{path: (a, b, n)}: every summand is a gradient at an output times how that output moves with the entry."""
    net, calls = copy.deepcopy(model).train(), []
    paths, hooks = {}, []
    for path, module in net.named_modules():
        trainable = getattr(module, "weight", None) is not None and module.weight.requires_grad
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and trainable:
            paths[module] = path

            def hook(module, args, output):
                calls.append((module, args[0].detach().clone(), output))
                output.retain_grad()
                return output.clone()  # so that nothing behind can change it in place

            hooks.append(module.register_forward_hook(hook))
    (loss_fn or default_loss)(net, batch).backward()
    for handle in hooks:
        handle.remove()
    sums = {}
    for module, x, y in calls:
        jacobian = torch.autograd.functional.jacobian(
            lambda w, m=module, x=x: torch.func.functional_call(m, {"weight": w}, (x,)), module.weight.detach()
        )
        terms = y.grad.reshape(*y.shape, *[1] * module.weight.ndim) * jacobian
        terms = terms.reshape(-1, *module.weight.shape)
        per_output = y.numel() // (module.out_features if isinstance(module, nn.Linear) else module.out_channels)
        transposed = getattr(module, "transposed", False)
        n = x.numel() // module.in_channels if transposed else per_output
        first = next(p for m, p in paths.items() if m.weight is module.weight and any(c[0] is m for c in calls))
        a, b, m = sums.get(first, (0, 0, 0))
        sums[first] = a + terms.abs().sum(0), b + terms.sum(0), m + n
    return {path: (float(a.mean()), float(b.abs().mean()), n) for path, (a, b, n) in sums.items()}


def assert_same(dataset, twin, rtol):
    assert set(dataset["layer"].values.tolist()) == set(twin)
    for path, (a, b, n) in twin.items():
        one = dataset.sel(layer=path)
        np.testing.assert_allclose(one["sum_of_absolutes"], a, rtol=rtol)
        np.testing.assert_allclose(one["absolute_of_sum"], b, rtol=rtol)
        np.testing.assert_allclose(one["ratio"], a / b, rtol=rtol)
        np.testing.assert_allclose(one["normalized_ratio"], a / b / math.sqrt(n), rtol=rtol)
        assert one["num_terms"] == n


@pytest.mark.parametrize("entry", [e for e in ZOO if e.name != "attention"], ids=str)
def test_equals_its_float64_twin(entry):
    model, batch = entry.build(0), entry.batch(0)
    torch.manual_seed(7)
    dataset = ns.gradient_cancellation(model, batch, loss_fn=entry.loss_fn)
    # Dropout draws other masks in float64, so it is compared in float32.
    twin_of = (model, batch) if entry.random else (in_float64(model), in_float64(batch))
    torch.manual_seed(7)
    # float32 sums of a few hundred terms that cancel to about a tenth; bfloat16 rounds each value to 8 bits.
    assert_same(dataset, naive(*twin_of, entry.loss_fn), 5e-2 if entry.dtype == torch.bfloat16 else 2e-5)


def test_attention_gives_what_its_linear_maps_allow_and_names_the_rest():
    entry = by_name("attention")
    model, batch = entry.build(0), entry.batch(0)
    dataset = ns.gradient_cancellation(model, batch)
    left_out = ["attention", "attention.out_proj"]
    assert attribute(dataset, "left_out") == left_out
    assert dataset["layer"].values.tolist() == ["feed_forward.1", "feed_forward.3", "head"]
    assert_same(dataset, naive(in_float64(model), in_float64(batch)), 2e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 9)),
        (nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), padding="same"), (4, 5, 6)),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (2, 5, 5)),
        (nn.Conv2d(2, 4, 3, padding=(2, 1), padding_mode="circular", bias=False), (2, 5, 5)),
        (nn.Conv2d(2, 4, 3, padding="valid", stride=3), (2, 8, 8)),
        (nn.Conv3d(2, 3, 2, padding=1), (2, 3, 3, 3)),
        (nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, dilation=2, padding=1), (4, 4, 3)),
        (nn.ConvTranspose3d(2, 2, 2), (2, 2, 3, 2)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(len(value)),
)
def test_every_kind_of_convolution(layer, shape):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Tanh(), layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    batch = torch.randn(4, *shape), torch.tensor([0, 1, 2, 0])
    model(batch[0])
    assert_same(ns.gradient_cancellation(model, batch), naive(in_float64(model), in_float64(batch)), 2e-5)


def test_unbatched_images_count_as_one_example():
    torch.manual_seed(0)
    conv, image = nn.Conv2d(3, 4, 3), torch.randn(3, 6, 6)
    dataset = ns.gradient_cancellation(conv, {"input": image}, loss_fn=lambda m, b: m(**b).square().mean())
    assert dataset["num_terms"].item() == 16
    batched = ns.gradient_cancellation(conv, image[None], loss_fn=lambda m, b: m(b).square().mean())
    assert dataset["ratio"].item() == pytest.approx(batched["ratio"].item(), rel=1e-6)


class InPlace(nn.Module):
    """Linear maps on (batch, tokens, features), whose outputs are views, changed in place; the first one's too."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.third(F.relu_(self.second(F.relu_(self.first(x)))).mean(1))


def test_in_place_relu_behind_a_view_loses_no_gradient():
    torch.manual_seed(0)
    model, batch = InPlace(), (torch.randn(5, 6, 4), torch.tensor([0, 1, 2, 0, 1]))
    dataset = ns.gradient_cancellation(model, batch)
    assert dataset["layer"].values.tolist() == ["first", "second", "third"]
    assert_same(dataset, naive(in_float64(model), in_float64(batch)), 2e-5)


def test_inputs_that_require_a_gradient_themselves():
    model, batch = by_name("cnn_inplace").build(0), by_name("cnn_inplace").batch(0)
    expected = ns.gradient_cancellation(model, batch)
    leaf = batch[0].clone().requires_grad_()
    assert ns.gradient_cancellation(model, (leaf, batch[1])).equals(expected)
    assert leaf.grad is None


def test_b_is_the_mean_magnitude_of_the_gradient():
    model, batch = by_name("batch_norm").build(0), by_name("batch_norm").batch(0)
    dataset = ns.gradient_cancellation(model, batch)
    default_loss(model, batch).backward()
    for path in dataset["layer"].values.tolist():
        gradient = model.get_submodule(path).weight.grad
        # two float32 summations of the same terms
        np.testing.assert_allclose(dataset["absolute_of_sum"].sel(layer=path), gradient.abs().mean(), rtol=1e-5)


def test_a_parametrized_kernel_is_measured_as_it_is_applied():
    plain = by_name("mlp").build(0)
    batch = by_name("mlp").batch(0)
    normalized = copy.deepcopy(plain)
    parametrizations.weight_norm(normalized[2])
    # The same weight, from a direction and a length: the same forward pass up to rounding.
    expected, found = ns.gradient_cancellation(plain, batch), ns.gradient_cancellation(normalized, batch)
    np.testing.assert_allclose(found["ratio"].sel(layer="2"), expected["ratio"].sel(layer="2"), rtol=1e-4)


def test_a_penalty_on_the_weights_is_no_summand():
    model, batch = by_name("mlp").build(0), by_name("mlp").batch(0)

    def penalized(model, batch):
        return default_loss(model, batch) + sum(p.square().sum() for p in model.parameters())

    expected = ns.gradient_cancellation(model, batch)
    np.testing.assert_array_equal(ns.gradient_cancellation(model, batch, loss_fn=penalized)["ratio"], expected["ratio"])


def test_norms_hung_behind_layers_are_no_part_of_them():
    batch = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    built = ns.build_net("plain8", norm="batch", in_channels=1, width=4)
    hung = ns.with_norm(ns.build_net("plain8", in_channels=1, width=4), "batch", "everywhere", batch=batch)
    for frozen in (False, True):
        one, two = (ns.gradient_cancellation(net, batch, frozen_statistics=frozen) for net in (built, hung))
        np.testing.assert_allclose(one["ratio"], two["ratio"], rtol=1e-5)  # biases in front of norms round differently


class Checkpointed(nn.Sequential):
    """Its hidden layers are computed a second time in the backward pass."""

    def forward(self, input):
        hidden = checkpoint(nn.Sequential(*list(self)[:-1]), input, use_reentrant=False)
        assert isinstance(hidden, torch.Tensor)
        return self[-1](hidden)


def test_checkpointed_layers_are_counted_once():
    model, batch = by_name("mlp").build(0), by_name("mlp").batch(0)
    again = ns.gradient_cancellation(Checkpointed(*model), batch)
    assert again.equals(ns.gradient_cancellation(model, batch))


def test_autocast_rounds_the_network_and_not_the_sums():
    model, batch = by_name("mlp").build(0), by_name("mlp").batch(0)
    expected = ns.gradient_cancellation(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dataset = ns.gradient_cancellation(model, batch)
    assert not dataset.equals(expected)
    np.testing.assert_allclose(dataset["ratio"], expected["ratio"], rtol=5e-2)  # activations of eight bits


def test_two_layers_with_one_weight_are_one_kernel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    batch = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    dataset = ns.gradient_cancellation(model, batch)
    assert dataset["layer"].values.tolist() == ["0", "4"] and attribute(dataset, "left_out") == []
    assert dataset["num_terms"].values.tolist() == [10, 5]
    default_loss(model, batch).backward()
    # two float32 summations of the same terms
    np.testing.assert_allclose(dataset["absolute_of_sum"][0], model[0].weight.grad.abs().mean(), rtol=1e-5)


def test_a_call_without_gradient_adds_nothing():
    model, (x, y) = by_name("mlp").build(0), by_name("mlp").batch(0)

    def loss_fn(model, batch):
        with torch.no_grad():
            model(batch[0])
        return default_loss(model, batch)

    assert ns.gradient_cancellation(model, (x, y), loss_fn=loss_fn).equals(ns.gradient_cancellation(model, (x, y)))


def test_an_input_changed_in_place_after_the_call_is_said():
    class Overwrites(nn.Sequential):
        def forward(self, input):
            hidden = self[0](input)
            output = self[1](hidden)
            hidden.add_(1)
            return output

    model = Overwrites(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(InvalidModel, match="the input of 1 is changed in place"):
        ns.gradient_cancellation(model, (torch.ones(4, 3), torch.tensor([0, 1, 0, 1])))


def test_a_loss_that_differentiates_inside_itself_is_said():
    def penalized(model, x):
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return model(x).mean() + (gradient.norm(dim=1) - 1).square().mean()

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with pytest.raises(InvalidModel, match="the loss differentiates inside itself"):
        ns.gradient_cancellation(model, torch.ones(5, 3), loss_fn=penalized)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_mode_is_training_whatever_it_was(frozen):
    model, batch = by_name("batch_norm").build(0), by_name("batch_norm").batch(0)
    expected = ns.gradient_cancellation(model, batch, frozen_statistics=frozen)
    assert ns.gradient_cancellation(model.eval(), batch, frozen_statistics=frozen).equals(expected)


class OwnForward(nn.Linear):
    """A linear map of something else than its input."""

    def forward(self, input):
        return super().forward(torch.tanh(input))


def test_layers_whose_terms_are_not_known_are_named():
    torch.manual_seed(0)
    model = nn.Sequential(OwnForward(4, 4), nn.Linear(4, 3), nn.Linear(3, 3))
    model[2].requires_grad_(False)
    dataset = ns.gradient_cancellation(model, (torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])))
    assert dataset["layer"].values.tolist() == ["1"]
    assert dataset.attrs["left_out"] == '["0", "2"]'


@given(st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_the_ratio_lies_between_1_and_what_it_may_be(examples, seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    ratio = ns.gradient_cancellation(model, torch.randn(examples, 3), loss_fn=lambda m, x: m(x).square().mean())
    assert float(ratio["ratio"].item()) >= 1 - 1e-6  # the triangle inequality, up to rounding
    if examples == 1:
        assert ratio["ratio"].item() == pytest.approx(1, abs=1e-6)


def test_known_answers():
    x = torch.rand(10_000, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    signs = torch.where(torch.arange(10_000) % 2 == 0, 1.0, -1.0)
    model = nn.Linear(6, 1)

    def along(direction):
        return ns.gradient_cancellation(model, x, loss_fn=lambda m, x: (m(x)[:, 0] * direction).mean())

    same = along(torch.ones(10_000))
    assert same["ratio"].item() == pytest.approx(1, rel=1e-6)  # positive inputs, one sign of the gradient
    assert along(signs)["ratio"].item() > 50  # alternating signs cancel
    normal = torch.randn(10_000, 400, generator=torch.Generator().manual_seed(1))
    wide = nn.Linear(400, 1, bias=False)
    g = torch.randn(10_000, generator=torch.Generator().manual_seed(2))
    independent = ns.gradient_cancellation(wide, normal, loss_fn=lambda m, x: (m(x)[:, 0] * g).mean())
    # Products of two independent normal numbers: E|xg| / (E|N| std) = (2/π) / √(2/π); 400 entries scatter by 4 %.
    assert independent["normalized_ratio"].item() == pytest.approx(math.sqrt(2 / math.pi), rel=0.15)


def test_a_zero_gradient_is_a_result():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    nn.init.zeros_(model[1].weight)
    dataset = ns.gradient_cancellation(model, (torch.ones(4, 3), torch.tensor([0, 1, 0, 1])))
    assert dataset["sum_of_absolutes"].sel(layer="0") == 0 and np.isnan(dataset["ratio"].sel(layer="0"))


@pytest.mark.parametrize("factor", [1e-18, 1e25])
def test_sums_that_float32_products_cannot_hold(factor):
    """Inputs and gradients are within float32's range, their products are not."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(8, 4)

    def loss_fn(model, x):
        return (model(factor * x) * factor * 1e-3).sum()

    dataset = ns.gradient_cancellation(model, x, loss_fn=loss_fn)
    twin = naive(model.double(), x.double(), loss_fn)
    np.testing.assert_allclose(dataset["sum_of_absolutes"], twin[""][0], rtol=1e-5)
    np.testing.assert_allclose(dataset["absolute_of_sum"], twin[""][1], rtol=1e-5)


def test_nan_stays_nan():
    model, (x, y) = by_name("cnn_inplace").build(0), by_name("cnn_inplace").batch(0)
    x[0, 0, 0, 0] = float("nan")
    dataset = ns.gradient_cancellation(model, (x, y))
    assert np.isnan(dataset["ratio"].sel(layer="0"))


def test_leaves_no_trace_with_frozen_statistics_nor_when_it_fails():
    model, batch = disturb(by_name("batch_norm").build(0)), by_name("batch_norm").batch(0)
    with no_trace(model, batch):
        ns.gradient_cancellation(model, batch, frozen_statistics=True)
        with pytest.raises(ns.NormscopeError):
            ns.gradient_cancellation(model, (batch[0], batch[1] + 100), frozen_statistics=True)


def test_what_a_layer_needed_is_gone_behind_its_backward_step():
    """When the first layer's gradient arrives, at most the second one's input is still alive."""
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(6)]
    model = nn.Sequential(*blocks)
    inputs, alive = [], []

    def count(gradient):
        alive.append(sum(not storage.expired() for storage in inputs))

    blocks[0].register_forward_hook(lambda m, args, output: output.register_hook(count) and None)
    for block in blocks[1:]:
        block[0].register_forward_pre_hook(lambda m, args: inputs.append(StorageWeakRef(args[0].untyped_storage())))
    ns.gradient_cancellation(model, torch.randn(3, 4), loss_fn=lambda m, x: m(x).square().mean())
    assert len(inputs) == 5 and alive[0] <= 1


def frozen_twin(model, batch):
    """The model with its batch norms in evaluation mode, at the mean and biased variance of the batch."""
    net, found = copy.deepcopy(model).train(), []
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda m, args: found.append((m, args[0].detach().clone())))
    net(batch[0])
    for norm, x in found:
        norm.running_mean.copy_(x.mean((0, 2, 3)))
        norm.running_var.copy_(x.var((0, 2, 3), correction=0))
        norm.eval()
        norm.train = lambda mode=True: None  # the twin below puts the model in training mode
        norm._forward_pre_hooks.clear()
    return net


def test_frozen_statistics_equal_a_twin_with_fixed_affine_maps():
    model, batch = by_name("batch_norm").build(0), by_name("batch_norm").batch(0)
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
        model[1].bias.uniform_(-1, 1)
    dataset = ns.gradient_cancellation(model, batch, frozen_statistics=True)
    twin = frozen_twin(in_float64(model), in_float64(batch))
    assert_same(dataset, naive(twin, in_float64(batch)), 2e-5)
    assert not dataset["ratio"].equals(ns.gradient_cancellation(model, batch)["ratio"])


def test_frozen_statistics_of_a_token_batch_norm():
    from normscope.nets.norms import make_norm

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), make_norm("batch", 4, channel_dim=-1), nn.Linear(4, 3))
    x, y = torch.randn(6, 5, 3), torch.randint(3, (6, 5))
    frozen = ns.gradient_cancellation(model, (x, y), frozen_statistics=True)
    flat = nn.Sequential(model[0], nn.BatchNorm1d(4), model[2])
    expected = ns.gradient_cancellation(flat, (x.reshape(30, 3), y.reshape(30)), frozen_statistics=True)
    np.testing.assert_allclose(frozen["ratio"], expected["ratio"], rtol=1e-5)


def test_a_batch_norm_that_stays_in_evaluation_mode_is_frozen_already():
    model, batch = by_name("batch_norm").build(0), by_name("batch_norm").batch(0)
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.eval().train = lambda mode=True: None
    plain, frozen = (ns.gradient_cancellation(model, batch, frozen_statistics=f) for f in (False, True))
    np.testing.assert_array_equal(frozen["ratio"], plain["ratio"])


def test_nothing_to_freeze_or_to_measure_is_said():
    mlp, batch = by_name("mlp").build(0), by_name("mlp").batch(0)
    with pytest.raises(InvalidModel, match="no batch norm"):
        ns.gradient_cancellation(mlp, batch, frozen_statistics=True)
    with pytest.raises(InvalidModel, match="no layer matches 'conv'"):
        ns.gradient_cancellation(mlp, batch, layers="conv")
    frozen = by_name("frozen").build(0)
    with pytest.raises(InvalidModel, match="none of 0 is a trainable"):
        ns.gradient_cancellation(frozen, batch, layers="0")


def test_layers_by_pattern_are_the_same_numbers():
    model, batch = by_name("grouped_dilated").build(0), by_name("grouped_dilated").batch(0)
    everything = ns.gradient_cancellation(model, batch)
    second = ns.gradient_cancellation(model, batch, layers="2")
    assert second["layer"].values.tolist() == ["2"]
    np.testing.assert_allclose(second["ratio"], everything["ratio"].sel(layer=["2"]), rtol=1e-6)


def test_the_plot_shows_every_layer_and_what_has_no_value():
    model, batch = by_name("mlp").build(0), by_name("mlp").batch(0)
    dataset = ns.gradient_cancellation(model, batch)
    ax = ns.plot_gradient_cancellation(dataset)
    assert ax.get_yscale() == "log" and ax.get_ylabel() == "cancellation a/b"
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), dataset["ratio"])
    independent = next(line for line in ax.lines if line.get_label() == "independent signs")
    np.testing.assert_allclose(independent.get_ydata(), np.sqrt(dataset["num_terms"]))
    dataset["ratio"].loc[{"layer": "2"}] = np.nan
    dataset["ratio"].loc[{"layer": "4"}] = np.inf
    ax = ns.plot_gradient_cancellation(dataset, ax=ax)
    labels = {line.get_label(): line for line in ax.lines}
    assert labels["zero or not finite"].get_xdata().tolist() == [2]
    assert labels["everything cancels"].get_xdata().tolist() == [3]
    ax = ns.plot_gradient_cancellation(dataset, quantity="normalized_ratio")
    assert ax.get_ylabel() == "cancellation (a/b)/√n"
    matplotlib.pyplot.close("all")
