"""Weight norms, SkipInit and Fixup against their equations, on any model, or refused with a reason."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import by_name, disturb, no_trace

import normscope as ns
from normscope.checkup.repairs import REPAIRS, repairs
from normscope.errors import InvalidConfig, InvalidModel
from normscope.nets import build_net
from normscope.nets.weight_norms import RELU_GAIN, ScaledWeightStandardization, parametrize_weight

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # both sides are float64, so they differ only by the order of summation


def images(examples: int = 8) -> Tensor:
    return torch.randn(examples, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def batch() -> tuple[Tensor, Tensor]:
    return images(), torch.arange(8) % 10


def net(norm: str = "none", name: str = "resnet8") -> nn.Module:
    return build_net(name, norm=norm, image_size=8, width=8, seed=0)


@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        (nn.Conv2d(3, 4, 3), 0),
        (nn.Linear(5, 4), 0),
        (nn.ConvTranspose1d(3, 4, 2), 1),
        (nn.Conv2d(4, 4, 3, groups=2), 0),
    ],
    ids=["conv", "linear", "transposed", "groups"],
)
def test_scaled_weight_standardization_is_its_equation(layer: nn.Module, dim: int) -> None:
    layer = layer.double()
    raw = layer.get_parameter("weight").detach().clone()
    parametrize_weight(layer, "weight_std")
    assert isinstance(layer.weight, Tensor)
    gain = layer.get_parameter("parametrizations.weight.0.gain")
    with torch.no_grad():
        gain.mul_(torch.tensor([0.5, 1.0, 2.0, -1.0]))
    for c in range(4):
        w, mine = raw.select(dim, c), layer.weight.select(dim, c)
        expected = gain[c] * RELU_GAIN * (w - w.mean()) / (w.numel() * w.var(correction=0)).sqrt()
        torch.testing.assert_close(mine, expected, **EXACT)


def test_its_gain_keeps_the_variance_behind_a_relu() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(F.relu(x).var()) * RELU_GAIN**2 == pytest.approx(1, rel=0.01)
    wide = nn.Linear(4000, 50, bias=False, dtype=torch.float64)
    parametrize_weight(wide, "weight_std")
    out = wide(F.relu(torch.randn(500, 4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)))
    assert float(out.detach().std()) == pytest.approx(1, rel=0.03)


def test_a_channel_whose_weights_are_equal_is_zero_and_not_nan() -> None:
    out = ScaledWeightStandardization(2, 0)(torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]]))
    assert out[0].tolist() == [0, 0, 0] and out.isfinite().all()


def test_weight_norm_is_torchs_with_mean_only_batch_norm_behind() -> None:
    model = ns.with_norm(net(), "weight_mean", "everywhere")
    torch.testing.assert_close(model(images()), ns.with_norm(net(), "batch_mean", "everywhere")(images()))
    conv = model.get_submodule("layer1.0.conv1")
    direction = conv.get_parameter("parametrizations.weight.original1")
    scale = conv.get_parameter("parametrizations.weight.original0")
    expected = scale * direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(conv.weight, expected)
    assert not conv.get_submodule("output_norm").get_parameter("weight").requires_grad


@pytest.mark.parametrize("name", ["resnet8", "plain8", "mlp4"])
def test_with_a_batch_every_channel_starts_with_standard_deviation_one(name: str) -> None:
    model = ns.with_norm(net(name=name).eval(), "weight_mean", "everywhere", batch=images(64))
    assert not model.training
    model.train()
    seen: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if path.endswith("output_norm"):
            module.register_forward_hook(lambda _m, _i, out, path=path: seen.update({path: out}))
    model(images(64))
    assert len(seen) > 2
    for out in seen.values():
        rows = out.movedim(1, -1).flatten(0, -2)
        std = rows.std(0, correction=0)
        torch.testing.assert_close(std[std > 1e-4], torch.ones_like(std[std > 1e-4]), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(rows.mean(0), torch.zeros_like(std), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["weight_mean", "weight_std"])
def test_norms_of_the_weights_go_everywhere_or_where_layers_are_named(kind: str) -> None:
    changed = ns.with_norm(net("batch"), kind, batch=images())
    inside = {path.split(".parametrizations")[0] for path, _ in changed.named_parameters() if "parametriz" in path}
    convs = {path for path, m in net().named_modules() if isinstance(m, nn.Conv2d)}
    assert inside == convs
    assert not any(isinstance(module, nn.BatchNorm2d) for module in changed.modules())
    one = ns.with_norm(net("batch"), kind, "conv1")
    assert "parametrizations.weight" in dict(one.get_submodule("conv1").named_modules())
    assert isinstance(one.get_submodule("norm1"), nn.BatchNorm2d)
    loss = F.cross_entropy(changed(images()), torch.arange(8) % 10)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in changed.parameters() if p.requires_grad)


@pytest.mark.parametrize("where", ["swap", "final", "norm1"])
def test_they_take_no_norms_place(where: str) -> None:
    with pytest.raises(InvalidConfig, match="name layers"):
        ns.with_norm(net("batch"), "weight_std", where)


def test_a_misspelled_norm_of_the_weights_is_told_its_name() -> None:
    with pytest.raises(InvalidConfig, match="weight_std"):
        ns.with_norm(net(), "weight_sd")


def test_what_cannot_have_its_weights_normed_is_refused() -> None:
    twice = ns.with_norm(net(), "weight_std")
    with pytest.raises(InvalidModel, match="computed from others"):
        ns.with_norm(twice, "weight_mean", "conv1")
    with pytest.raises(InvalidConfig, match="single weight"):
        ns.with_norm(nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 2, 1)), "weight_std")
    with pytest.raises(InvalidConfig, match="transposed convolutions in groups"):
        ns.with_norm(nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.Conv2d(4, 2, 1)), "weight_std")


class Block(nn.Module):
    """A residual block of somebody's own, whose branch has three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(F.relu(self.b(F.relu(self.a(x)))))


def own() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), Block(), Block(), nn.Linear(6, 3))


INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_skipinit_multiplies_each_branch_by_a_number_that_starts_at_zero(norm: str) -> None:
    drawn = ns.with_init(net(norm), "skipinit", seed=0, batch=batch())
    scales = {path: p for path, p in drawn.named_parameters() if path.endswith("output_scalar.scale")}
    assert len(scales) == 3 and all(float(scale.detach()) == 0 for scale in scales.values())
    for scale in scales.values():
        scale.data.fill_(1.0)
    torch.testing.assert_close(drawn(images()), ns.with_init(net(norm), "xavier_uniform", seed=0)(images()))


def test_skipinit_is_its_equation_on_somebodys_model() -> None:
    drawn = ns.with_init(own(), "skipinit", seed=0, batch=INPUTS)
    assert [path for path, _ in drawn.named_parameters() if "scalar" in path] == [
        "1.c.output_scalar.scale",
        "2.c.output_scalar.scale",
    ]
    x = drawn[0](INPUTS)
    torch.testing.assert_close(drawn(INPUTS), drawn[3](x))
    with torch.no_grad():
        drawn[1].c.output_scalar.scale.fill_(0.5)
    inner = F.relu(drawn[1].b(F.relu(drawn[1].a(x))))
    expected = x + 0.5 * F.linear(inner, drawn[1].c.weight, drawn[1].c.bias)
    torch.testing.assert_close(drawn(INPUTS), drawn[3](expected))


def test_fixup_is_its_rules_on_somebodys_model() -> None:
    drawn = ns.with_init(own(), "fixup", seed=0, batch=INPUTS)
    plain = ns.with_init(own(), "kaiming_normal", seed=0, batch=INPUTS)
    for block in (1, 2):
        for layer in ("a", "b"):  # 2 branches of 3 layers: 2^(-1/4)
            expected = plain.get_parameter(f"{block}.{layer}.weight") * 2**-0.25
            torch.testing.assert_close(drawn.get_parameter(f"{block}.{layer}.weight"), expected)
        assert not drawn.get_parameter(f"{block}.c.weight").any()
    torch.testing.assert_close(drawn.get_parameter("0.weight"), plain.get_parameter("0.weight"))
    assert not drawn.get_parameter("3.weight").any() and not drawn.get_parameter("3.bias").any()
    scalars = {name: p for name, p in drawn.named_parameters() if "scalar" in name}
    assert len(scalars) == 2 * 7, "a bias in front of and behind each of three layers, and a multiplier at the end"
    assert {name.rpartition("scalar.")[2]: float(p.detach()) for name, p in scalars.items()} == {
        "bias": 0.0,
        "scale": 1.0,
    }

    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = drawn[0](INPUTS)
    for block in (drawn[1], drawn[2]):
        u = x
        for layer, last in ((block.a, False), (block.b, False), (block.c, True)):
            u = F.linear(u + layer.input_scalar.bias, layer.weight, layer.bias)
            u = (
                u * layer.output_scalar.scale + layer.output_scalar.bias
                if last
                else F.relu(u + layer.output_scalar.bias)
            )
        x = x + u
    torch.testing.assert_close(drawn(INPUTS), drawn[3](x))


def test_what_these_inits_need_is_said() -> None:
    with pytest.raises(InvalidConfig, match="needs a batch"):
        ns.with_init(net(), "fixup", seed=0)
    with pytest.raises(InvalidConfig, match="networks without norms"):
        ns.with_init(net("batch"), "fixup", seed=0, batch=batch())
    with pytest.raises(InvalidConfig, match="'rezero' is 'skipinit'"):
        ns.with_init(net(), "rezero", seed=0)
    with pytest.raises(InvalidConfig, match="give a batch"):
        ns.with_init(own(), "skipinit", seed=0)
    for kind in ("skipinit", "fixup"):
        with pytest.raises(InvalidConfig, match="none shows on this batch"):
            ns.with_init(net(name="plain8"), kind, seed=0, batch=batch())
    drawn = ns.with_init(net(), "skipinit", seed=0)
    with pytest.raises(InvalidModel, match="already"):
        ns.with_init(drawn, "skipinit", seed=0)


@pytest.mark.parametrize("name", ["skipinit", "fixup", "weight_mean", "weight_std"])
def test_each_is_a_repair_by_name_that_leaves_no_trace_and_can_be_measured(name: str) -> None:
    assert name in REPAIRS
    entry = by_name("functional_relu")
    model, mini_batch = disturb(entry.build()), entry.batch()
    if name == "fixup":
        model = ns.with_norm(model, "none")
    [repair] = repairs([name], steps=10)
    with no_trace(model, mini_batch):
        changed = repair.apply(model, seed=0, batch=mini_batch, loss_fn=entry.loss_fn)
    assert set(model.state_dict()) != set(changed.state_dict())
    with no_trace(changed, mini_batch):
        moments: Any = ns.channel_moments(changed, mini_batch)
        loss: Any = ns.relative_loss(changed, mini_batch, step_sizes=[1e-3])
    assert moments["variance"].notnull().any()
    assert math.isfinite(float(loss["loss_before"]))
