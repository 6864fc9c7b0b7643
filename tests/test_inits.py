"""Initializations: their distributions, what they leave alone, and what a seed fixes."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from normscope.errors import InvalidConfig, InvalidModel
from normscope.nets.inits import init_, weighted_layers
from normscope.nets.names import INITS

DRAWN = ("xavier_uniform", "xavier_normal", "kaiming_normal", "orthogonal")


def network() -> nn.Sequential:
    """A convolution, a norm, a linear layer and an output layer, all with biases."""
    return nn.Sequential(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(256, 40), nn.Linear(40, 10))


class Residual(nn.Module):
    """A block that names its last branch layer, with a norm behind it or without."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.residual_tail = "norm" if norm else "conv"

    def forward(self, x):
        return x + self.norm(self.conv(x))


def residual_network(*, norm: bool) -> nn.Sequential:
    return nn.Sequential(Residual(norm=norm), Residual(norm=norm), nn.Flatten(), nn.Linear(64, 10))


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("path", ["0", "3"])
def test_variance(kind, path):
    weight = init_(network(), kind, seed=0).get_submodule(path).weight.detach().double()
    positions = weight[0, 0].numel() if weight.dim() == 4 else 1
    fan_out, fan_in = weight.shape[0] * positions, weight.shape[1] * positions
    expected = {
        "xavier_uniform": 2 / (fan_in + fan_out),
        "xavier_normal": 2 / (fan_in + fan_out),
        "kaiming_normal": 2 / fan_in,
        "orthogonal": 1 / fan_in,  # both kernels are wide: out orthonormal rows of length fan_in
    }[kind]
    # the mean of n squares has a relative standard error of at most sqrt(2 / n): four of them
    assert weight.square().mean().item() == pytest.approx(expected, rel=4 * math.sqrt(2 / weight.numel()))
    assert abs(weight.mean().item()) < 4 * math.sqrt(expected / weight.numel())


def test_xavier_uniform_is_uniform():
    weight = init_(network(), "xavier_uniform", seed=0).get_submodule("3").weight.detach()
    bound = math.sqrt(6 / (256 + 40))
    quantiles = (weight.flatten().sort().values / bound + 1) / 2
    n = weight.numel()
    distance = (quantiles - (torch.arange(n) + 0.5) / n).abs().max()
    assert quantiles.min() >= 0
    assert quantiles.max() <= 1
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov and Smirnov's bound at a probability of 0.001


def test_orthogonal_kernels_are_flattened():
    net = init_(network(), "orthogonal", seed=0)
    for path in ("0", "3"):
        rows = net.get_submodule(path).weight.detach().flatten(1)
        # float32 QR: a few ulp of 1 in each inner product
        torch.testing.assert_close(rows @ rows.T, torch.eye(rows.shape[0]), rtol=0, atol=1e-5)


def test_kaiming_counts_the_inputs_of_a_transposed_convolution():
    net = nn.Sequential(nn.ConvTranspose2d(64, 8, 5), nn.Flatten(), nn.Linear(8, 2))
    weight = init_(net, "kaiming_normal", seed=0).get_submodule("0").weight.detach()
    rel = 4 * math.sqrt(2 / weight.numel())
    assert weight.square().mean().item() == pytest.approx(2 / (64 * 25), rel=rel)


@pytest.mark.parametrize("kind", DRAWN)
def test_biases_are_zero_and_the_rest_is_left_alone(kind):
    net = network()
    with torch.no_grad():
        net.get_submodule("1").weight.fill_(3)
    before = bits(net)
    init_(net, kind, seed=0)
    changed = {name for name, value in bits(net).items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert not net.get_submodule("0").bias.any()
    assert not net.get_submodule("3").bias.any()


@pytest.mark.parametrize("kind", DRAWN)
def test_the_output_layer_too_if_asked(kind):
    net = network()
    before = net.get_submodule("4").weight.clone()
    init_(net, kind, seed=0, keep_output_layer=False)
    assert not torch.equal(net.get_submodule("4").weight, before)
    assert not net.get_submodule("4").bias.any()


@pytest.mark.parametrize("kind", [*DRAWN, "default"])
def test_scale_multiplies_weights(kind):
    plain, scaled = init_(network(), kind, seed=0), init_(network(), kind, seed=0, scale=0.25)
    for path in ("0", "3"):
        assert torch.equal(scaled.get_submodule(path).weight, 0.25 * plain.get_submodule(path).weight)
        assert torch.equal(scaled.get_submodule(path).bias, plain.get_submodule(path).bias)


def test_default_is_torchs_own():
    net = init_(network(), "default", seed=0)
    for path, fan_in in (("0", 16 * 9), ("3", 256)):
        for parameter in net.get_submodule(path).parameters():
            # torch draws both uniformly within 1 / sqrt(fan_in); the largest of n is near the bound
            assert 0.9 < parameter.abs().max().item() * math.sqrt(fan_in) <= 1 + 1e-6


@pytest.mark.parametrize("kind", INITS)
def test_a_seed_fixes_the_bits_and_leaves_the_global_generator(kind):
    torch.manual_seed(5)
    first = residual_network(norm=True)
    second = residual_network(norm=True)
    state = torch.get_rng_state()
    init_(first, kind, seed=3, keep_output_layer=False)
    init_(second, kind, seed=3, keep_output_layer=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(bits(first).values(), bits(second).values(), strict=True))
    init_(second, kind, seed=4, keep_output_layer=False)
    assert not torch.equal(first.get_submodule("0.conv").weight, second.get_submodule("0.conv").weight)


def test_without_a_seed_the_global_generator_decides():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        net = network()
        init_(net, "xavier_uniform")
        weights.append(net.get_submodule("0").weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("kind", [*DRAWN, "default"])
def test_layers_of_one_name_share_their_bits_and_others_do_not(kind):
    def layers(**others: nn.Module) -> nn.ModuleDict:
        same = {"a": nn.Linear(20, 20), **others, "b": nn.Linear(20, 20), "out": nn.Linear(20, 2)}
        return init_(nn.ModuleDict(same), kind, seed=0)

    few, more = layers(), layers(between=nn.Linear(20, 20), norm=nn.LayerNorm(20))
    for path in ("a", "b"):
        assert torch.equal(few[path].weight, more[path].weight)
    assert not torch.equal(few["a"].weight, few["b"].weight)


@pytest.mark.parametrize("kind", INITS)
def test_weights_do_not_depend_on_the_dtype(kind):
    single = init_(residual_network(norm=True), kind, seed=0)
    double = init_(residual_network(norm=True).double(), kind, seed=0)
    weight = double.get_submodule("0.conv").weight
    assert weight.dtype == torch.float64
    assert torch.equal(weight.float(), single.get_submodule("0.conv").weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", INITS)
def test_weights_do_not_depend_on_the_device(kind):
    on_cpu, on_gpu = residual_network(norm=True), residual_network(norm=True).cuda()
    before = torch.cuda.get_rng_state()
    for net in (on_cpu, on_gpu):
        init_(net, kind, seed=0, keep_output_layer=False)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert all(torch.equal(value.cpu(), bits(on_cpu)[name]) for name, value in bits(on_gpu).items())


@pytest.mark.parametrize("norm", [True, False])
def test_zero_residual_makes_blocks_the_identity(norm):
    net = residual_network(norm=norm)
    with torch.no_grad():
        for tail in (net.get_submodule("0.norm"), net.get_submodule("1.norm")):
            for parameter in tail.parameters():
                parameter.fill_(2)
    init_(net, "zero_residual", seed=0)
    x = torch.randn(3, 4, 4, 4)
    assert torch.equal(net[1](net[0](x)), x)
    xavier = init_(residual_network(norm=norm), "xavier_uniform", seed=0).get_submodule("0.conv").weight
    assert torch.equal(net.get_submodule("0.conv").weight, xavier) is norm


def test_layers_of_other_kinds():
    net = nn.ModuleDict(
        {
            "embedding": nn.Embedding(7, 12, padding_idx=2),
            "attention": nn.MultiheadAttention(12, 3),
            "norm": nn.LayerNorm((5, 12)),
            "rms": nn.RMSNorm((5, 12)),
            "rnn": nn.LSTM(12, 6),
            "out": nn.Linear(6, 3),
        }
    )
    assert list(weighted_layers(net)) == ["embedding", "attention", "attention.out_proj", "rnn", "out"]
    # a seed each, since attention's default is Xavier-uniform and would be the same bits
    for seed, kind in enumerate(("xavier_uniform", "default")):
        before = bits(net)
        init_(net, kind, seed=seed)
        drawn = {name for name, value in bits(net).items() if not torch.equal(value, before[name])}
        assert {
            "embedding.weight",
            "attention.in_proj_weight",
            "rnn.weight_ih_l0",
            "rnn.weight_hh_l0",
        } <= drawn
        assert not any(name.startswith(("norm", "rms", "out.")) for name in drawn)
        assert not net["embedding"].weight[2].any()


def test_weights_tied_to_the_output_layer_are_kept():
    net = nn.ModuleDict({"embedding": nn.Embedding(7, 12), "hidden": nn.Linear(12, 12), "out": nn.Linear(12, 7)})
    net["out"].weight = net["embedding"].weight
    before = net["out"].weight.clone()
    init_(net, "xavier_uniform", seed=0)
    assert torch.equal(net["out"].weight, before)


class Bare(nn.Module):
    """A weight and no reset_parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))


@pytest.mark.parametrize(
    ("model", "kind", "options", "error", "message"),
    [
        (network(), "xavier", {}, InvalidConfig, "unknown init 'xavier'"),
        (
            network(),
            "orthogonal",
            {"scale": 0.0},
            InvalidConfig,
            "scale must be positive and finite, not 0.0",
        ),
        (network(), "orthogonal", {"scale": math.nan}, InvalidConfig, "not nan"),
        (network(), "zero_residual", {}, InvalidConfig, "this model has none"),
        (nn.Sequential(nn.ReLU()), "orthogonal", {}, InvalidModel, "nothing to initialize"),
        (nn.Sequential(Bare(), nn.Linear(3, 3)), "default", {}, InvalidModel, "layer '0' (Bare)"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3)),
            "orthogonal",
            {},
            InvalidModel,
            "the weight of layer '0' is computed from others",
        ),
    ],
)
def test_refusals(model, kind, options, error, message):
    before = bits(model)
    with pytest.raises(error) as refusal:
        init_(model, kind, seed=0, **options)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in bits(model).items())


def test_refuses_lazy_layers_and_older_reparametrizations():
    with pytest.raises(InvalidModel, match="layer '0' has no shape yet"):
        init_(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3)), "orthogonal", seed=0)
    pruned = prune.l1_unstructured(nn.Linear(3, 3), "weight", amount=1)
    with pytest.raises(InvalidModel, match="layer '0' is computed from others"):
        init_(nn.Sequential(pruned, nn.Linear(3, 3)), "orthogonal", seed=0)


def test_refuses_a_residual_tail_without_a_weight():
    net = residual_network(norm=False)
    net[0].residual_tail = "norm"
    with pytest.raises(InvalidModel, match=r"'0\.norm' \(Identity\) ends a residual branch but owns no weight"):
        init_(net, "zero_residual", seed=0)
