"""Each part of batch norm against its equation in float64, against torch where torch has it, and against each other."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

import normscope as ns
from normscope.errors import InvalidModel
from normscope.nets import names
from normscope.nets.batch_norm_parts import PARTS
from normscope.nets.norms import EPS, make_norm

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # both sides are float64, so they differ only by the order of summation


def inputs(seed: int = 0, examples: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 3, 4, 2, generator=generator, dtype=torch.float64)
    return x * torch.tensor([1.0, 3.0, 0.2]).reshape(3, 1, 1) + torch.tensor([0.5, -2.0, 7.0]).reshape(3, 1, 1)


def made(kind: str, channel_dim: int = 1) -> nn.Module:
    norm = make_norm(kind, 3, channel_dim=channel_dim).double()
    with torch.no_grad():
        norm.get_parameter("weight").copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.get_parameter("bias").copy_(torch.tensor([-1.0, 0.0, 3.0]))
    return norm


def equation(kind: str, x: Tensor, norm: nn.Module) -> Tensor:
    """One batch in training, channel by channel."""
    y = torch.empty_like(x)
    for c in range(3):
        weight, bias = norm.get_parameter("weight")[c], norm.get_parameter("bias")[c]
        for some in x.split([16, 24]) if kind == "batch_ghost" else [x]:
            m, v = some[:, c].mean(), some[:, c].var(correction=0)
            n = some[:, c].numel()
            if kind in ("batch_detached", "batch_first", "batch_running"):
                m, v = m.detach(), v.detach()
            if kind in ("batch_first", "batch_running"):
                v = v * n / (n - 1)  # running variances are unbiased
            value = some[:, c] - (0 if kind == "batch_std" else m)
            value = value / (1 if kind == "batch_mean" else (v + EPS).sqrt())
            start = 0 if len(some) == 16 else len(x) - len(some)  # the ghost batches are 16 and 24 of 40 examples
            y[start : start + len(some), c] = weight * value + bias
    return y


def gradient(norm: nn.Module, x: Tensor, by: nn.Module | None = None, kind: str = "") -> tuple[Tensor, Tensor]:
    """The output, and the gradient of a loss of it at the input."""
    x = x.clone().requires_grad_(True)
    y = norm(x) if by is None else equation(kind, x, by)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    (y.square() * weights).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_each_part_is_its_equation_and_so_is_its_gradient(kind, channel_dim):
    x, norm = inputs(), made(kind, channel_dim)
    there = x if channel_dim == 1 else x.movedim(1, -1)
    y, slope = gradient(norm, there)
    if channel_dim == -1:
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape).movedim(-1, 1)
        z = x.clone().requires_grad_(True)
        expected = equation(kind, z, norm)
        (expected.square() * weights).sum().backward()
        assert z.grad is not None
        torch.testing.assert_close(y.movedim(-1, 1), expected.detach(), **EXACT)
        torch.testing.assert_close(slope.movedim(-1, 1), z.grad, **EXACT)
    else:
        expected, their = gradient(norm, x, by=norm, kind=kind)
        torch.testing.assert_close(y, expected, **EXACT)
        torch.testing.assert_close(slope, their, **EXACT)


@pytest.mark.parametrize("kind", ["batch_detached", "batch_mean", "batch_std", "batch_ghost"])
def test_evaluation_and_running_averages_are_torchs(kind):
    norm, torchs = made(kind), nn.BatchNorm2d(3).double()
    for seed in range(3):
        x = inputs(seed)
        norm(x)
        for some in x.split([16, 24]) if kind == "batch_ghost" else [x]:
            torchs(some)
    torch.testing.assert_close(norm.running_mean, torchs.running_mean, **EXACT)
    torch.testing.assert_close(norm.running_var, torchs.running_var, **EXACT)
    assert norm.num_batches_tracked == torchs.num_batches_tracked
    if kind in ("batch_detached", "batch_ghost"):
        torchs.load_state_dict(norm.state_dict())
        torch.testing.assert_close(norm.eval()(x), torchs.eval()(x), **EXACT)


def test_detached_gives_what_batch_norm_gives_with_another_gradient():
    torchs = nn.BatchNorm2d(3).double()
    torchs.load_state_dict(made("batch_detached").state_dict())
    (y, slope), (theirs, other) = gradient(made("batch_detached"), inputs()), gradient(torchs, inputs())
    torch.testing.assert_close(y, theirs, **EXACT)
    assert (slope - other).norm() > 0.1 * other.norm()


def test_the_first_batch_is_kept_for_good_and_running_averages_take_in_each():
    first, running = made("batch_first"), made("batch_running")
    a, b = inputs(0), 5 * inputs(1) + 1
    first(a), running(a)
    mean = a.mean((0, 2, 3))
    torch.testing.assert_close(first.running_mean, mean, **EXACT)
    torch.testing.assert_close(running.running_mean, mean, **EXACT)
    torch.testing.assert_close(first(b), first.eval()(b), **EXACT)
    torch.testing.assert_close(first.running_mean, mean, **EXACT)
    y = running(b)
    torch.testing.assert_close(running.running_mean, 0.9 * mean + 0.1 * b.mean((0, 2, 3)), **EXACT)
    torch.testing.assert_close(running.eval()(b), y, **EXACT)


@pytest.mark.parametrize("pair", list(combinations(["batch", *PARTS], 2)))
def test_no_part_silently_is_another(pair):
    """Two batches in training: their outputs or gradients tell any two parts apart."""
    seen = []
    for kind in pair:
        norm = made(kind)
        gradient(norm, inputs(0))
        y, slope = gradient(norm, 2 * inputs(1) - 1)
        seen.append(torch.cat([y.flatten(), slope.flatten()]))
    assert (seen[0] - seen[1]).norm() > 0.01 * seen[0].norm()


@pytest.mark.parametrize("kind", PARTS)
def test_works_on_somebodys_model_and_in_the_papers_networks(kind):
    net = ns.build_net("resnet8", norm=kind, in_channels=1, image_size=8)
    data = ns.load_data("digits")
    batch = data.train_images[:32], data.train_labels[:32]
    output = net(batch[0])
    assert torch.isfinite(output).all()
    changed = ns.with_norm(ns.build_net("resnet8", norm="batch", in_channels=1, image_size=8), kind)
    assert torch.equal(changed(batch[0]), output), "the same network, by surgery"
    before = {name: value.clone() for name, value in changed.state_dict().items()}
    ns.relative_loss(changed, batch, step_sizes=[0.1])
    assert all(torch.equal(value, before[name]) for name, value in changed.state_dict().items())
    back = ns.with_norm(changed, "none")
    assert not any("running_mean" in name for name in back.state_dict())


@pytest.mark.parametrize("kind", PARTS)
def test_fewer_bits_cost_only_the_output_its_own(kind):
    """As torch's batch norm: statistics of an input in bfloat16 are not rounded to it."""
    norm, x = made(kind).float(), inputs().bfloat16()
    y = norm(x)
    assert y.dtype == torch.bfloat16 and norm.get_buffer("running_mean").dtype == torch.float32
    # one rounding, to 8 bits
    torch.testing.assert_close(y.double(), made(kind)(x.double()), rtol=2**-8, atol=2**-8)


def test_one_value_a_channel_is_refused_in_training():
    norm = make_norm("batch_std", 3, spatial_dims=0)
    with pytest.raises(InvalidModel, match="more than 1 value per channel"):
        norm(torch.ones(1, 3))
    assert norm.eval()(torch.ones(1, 3)).shape == (1, 3)


def test_the_names_known_without_torch_are_those_of_the_parts():
    assert tuple(PARTS) == names.PARTS
