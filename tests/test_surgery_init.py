"""with_init: the bits of `init_` and of build_net, the model untouched, and branches that add nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, by_name, disturb, no_trace

import normscope as ns
from normscope.errors import InvalidConfig, InvalidModel
from normscope.nets import build_net
from normscope.nets.names import INITS
from normscope.nets.residual_tails import declared_tails
from normscope.surgery.places import existing_norms
from normscope.surgery.tail_search import found_tails

RESIDUAL = ("functional_relu", "attention")
"""The models of the zoo with residual sums."""


def net(init: str = "xavier_uniform", norm: str = "batch", shortcut: str = "projection") -> nn.Module:
    return build_net("resnet8", norm=norm, init=init, shortcut=shortcut, image_size=8, width=8, seed=0)


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def bits(model: nn.Module) -> dict[str, list]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("norm", ["none", "batch", "rms", "final"])
@pytest.mark.parametrize("init", [init for init in INITS if init != "default"])
def test_equals_a_network_built_with_the_init(init: str, norm: str) -> None:
    for batch in (None, images()):
        assert bits(ns.with_init(net(norm=norm), init, seed=0, batch=batch)) == bits(net(init, norm))


@pytest.mark.parametrize("entry", ZOO, ids=str)
@pytest.mark.parametrize("init", INITS)
def test_zoo(entry, init: str) -> None:
    model, batch = disturb(entry.build()), entry.batch()
    torch.manual_seed(7)
    with no_trace(model, batch):
        if init == "zero_residual" and entry.name not in RESIDUAL:
            with pytest.raises(InvalidConfig, match="none shows on this batch") as caught:
                ns.with_init(model, init, seed=3, batch=batch, loss_fn=entry.loss_fn)
            assert "\n" not in str(caught.value)
            return
        drawn = ns.with_init(model, init, seed=3, batch=batch, loss_fn=entry.loss_fn)
        again = ns.with_init(model, init, seed=3, batch=batch, loss_fn=entry.loss_fn)
    assert bits(drawn) == bits(again) != bits(model)
    assert list(drawn.state_dict()) == list(model.state_dict())
    assert [p.requires_grad for p in drawn.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [m.training for m in drawn.modules()] == [m.training for m in model.modules()]


def test_the_output_layer_stays_and_is_the_last_called_where_a_batch_is_given() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(5, 3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.body(x)))

    def changed(**named: Any) -> set[str]:
        drawn = ns.with_init(model, "orthogonal", seed=0, **named).state_dict()
        return {name for name, value in model.state_dict().items() if not torch.equal(value, drawn[name])}

    model, x = HeadFirst(), torch.randn(6, 4)
    assert changed() == {"head.weight", "head.bias"}
    assert changed(batch=x) == {"body.weight", "body.bias"}
    every = {"head.weight", "head.bias", "body.weight", "body.bias"}
    assert changed(batch=x, keep_output_layer=False) == every
    tied = by_name("embedding_tied")
    model = tied.build()
    assert changed(batch=tied.batch()) == {"hidden.weight", "hidden.bias"}


def test_scale() -> None:
    one, half = (ns.with_init(net(), "xavier_normal", seed=1, scale=scale) for scale in (1.0, 0.5))
    assert torch.equal(half.conv1.weight, 0.5 * one.conv1.weight)


def test_norms_that_were_put_in_are_no_layers() -> None:
    """The same weights as without them, and a branch ends in its norm."""
    bare = net(norm="none")
    normed = ns.with_norm(bare, "batch")
    kept = {
        name: value for name, value in bits(ns.with_init(normed, "orthogonal", seed=2)).items() if name in bits(bare)
    }
    assert kept == bits(ns.with_init(bare, "orthogonal", seed=2))
    zeroed = ns.with_init(normed, "zero_residual", seed=0)
    for block in (zeroed.layer1[0], zeroed.layer2[0]):
        assert not block.conv2.output_norm.weight.any() and block.conv2.weight.any()


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_found_tails_are_the_declared_ones(norm: str, shortcut: str) -> None:
    model = net(norm=norm, shortcut=shortcut)
    assert len(declared_tails(model)) == 3
    assert set(found_tails(model, images())) == set(declared_tails(model))


def test_a_declared_tail_that_is_not_there_is_named() -> None:
    class Misnamed(nn.Sequential):
        residual_tail = "conv9"

    model = Misnamed(nn.Conv2d(3, 3, 1))
    with pytest.raises(InvalidModel, match=r"Misnamed.residual_tail is 'conv9': it has no such layer"):
        ns.with_init(model, "zero_residual", seed=0, batch=images())


class Block(nn.Module):
    """A residual block after torchvision's: the sum in place, the projection called last or first."""

    def __init__(self, *, project: bool, projection_first: bool = False, gate: str = "") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)) if project else None
        self.projection_first, self.gate = projection_first, gate
        self.excite = nn.Linear(4, 4) if gate == "excite" else None

    def forward(self, x: Tensor) -> Tensor:
        identity = self.shortcut(x) if self.projection_first else None
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.excite is not None:
            out = out * torch.sigmoid(self.excite(out.mean((2, 3))))[:, :, None, None]
        if self.gate == "sigmoid":
            out = torch.sigmoid(out)
        out += self.shortcut(x) if identity is None else identity
        return F.relu(out)

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)


class PreActivation(nn.Module):
    """Norm and activation in front of each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return x + F.dropout(self.scale * out, 0.1, self.training)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "identity": (lambda: Block(project=False), ["bn2"]),
    "projection called last": (lambda: Block(project=True), ["bn2"]),
    "projection called first": (lambda: Block(project=True, projection_first=True), ["bn2"]),
    "squeeze and excite": (lambda: Block(project=False, gate="excite"), ["bn2"]),
    "pre-activation": (PreActivation, ["conv2"]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_branches_are_found_and_add_nothing(name: str) -> None:
    make, tails = BLOCKS[name]
    blocks = [make(), make()]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    found = found_tails(model, (images(), None))
    assert set(found) == {block.get_submodule(tail) for block in blocks for tail in tails}
    changed = ns.with_init(model, "zero_residual", seed=0, batch=images())
    x = torch.randn(2, 4, 5, 5)
    for block in (changed[1], changed[2]):
        shortcut = block.shortcut(x) if isinstance(block, Block) else x
        assert torch.equal(block(x), F.relu(shortcut) if isinstance(block, Block) else shortcut)


def test_a_branch_off_the_input_itself() -> None:
    block, x = PreActivation(), torch.randn(2, 4, 5, 5)
    assert torch.equal(ns.with_init(block, "zero_residual", seed=0, batch=x, keep_output_layer=False)(x), x)


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformers(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    model = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 4))
    x = torch.randn(2, 5, 3)
    assert set(found_tails(model, x)) == {layer.self_attn, layer.linear2}
    changed = ns.with_init(model, "zero_residual", seed=0, batch=x)
    assert not changed[1].self_attn.out_proj.weight.any() and not changed[1].linear2.weight.any()
    hidden = changed[0](x)
    expected = hidden if norm_first else changed[1].norm2(changed[1].norm1(hidden))
    assert torch.equal(changed[1](hidden), expected)


def test_sums_that_are_not_residual() -> None:
    class Positions(nn.Module):
        """Words and projected positions, a table that is a parameter, two equal paths off one input."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(9, 4), nn.Embedding(5, 4)
            self.table = nn.Parameter(torch.randn(5, 4))
            self.project, self.head = nn.Linear(4, 4), nn.Linear(4, 9)
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.words(tokens) + self.project(self.places(torch.arange(5))) + self.table
            return self.head(self.left(x) + self.right(x))

    with pytest.raises(InvalidConfig, match="none shows on this batch"):
        ns.with_init(Positions(), "zero_residual", seed=0, batch=torch.zeros(2, 5, dtype=torch.int64))


def test_refusals() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), Block(project=False), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(InvalidConfig, match="no block names its residual_tail; give a batch"):
        ns.with_init(plain, "zero_residual", seed=0)
    with pytest.raises(InvalidConfig, match="did you mean 'orthogonal'"):
        ns.with_init(plain, "ortogonal", seed=0)
    with pytest.raises(InvalidConfig, match="scale must be positive"):
        ns.with_init(plain, "orthogonal", seed=0, scale=0)
    gated = nn.Sequential(nn.Conv2d(3, 4, 3), Block(project=False, gate="sigmoid"), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(InvalidModel, match="ends in neither a layer nor a norm but in an operation"):
        ns.with_init(gated, "zero_residual", seed=0, batch=images())
    plain[1].bn2 = nn.BatchNorm2d(4, affine=False)
    with pytest.raises(InvalidModel, match=r"'1\.bn2' \(BatchNorm2d\) ends a residual branch but owns"):
        ns.with_init(plain, "zero_residual", seed=0, batch=images())


def test_zero_residual_finds_the_norms_that_were_put_in() -> None:
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), PreActivation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    normed = ns.with_norm(bare, "batch", "everywhere")
    assert "1.conv2.output_norm" in existing_norms(normed)
    assert found_tails(normed, images()) == [normed[1].conv2.output_norm]
