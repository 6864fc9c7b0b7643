"""The networks: the function they compute, how they are counted and named, and that a seed pairs them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normscope.errors import InvalidConfig
from normscope.nets import MLP, NET_NORMS, PlainCNN, ResNet, build_net
from normscope.nets.names import INITS
from normscope.nets.resnet import PaddedShortcut


def images(batch: int, channels: int = 1, size: int = 8, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def calls(net: nn.Module, x: torch.Tensor) -> list[str]:
    """Paths of the layers with weights of two dims or more, as they are called."""
    names: list[str] = []
    for path, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda *_, path=path: names.append(path))
    net(x)
    return names


def twin(net: nn.Module, x: torch.Tensor, *, depth: int, norm: str, shortcut: str | None) -> torch.Tensor:
    """A ResNet or plain network from its state dict, in plain functions."""
    w = net.state_dict()

    def conv(path: str, y: torch.Tensor, stride: int) -> torch.Tensor:
        kernel = w[f"{path}.weight"]
        return F.conv2d(y, kernel, w.get(f"{path}.bias"), stride=stride, padding=kernel.shape[-1] // 2)

    def normalized(path: str, y: torch.Tensor) -> torch.Tensor:
        if norm != "batch":
            return y
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, unbiased=False)
        weight, bias = (w[f"{path}.{name}"][:, None, None] for name in ("weight", "bias"))
        return (y - mean) / (var + 1e-5).sqrt() * weight + bias

    x = normalized("norm1", conv("conv1", x, 1)).relu()
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = normalized(f"{at}.norm1", conv(f"{at}.conv1", x, stride)).relu()
            y = normalized(f"{at}.norm2", conv(f"{at}.conv2", y, 1))
            if shortcut is None:
                beside = torch.zeros_like(y)
            elif stride == 1:
                beside = x
            elif shortcut == "projection":
                beside = normalized(f"{at}.shortcut.norm", conv(f"{at}.shortcut.conv", x, 2))
            else:
                beside = torch.zeros_like(y)
                beside[:, : x.shape[1]] = x[:, :, ::2, ::2]
            x = (y + beside).relu()
    pooled = x.flatten(2).mean(2)
    if norm == "final":
        pooled = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-5).sqrt()
    return pooled @ w["fc.weight"].T + w["fc.bias"]


@pytest.mark.parametrize("norm", ["none", "batch", "final"])
@pytest.mark.parametrize(
    ("name", "options", "shortcut"),
    [
        ("resnet14", {"shortcut": "projection"}, "projection"),
        ("resnet14", {"shortcut": "pad"}, "pad"),
        ("plain14", {}, None),
    ],
)
def test_convolutional_networks_compute_what_they_should(name, options, shortcut, norm):
    net = build_net(name, norm=norm, in_channels=3, width=4, seed=1, **options).double()
    randomize(net)
    x = images(5, 3, 9).double()  # an odd size: positions are rounded up
    expected = twin(net, x, depth=14, norm=norm, shortcut=shortcut)
    # float64 through 14 layers, up to the order of summation
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)


def randomize(net: nn.Module) -> None:
    """Move biases and norms off their 0 and 1, so that a test sees them, but for the final norm."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() == 1 and not name.startswith("final_norm"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))


@pytest.mark.parametrize("norm", ["none", "batch", "final"])
def test_mlps_compute_what_they_should(norm):
    net = build_net("mlp3", norm=norm, in_channels=2, image_size=4, num_classes=5, width=6, seed=1).double()
    x = images(7, 2, 4).double()
    w, y = net.state_dict(), x.reshape(7, -1)

    def batch(z: torch.Tensor) -> torch.Tensor:
        return (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()

    for layer in range(2):
        y = y @ w[f"hidden.{layer}.linear.weight"].T
        y = (batch(y) if norm == "batch" else y).relu()
    y = batch(y) if norm == "final" else y
    torch.testing.assert_close(net(x), y @ w["fc.weight"].T + w["fc.bias"], rtol=1e-10, atol=1e-10)


NAMES_AND_NORMS = [(name, norm) for name in ("resnet8", "plain8", "mlp3") for norm in NET_NORMS]
NAMES_AND_NORMS.remove(("mlp3", "instance"))  # refused: features have no positions


@pytest.mark.parametrize(("name", "norm"), NAMES_AND_NORMS)
def test_every_norm_gives_logits_and_gradients(name, norm):
    net = build_net(name, norm=norm, in_channels=1, image_size=8, width=8)
    logits = net(images(6))
    assert logits.shape == (6, 10)
    logits.square().sum().backward()
    unused = [path for path, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unused == []


@pytest.mark.parametrize("init", INITS)
def test_every_init_builds(init):
    net = build_net("resnet8", norm="batch", init=init, in_channels=1, width=4)
    assert net(images(3)).isfinite().all()
    assert net.training


@pytest.mark.parametrize(("depth", "norm"), [(8, "batch"), (20, "none"), (110, "none"), (110, "batch")])
def test_depth_counts_the_main_path_in_the_order_of_execution(depth, norm):
    net = build_net(f"resnet{depth}", norm=norm, in_channels=1, width=2)
    called = calls(net, images(2))
    main = [path for path in called if "shortcut" not in path]
    assert len(main) == depth
    assert len(called) == depth + 2  # a projection at the start of the second and of the third stage
    assert main[0] == "conv1"
    assert main[-1] == "fc"
    registered = [path for path, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [path for path in registered if "shortcut" not in path] == main


def test_names_of_resnet8():
    assert calls(build_net("resnet8", in_channels=1), images(2)) == [
        "conv1",
        "layer1.0.conv1",
        "layer1.0.conv2",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer2.0.shortcut.conv",
        "layer3.0.conv1",
        "layer3.0.conv2",
        "layer3.0.shortcut.conv",
        "fc",
    ]


def test_plain_and_mlp_depths():
    assert len(calls(build_net("plain20", in_channels=1, width=2), images(2))) == 20
    assert len(calls(build_net("mlp5", in_channels=1, image_size=8, width=4), images(2))) == 5
    assert calls(build_net("mlp1", in_channels=1, image_size=8), images(2)) == ["fc"]


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet20", 269_722), ("resnet56", 853_018), ("resnet110", 1_727_962)]
)
def test_sizes_of_the_published_resnets(name, parameters):
    """He et al. 2016, table 6, give 0.27M, 0.85M and 1.7M, for padded shortcuts."""
    net = build_net(name, norm="batch", shortcut="pad")
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


def test_padded_shortcut():
    x = torch.arange(2 * 3 * 3, dtype=torch.float32).reshape(1, 2, 3, 3)
    y = PaddedShortcut(3, 2)(x)
    assert y.shape == (1, 5, 2, 2)
    assert y[0, 0].tolist() == [[0, 2], [6, 8]]
    assert y[0, 1].tolist() == [[9, 11], [15, 17]]
    assert not y[0, 2:].any()


def test_final_norm_stands_in_front_of_the_last_layer_only():
    for name in ("resnet8", "plain8", "mlp3"):
        net = build_net(name, norm="final", in_channels=1, image_size=8, width=8)
        norms = [path for path, module in net.named_modules() if isinstance(module, nn.BatchNorm1d)]
        assert norms == ["final_norm"]
        assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
        seen: list[torch.Tensor] = []
        net.get_submodule("fc").register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        net(images(16))
        features = seen[0]
        # float32 means over 16 examples
        torch.testing.assert_close(features.mean(0), torch.zeros(features.shape[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "biased"),
    [
        ("none", True),
        ("final", True),
        ("rms", True),
        ("batch", False),
        ("group", False),
        ("layer", False),
        ("tanh", False),
    ],
)
def test_a_bias_only_where_the_norm_brings_none(norm, biased):
    for name in ("resnet8", "mlp3"):
        net = build_net(name, norm=norm, in_channels=1, image_size=8)
        for path, module in net.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and path != "fc":
                assert (module.bias is not None) is biased
                assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("bias", [True, False])
def test_bias_can_be_chosen(bias):
    for name in ("resnet8", "plain8", "mlp3"):
        for norm in ("none", "batch"):
            net = build_net(name, norm=norm, bias=bias, in_channels=1, image_size=8)
            hidden = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][:-1]
            assert all((layer.bias is not None) is bias for layer in hidden)
            assert net.get_submodule("fc").bias is not None


def shared_weights(one: nn.Module, other: nn.Module) -> list[str]:
    """Names of the weights of two dims or more in both, after checking that they have the same bits."""
    ours, theirs = one.state_dict(), other.state_dict()
    names = [name for name, value in ours.items() if name in theirs and value.dim() >= 2]
    for name in [*names, "fc.bias"]:
        assert torch.equal(ours[name], theirs[name]), name
    return names


@pytest.mark.parametrize("init", ["default", "xavier_uniform", "xavier_normal", "kaiming_normal", "orthogonal"])
@pytest.mark.parametrize("name", ["resnet14", "plain14", "mlp3"])
def test_networks_with_every_norm_are_paired_by_seed(name, init):
    options = {"init": init, "in_channels": 1, "image_size": 8, "width": 8, "seed": 4}
    without = build_net(name, norm="none", **options)
    weights = [path for path, value in without.state_dict().items() if value.dim() >= 2]
    for norm in ("batch", "final", "group", "tanh"):
        assert shared_weights(without, build_net(name, norm=norm, **options)) == weights


def test_networks_of_other_shortcuts_and_depths_are_paired_too():
    net = build_net("resnet20", in_channels=1, width=4, seed=4)
    assert len(shared_weights(net, build_net("resnet20", shortcut="pad", in_channels=1, width=4, seed=4))) == 20
    assert len(shared_weights(net, build_net("plain20", in_channels=1, width=4, seed=4))) == 20
    assert len(shared_weights(net, build_net("resnet14", in_channels=1, width=4, seed=4))) == 14 + 2


def test_the_paper_network_is_paired_by_seed():
    without, batch = (build_net("resnet110", norm=norm, seed=0) for norm in ("none", "batch"))
    assert len(shared_weights(without, batch)) == 110 + 2


@pytest.mark.parametrize("name", ["resnet8", "plain8", "mlp3"])
def test_a_seed_fixes_the_bits_and_leaves_the_global_generator(name):
    torch.manual_seed(9)
    state = torch.get_rng_state()
    first = build_net(name, seed=2, in_channels=1, image_size=8).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(10)
    second = build_net(name, seed=2, in_channels=1, image_size=8).state_dict()
    third = build_net(name, seed=3, in_channels=1, image_size=8).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key, value in first.items():
        # biases in front of the last layer are zero whatever the seed
        assert torch.equal(value, third[key]) is (key.endswith("bias") and key != "fc.bias"), key


def test_the_last_layer_is_torchs_default_whatever_the_init():
    nets = [build_net("resnet8", init=init, init_scale=scale, in_channels=1) for init in INITS for scale in (1.0, 0.1)]
    for net in nets:
        fc, reference = net.get_submodule("fc"), nets[0].get_submodule("fc")
        assert torch.equal(fc.weight, reference.weight)
        assert torch.equal(fc.bias, reference.bias)
        # uniform within 1 / sqrt(64 features), far inside Xavier's sqrt(6 / 74)
        assert 0.95 < fc.weight.abs().max().item() * 8 <= 1
        assert fc.bias.any()


def test_init_scale_spares_the_last_layer():
    one, half = (build_net("resnet8", init_scale=scale, in_channels=1) for scale in (1.0, 0.5))
    for (path, value), scaled in zip(one.named_parameters(), half.parameters(), strict=True):
        assert torch.equal(scaled, value if path.startswith("fc") else 0.5 * value)


@pytest.mark.parametrize(
    ("norm", "tail"), [("none", "conv2"), ("batch", "norm2"), ("tanh", "norm2"), ("final", "conv2")]
)
def test_zero_residual_leaves_only_the_shortcuts(norm, tail):
    net = build_net("resnet14", norm=norm, init="zero_residual", in_channels=1, width=4)
    x = images(5, 4).relu()
    for stage in (net.layer1, net.layer2, net.layer3):
        for block in stage:
            assert block.residual_tail == tail
            shortcut = block.shortcut(x).relu()
            assert torch.equal(block(x), shortcut)
            x = shortcut


def test_a_loss_does_not_see_the_scale_of_a_kernel_in_front_of_batch_norm():
    net = build_net("resnet8", norm="batch", in_channels=1).double()
    x = images(8).double()
    before = net(x)
    with torch.no_grad():
        net.get_submodule("layer2.0.conv1").weight.mul_(100)
    # eps is 1e-5 of variances near 1, and enters the logits at that size
    torch.testing.assert_close(net(x), before, rtol=1e-3, atol=1e-4)


def test_the_networks_by_class():
    assert isinstance(build_net("resnet8"), ResNet)
    assert isinstance(build_net("plain8"), PlainCNN)
    assert isinstance(build_net("mlp2", image_size=4), MLP)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet111", {}, "ResNet depth must be 6n+2, not 111: 110 and 116 are nearest"),
        ("resnet115", {}, "ResNet depth must be 6n+2, not 115: 110 and 116 are nearest"),
        ("resnet2", {}, "ResNet depth must be 6n+2 with n at least 1, not 2: 8 is nearest"),
        ("plain21", {}, "PlainCNN depth must be 6n+2, not 21: 20 and 26 are nearest"),
        ("mlp0", {}, "MLP depth must be at least 1, not 0"),
        ("resnt110", {}, "unknown net 'resnt110': did you mean 'resnet110'?"),
        ("resnet", {}, "unknown net 'resnet'"),
        ("vit4", {}, "unknown net 'vit4'"),
        ("resnet8", {"norm": "bach"}, "unknown norm 'bach': did you mean 'batch'?"),
        ("resnet8", {"init": "kaiming"}, "unknown init 'kaiming': did you mean 'kaiming_normal'?"),
        ("resnet8", {"shortcut": "padded"}, "unknown shortcut 'padded': did you mean 'pad'?"),
        ("plain8", {"shortcut": "pad"}, "plain8 has no shortcuts"),
        ("mlp3", {"init": "zero_residual"}, "mlp3 has no residual branches"),
        ("mlp3", {"norm": "instance"}, "averages over positions"),
        ("resnet8", {"width": 0}, "width must be at least 1, not 0"),
        ("resnet8", {"num_classes": -1}, "num_classes must be at least 1, not -1"),
        ("resnet8", {"init_scale": -1.0}, "scale must be positive and finite, not -1.0"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(InvalidConfig) as refusal:
        build_net(name, **options)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("option", ["norm", "shortcut"])
def test_the_class_refuses_unknown_names_too(option):
    with pytest.raises(InvalidConfig, match=f"unknown {option} 'x'"):
        ResNet(8, **{option: "x"})
