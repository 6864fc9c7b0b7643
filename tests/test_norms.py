"""Each norm against what it averages over, written out in float64."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normscope.errors import InvalidConfig, InvalidModel
from normscope.model.layers import channel_dim
from normscope.nets.names import NORMS
from normscope.nets.norms import EPS, DynamicTanh, make_norm, num_groups

# Both sides are float64, so they differ only by the order of summation.
EXACT = {"rtol": 1e-10, "atol": 1e-12}
STATISTICAL = ("batch", "group", "layer", "rms", "instance")


def inputs(*shape: int) -> torch.Tensor:
    """Numbers far from mean 0 and variance 1, and different in each channel of dim 1 and of dim -1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return 3 * x + torch.arange(shape[1]).reshape(-1, *[1] * (len(shape) - 2)) + 0.5 * torch.arange(shape[-1])


def made(kind: str, num_channels: int, **where: int) -> torch.nn.Module:
    """The norm in float64, with a weight and bias for each channel that a test can tell apart."""
    norm = make_norm(kind, num_channels, **where).double()
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            if parameter.shape == (num_channels,):
                parameter.copy_(
                    torch.linspace(0.5, 2, num_channels) if name == "weight" else torch.arange(num_channels)
                )
    return norm


def twin(kind: str, x: torch.Tensor, norm: torch.nn.Module, channel_dim: int) -> torch.Tensor:
    """The table in norms.py as loops over examples, tokens and channels."""
    if channel_dim == -1:
        x = x.movedim(-1, 1)
    y = torch.empty_like(x)
    num_channels = x.shape[1]
    size = num_channels // num_groups(num_channels)
    for b in range(x.shape[0]):
        for here in product(*(range(n) for n in x.shape[2:])):
            for c in range(num_channels):
                group = slice(c // size * size, (c // size + 1) * size)
                token = (b, slice(None), *here)
                over = {
                    "batch": x[:, c],
                    "instance": x[b, c],
                    "layer": x[b] if channel_dim == 1 else x[token],
                    "rms": x[b] if channel_dim == 1 else x[token],
                    "group": x[b, group] if channel_dim == 1 else x[token][group],
                }[kind]
                mean = 0.0 if kind == "rms" else over.mean()
                value = (x[(b, c, *here)] - mean) / torch.sqrt((over - mean).square().mean() + EPS)
                bias = 0.0 if kind == "rms" else norm.bias[c]
                y[(b, c, *here)] = value * norm.weight[c] + bias
    return y.movedim(1, -1) if channel_dim == -1 else y


SHAPES = [(3, 8), (3, 8, 4), (2, 8, 3, 2), (2, 8, 2, 2, 2)]
OVER_POSITIONS = [(kind, shape) for kind in STATISTICAL for shape in SHAPES if (kind, shape) != ("instance", (3, 8))]


@pytest.mark.parametrize(("kind", "shape"), OVER_POSITIONS, ids=str)
def test_over_channels_first(kind, shape):
    norm, x = made(kind, 8, spatial_dims=len(shape) - 2), inputs(*shape)
    torch.testing.assert_close(norm(x), twin(kind, x, norm, 1), **EXACT)


@pytest.mark.parametrize("kind", STATISTICAL)
@pytest.mark.parametrize("shape", [(3, 4, 8), (2, 3, 2, 8)], ids=str)
def test_over_channels_last(kind, shape):
    norm, x = made(kind, 8, channel_dim=-1), inputs(*shape)
    torch.testing.assert_close(norm(x), twin(kind, x, norm, -1), **EXACT)


@pytest.mark.parametrize("kind", ["batch", "group", "layer", "rms"])
def test_features_are_tokens_without_a_token_dim(kind):
    norm, x = made(kind, 8, channel_dim=-1), inputs(5, 8)
    torch.testing.assert_close(norm(x), norm(x[:, None])[:, 0], **EXACT)


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_dynamic_tanh(channel_dim):
    norm, x = made("tanh", 5, channel_dim=channel_dim), inputs(2, 5, 5)
    shape = (5,) if channel_dim == -1 else (5, 1)
    expected = torch.tanh(0.5 * x) * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    assert isinstance(norm, DynamicTanh)
    torch.testing.assert_close(norm(x), expected, **EXACT)


def test_none_is_the_identity():
    x = inputs(2, 3, 4, 4)
    assert make_norm("none", 3)(x) is x


@pytest.mark.parametrize("kind", ["group", "layer", "rms", "tanh"])
def test_no_token_sees_another(kind):
    norm, x = made(kind, 8, channel_dim=-1), inputs(2, 6, 8)
    later = x.clone()
    later[:, 3:] += 100
    torch.testing.assert_close(norm(later)[:, :3], norm(x)[:, :3], rtol=0, atol=0)


@pytest.mark.parametrize("kind", STATISTICAL)
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_the_scale_of_the_input_is_lost(kind, channel_dim):
    norm, x = made(kind, 8, channel_dim=channel_dim), inputs(4, 8, 8, 8)
    # eps changes the output by EPS / var / 2 of itself, and 100 x has variances far above 1
    torch.testing.assert_close(norm(1e4 * x), norm(1e2 * x), rtol=EPS, atol=EPS)


def test_a_token_batch_norm_in_eval_uses_running_statistics():
    norm, x = make_norm("batch", 8, channel_dim=-1).double(), inputs(4, 6, 8)
    for _ in range(300):  # momentum 0.1: 0.9^300 of the start is left, about 1e-14
        norm(x)
    flat = x.reshape(-1, 8)
    # running variances are unbiased, unlike those of a training step
    expected = (flat - flat.mean(0)) / torch.sqrt(flat.var(0, unbiased=True) + EPS)
    torch.testing.assert_close(norm.eval()(x), expected.reshape(x.shape), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_starts_as_the_bare_norm_and_draws_nothing(kind, channel_dim):
    before = torch.get_rng_state()
    norm = make_norm(kind, 6, channel_dim=channel_dim)
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in norm.named_parameters():
        start = {"weight": 1.0, "bias": 0.0, "alpha": 0.5}[name]
        assert torch.equal(parameter, torch.full_like(parameter, start))


@pytest.mark.parametrize("kind", [kind for kind in NORMS if kind != "none"])
@pytest.mark.parametrize(
    ("shape", "where"),
    [((2, 8, 3), 1), ((2, 8, 3, 3), 1), ((2, 3, 8), -1), ((2, 3, 4, 8), -1)],
    ids=str,
)
def test_a_watched_norm_says_where_its_channels_are(kind, shape, where):
    norm = make_norm(kind, 8, channel_dim=where, spatial_dims=len(shape) - 2)
    assert channel_dim(norm, norm(torch.ones(shape))) == where % len(shape)


@given(st.integers(1, 2048))
def test_groups_divide_the_channels(num_channels):
    groups = num_groups(num_channels)
    assert num_channels % groups == 0
    assert 1 <= groups <= 32
    assert groups == 1 or num_channels // groups >= 4


@pytest.mark.parametrize(("num_channels", "groups"), [(1, 1), (3, 1), (7, 1), (16, 4), (32, 8), (64, 16), (512, 32)])
def test_number_of_groups(num_channels, groups):
    assert num_groups(num_channels) == groups
    assert make_norm("group", num_channels).num_groups == groups


@pytest.mark.parametrize(
    ("kind", "num_channels", "where", "message"),
    [
        ("bach", 8, {}, "unknown norm 'bach': did you mean 'batch'?"),
        ("final", 8, {}, "unknown norm 'final'"),
        ("instance", 8, {"spatial_dims": 0}, "averages over positions"),
        ("group", 1, {"spatial_dims": 0}, "single value"),
        ("layer", 1, {"channel_dim": -1}, "single value"),
        ("rms", 1, {"channel_dim": -1}, "single value"),
        ("batch", 0, {}, "num_channels must be at least 1, not 0"),
        ("batch", 8, {"channel_dim": 2}, "channel_dim must be 1 or -1, not 2"),
        ("batch", 8, {"spatial_dims": 4}, "spatial_dims must be 0, 1, 2 or 3, not 4"),
    ],
)
def test_refuses_averages_over_one_value_and_what_it_does_not_know(kind, num_channels, where, message):
    with pytest.raises(InvalidConfig) as refusal:
        make_norm(kind, num_channels, **where)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_instance_norm_needs_tokens():
    with pytest.raises(InvalidModel, match=r"not shape \(4, 8\)"):
        make_norm("instance", 8, channel_dim=-1)(torch.zeros(4, 8))
