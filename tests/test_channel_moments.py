"""Channel moments equal a naive float64 twin wherever the network itself is finite."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import peak_bytes
from torch import nn
from zoo import EXAMPLES, ZOO, by_name, in_float64, no_trace, scaled

from normscope.errors import InvalidBatch, InvalidModel
from normscope.model.layers import record_calls
from normscope.probes.channel_moments import channel_moments
from normscope.probes.moments.fast import moments, short_sums
from normscope.training.train import num_threads

CHANNELS_LAST = {  # every watched call of the zoo whose channels are not along dimension 1
    "attention": ["attention", "feed_forward.1", "feed_forward.3"],
    "several_inputs": ["words"],
    "embedding_tied": ["embedding", "hidden", "output"],
    "recurrent": ["gru"],
}


def naive_moments(values, dim):
    """The two equations, one channel at a time."""
    values = values.detach().double()
    channels = [values.select(dim, c) for c in range(values.shape[dim])]
    means = torch.stack([sum(channel.flatten()) / channel.numel() for channel in channels])
    squares = [((channel - mean) ** 2).flatten() for channel, mean in zip(channels, means, strict=True)]
    return means, torch.stack([sum(square) / len(square) for square in squares])


def naive_twin(entry, model, batch):
    """Means and variances by layer, from the outputs of the model as they are."""
    found = {}

    def on_call(call):
        dim = -1 if call.name in CHANNELS_LAST.get(entry.name, ()) else 1
        found[call.name] = naive_moments(call.output, dim)

    torch.manual_seed(7)
    with torch.no_grad(), record_calls(model.train(), on_call):
        _ = model(**batch) if isinstance(batch, dict) else model(batch[0])
    return found


def assert_equals(dataset, twin, rounding):
    """Same layers; means and standard deviations apart by `rounding` at most, as a share of their size."""
    assert dataset["layer"].values.tolist() == list(twin)
    for layer, (mean, variance) in twin.items():
        one = dataset.sel(layer=layer, channel=slice(0, len(mean) - 1))
        assert int(one["num_channels"]) == len(mean)
        size = (variance.sqrt() + mean.abs()).numpy()
        for found, expected in ((one["mean"], mean), (np.sqrt(one["variance"]), variance.sqrt())):
            own = ~expected.isfinite().numpy()
            assert (own == ~np.isfinite(found.values)).all(), layer
            assert (abs(found.values - expected.numpy()) <= rounding * size + 1e-30)[~own].all(), layer


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_equals_a_naive_float64_twin(entry):
    model, batch = entry.build(0), entry.batch(0)
    torch.manual_seed(7)
    dataset = channel_moments(model, batch, loss_fn=entry.loss_fn)
    twin = naive_twin(entry, in_float64(model), in_float64(batch))
    # the network runs in float32 (bfloat16), whose rounding of 6e-8 (4e-3) adds up over a few layers
    assert_equals(dataset, twin, 3e-2 if entry.dtype == torch.bfloat16 else 2e-5)


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_driven_to_1e25_what_is_not_finite_is_the_networks_own(entry):
    """Norms overflow there by themselves, convolutions and linear maps do not; the moments show either as it is."""
    model, batch = entry.build(0), scaled(entry.batch(0), 1e25)
    torch.manual_seed(7)
    dataset = channel_moments(model, batch, loss_fn=entry.loss_fn)
    assert_equals(dataset, naive_twin(entry, model, batch), 1e-6)  # of the same float32 outputs
    if entry.name in ("mlp", "cnn_inplace", "functional_relu", "grouped_dilated", "bf16"):
        assert np.isfinite(dataset["variance"]).sum() == dataset["num_channels"].sum()
        assert float(dataset["variance"].max()) > 1e47  # the largest float32 is 3e38


@pytest.mark.parametrize("shape", [(20001, 5), (2401, 7), (105, 3, 15, 15)])
def test_sums_are_short_whatever_the_shape(shape) -> None:
    """An odd number of rows folds into no wider columns: on one thread, a sum down all of them would lose digits."""
    with num_threads(1):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3
        values = values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values
        short = short_sums(values, 1)
    assert short is not None
    mean, variance = short.pooled()
    over = [dim for dim in range(len(shape)) if dim != 1]
    expected_variance, expected_mean = torch.var_mean(values.double(), over, correction=0)
    # 512 roundings of 6e-8 that do not all go the same way; a mean of three deviations costs the variance tenfold
    torch.testing.assert_close(mean, expected_mean, rtol=5e-7, atol=0)
    torch.testing.assert_close(variance, expected_variance, rtol=1e-5, atol=0)


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 1e-25, 1e-12, 1e18, 1e25, 1e37]),
    shift=st.sampled_from([0.0, 3.0, 30.0, 3e3, -1e6]),
    layout=st.sampled_from(["contiguous", "channels last", "every second", "expanded"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_moments_of_any_tensor_equal_the_equations(shape, seed, scale, shift, layout, dtype, data):
    dim = data.draw(st.integers(0, len(shape) - 1))
    generator = torch.Generator().manual_seed(seed)
    values = ((torch.randn(shape, generator=generator) + shift) * scale).clamp(-3e38, 3e38).to(dtype)
    if layout == "channels last":
        values = values.movedim(dim, -1).contiguous().movedim(-1, dim)
    elif layout == "every second":
        values = values.repeat_interleave(2, -1)[..., ::2]
    elif layout == "expanded":
        values = values[:1].expand(shape)
    mean, variance = moments(values, dim)
    expected_mean, expected_variance = naive_moments(values, dim)
    assert mean.dtype == variance.dtype == torch.float64
    size = expected_variance.sqrt() + expected_mean.abs()
    # float32 sums over a few rows round to 1e-7, pooled in float64; a shift of up to ten deviations costs a hundredfold
    assert ((mean - expected_mean).abs() <= 1e-6 * size).all()
    assert ((variance - expected_variance).abs() <= 2e-5 * expected_variance + 1e-25 * size**2).all()


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format], ids=["channels last", "NCHW"])
def test_moments_of_a_large_batch(format):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(128, 16, 32, 32, generator=generator) * torch.arange(1, 17).view(-1, 1, 1) + 5
    values = values.contiguous(memory_format=format)
    mean, variance = moments(values, 1)
    exact_variance, exact_mean = torch.var_mean(values.double(), (0, 2, 3), correction=0)
    # float32 sums over a thousand rows, pooled over a hundred; the first channel's mean is five deviations off 0
    torch.testing.assert_close(mean, exact_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, exact_variance, rtol=1e-5, atol=0)


def test_non_finite_activations_stay():
    values = torch.ones(4, 3, 2, 2)
    values[0, 1, 0, 0], values[1, 2, 0, 0] = float("inf"), float("nan")
    mean, variance = moments(values, 1)
    assert mean[0] == 1 and variance[0] == 0
    assert not torch.isfinite(mean[1:]).any() and not torch.isfinite(variance[1:]).any()


def test_a_layer_is_seen_before_an_activation_changes_it_in_place():
    entry = by_name("cnn_inplace")
    dataset = channel_moments(entry.build(0), entry.batch(0))
    model, (images, _) = entry.build(0), entry.batch(0)
    first = F.conv2d(images, model[0].weight, model[0].bias, padding=1)
    np.testing.assert_allclose(dataset["mean"][0, :6], first.detach().double().mean((0, 2, 3)), rtol=1e-5)


def test_layers_are_in_execution_order_and_a_second_call_is_named():
    entry = by_name("shared")
    dataset = channel_moments(entry.build(0), entry.batch(0))
    assert dataset["layer"].values.tolist() == ["first", "twice", "twice#2", "last"]
    assert dataset["depth"].values.tolist() == [1, 2, 3, 4]
    assert not np.allclose(dataset["mean"].sel(layer="twice"), dataset["mean"].sel(layer="twice#2"))


def test_padding_is_told_from_what_diverged():
    entry = by_name("mlp")
    dataset = channel_moments(entry.build(0), entry.batch(0))
    assert dataset["num_channels"].values.tolist() == [10, 10, 4]
    assert dataset["variance"].notnull().sum("channel").values.tolist() == [10, 10, 4]
    assert dataset["channel"].values.tolist() == list(range(10))
    assert {name: (v.attrs["long_name"], v.attrs["units"]) for name, v in dataset.data_vars.items()} == {
        "mean": ("channel mean", "1"),
        "variance": ("channel variance", "1"),
        "num_channels": ("number of channels", "1"),
    }


def test_layers_are_chosen_by_pattern():
    entry = by_name("attention")
    dataset = channel_moments(entry.build(0), entry.batch(0), layers=["feed_forward.*", "norm"])
    assert dataset["layer"].values.tolist() == ["norm", *(f"feed_forward.{i}" for i in range(4))]


class CallsNone(nn.Module):
    """Uses its layer's weight without calling the layer."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(7, 4)

    def forward(self, x):
        return F.linear(x, self.unused.weight)


@pytest.mark.parametrize(
    ("model", "layers", "error", "message"),
    [
        (by_name("mlp").build(), "layer9.*", InvalidModel, "no layer matches 'layer9.*'; this model has 0, 2, 4"),
        (nn.Sequential(nn.ReLU()), None, InvalidModel, "Sequential has no layer with a weight"),
        (CallsNone(), None, InvalidModel, "none of the chosen layers is called"),
        (by_name("mlp").build().requires_grad_(False), None, InvalidModel, "no trainable parameter"),
        (nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(5)), None, InvalidBatch, "does not take this batch"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(model, layers, error, message):
    batch = by_name("mlp").batch()
    with no_trace(model, batch), pytest.raises(error, match=message.replace("*", r"\*")) as caught:
        channel_moments(model, batch, layers=layers)
    assert "\n" not in str(caught.value)


def test_no_output_is_kept_beside_the_forward_pass():
    torch.manual_seed(0)
    model = nn.Sequential(
        *[nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(9)], nn.Flatten(), nn.Linear(8 * 32 * 32, 4)
    )
    batch = torch.randn(16, 8, 32, 32), torch.arange(16) % 4

    def bare():
        with torch.no_grad():
            F.cross_entropy(model(batch[0]), batch[1])

    copies = sum(4 * p.numel() for p in model.parameters())
    output = 4 * batch[0].numel()
    assert peak_bytes(lambda: channel_moments(model, batch)) <= peak_bytes(bare) + copies + 0.5 * output


def test_the_shape_of_the_answer_does_not_depend_on_the_memory_format():
    entry = by_name("batch_norm")
    model, (images, labels) = entry.build(0), entry.batch(0)
    plain = channel_moments(model, (images, labels))
    model = model.to(memory_format=torch.channels_last)
    last = channel_moments(model, (images.contiguous(memory_format=torch.channels_last), labels))
    np.testing.assert_allclose(last["variance"], plain["variance"], rtol=1e-4)  # another convolution kernel
    assert last["layer"].equals(plain["layer"]) and images.shape[0] == EXAMPLES
