"""Generated models: a number fixes the layers, what they do to themselves in forward, the state they come in, and the
batch. The same number gives the same bits, so that a probed model is compared with one that never was."""

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

WIDTH, CLASSES, EXAMPLES = 8, 3, 4


@dataclass
class Note:
    calls: int = 0
    seen: list[Any] = field(default_factory=list)


class Hooks(nn.Module):
    """Hangs a hook on its layer in the first call, notes that, and relies on it from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.caught = nn.Linear(WIDTH, WIDTH), []

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "handle"):
            self.handle = self.layer.register_forward_hook(lambda _m, _i, y: self.caught.append(y))
        self.caught.clear()
        self.layer(x)
        return self.caught[0]


class PreHook(nn.Module):
    """A hook that takes itself away when it has run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.handle = self.layer.register_forward_pre_hook(self._first)

    def _first(self, module: nn.Module, _inputs: Any) -> None:
        self.layer.weight.data.mul_(0.5)
        self.handle.remove()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Average(nn.Module):
    """Rebinds a buffer, with or without its graph."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.detached = detached
        self.register_buffer("ema", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(0, -2).mean(0)
        self.ema = 0.9 * self.ema + 0.1 * (mean.detach() if self.detached else mean)
        if not self.detached:
            y, self.ema = x - self.ema, self.ema.detach()
            return y
        return x - self.ema


class Late(nn.Module):
    """Makes parameters, a buffer and a module in its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.inner is None:
            self.inner = nn.Linear(WIDTH, WIDTH)
            self.shift = nn.Parameter(torch.zeros(WIDTH))
            self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.calls += 1
        return self.inner(x) + self.shift / self.calls


class Replaces(nn.Module):
    """Has another layer, with other memory, after every third call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(WIDTH, WIDTH), 0

    def forward(self, x: Tensor) -> Tensor:
        y, self.calls = self.layer(x), self.calls + 1
        if self.calls % 3 == 0:
            self.layer = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        return y


class Deletes(nn.Module):
    """Drops a branch, a buffer and an attribute after its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.branch, self.note = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), "first"
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if "branch" in self._modules:
            x = self.branch(x) * self.scale
            del self.branch, self.scale, self.note
        return self.layer(x)


class Parametrizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if not nn.utils.parametrize.is_parametrized(self.layer):
            parametrizations.weight_norm(self.layer)
        return self.layer(x)


class Remembers(nn.Module):
    """In attributes of every sort, some in each other, some tensors, one a module that only a list leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.cache, self.tree, self.names, self.last = [], {"inner": [1]}, {"a"}, deque([0], maxlen=2)
        self.order, self.note, self.plain = OrderedDict(b=1, a=2), Note(), SimpleNamespace(calls=0)
        self.mean, self.hidden = torch.zeros(WIDTH), [nn.BatchNorm1d(WIDTH)]

    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden[0](x.flatten(0, -2)).reshape(x.shape)
        self.cache.append(y.detach())
        self.tree.setdefault("other", []).append(2)
        self.names.add(str(len(self.cache)))
        self.last.append(len(self.cache))
        self.order.move_to_end("b")
        self.note.calls += 1
        self.note.seen.append(1)
        self.plain.calls += 1
        self.mean.add_(y.detach().flatten(0, -2).mean(0))
        return y + self.mean / len(self.cache)


class Moves(nn.Module):
    """Gives its tensors other memory and hooks of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight.data = self.layer.weight.data.clone() * 0.99
        if self.layer.bias.requires_grad:
            self.layer.bias.register_hook(lambda _: None)
        return self.layer(x)


class Modes(nn.Module):
    """Freezes and thaws a layer, and puts another in evaluation mode by turns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.bias.requires_grad_(not self.layer.bias.requires_grad)
        self.drop.train(not self.drop.training)
        return self.drop(self.layer(x))


class Freezes(nn.Module):
    """Freezes a weight before it is used, and another after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.requires_grad_(False)
        y = self.second(self.first(x))
        self.second.weight.requires_grad_(False)
        return y


class Swaps(nn.Module):
    """Has another class, and another forward, after its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.__class__ = Swapped
        self.forward = lambda x: self.layer(x) * 1.5
        return self.layer(x)


class Swapped(Swaps):
    pass


class Random(nn.Module):
    """Draws from every generator, one of its own among them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(WIDTH) * random.random()
        return F.dropout(x + 0.01 * noise, 0.1) * self.scale


class Draws(nn.Module):
    """From generators of its own, and counts in an array."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.counts = nn.Linear(WIDTH, WIDTH), np.zeros(2)
        self.first, self.others = torch.Generator().manual_seed(1), [random.Random(2), np.random.default_rng(3)]

    def forward(self, x: Tensor) -> Tensor:
        self.counts += 1
        drawn = sum(other.random() for other in self.others) / self.counts[0]
        return self.layer(x) + 0.1 * drawn * torch.randn(WIDTH, generator=self.first)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x if x.ndim == 3 else x.unsqueeze(1)
        return self.attention(y, y, y)[0].reshape(x.shape)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.state = nn.GRU(WIDTH, WIDTH, batch_first=True), None

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.cell(x if x.ndim == 3 else x.unsqueeze(1))
        self.state = state.detach()
        return y.reshape(x.shape)


class Batchwise(nn.Module):
    """A norm over the examples, whatever lies between them and the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, -2)).reshape(x.shape)


def spectral() -> nn.Module:
    return parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))


PLAIN: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(WIDTH, WIDTH),
    lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    lambda: nn.LayerNorm(WIDTH),
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.GELU,
    nn.Tanh,
    lambda: nn.Dropout(0.2),
    lambda: nn.RMSNorm(WIDTH),
    Batchwise,
    Attention,
    Recurrent,
    spectral,
    Random,
]

CHANGING: list[Callable[[], nn.Module]] = [
    Hooks,
    PreHook,
    lambda: Average(True),
    lambda: Average(False),
    Late,
    Replaces,
    Deletes,
    Parametrizes,
    Remembers,
    Moves,
    Modes,
    Freezes,
    Swaps,
    Draws,
]


class Net(nn.Module):
    """A stem, a body of generated blocks, a head: logits, or a loss where it is given labels."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        h = self.stem(x)
        if h.ndim == 4:
            h = h.flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = block(h)
        logits = self.head(h if h.ndim == 2 else h.mean(1))
        return logits if labels is None else SimpleNamespace(loss=F.cross_entropy(logits, labels), logits=logits)


@dataclass
class Bag:
    """A batch of somebody's own class."""

    x: Tensor
    y: Tensor


def loss_of_bag(model: nn.Module, batch: Bag) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)


def generated(number: int) -> tuple[nn.Module, Any, dict[str, Any]]:
    """A model, a batch, and the keyword arguments that instruments are given; random states are left as they were."""
    chance = random.Random(number)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        stem, x = _stem(chance)
        blocks: list[nn.Module] = []
        for _ in range(chance.randrange(1, 6)):
            block = chance.choice(CHANGING if chance.random() < 0.3 else PLAIN)()
            blocks.append(Residual(block) if chance.random() < 0.2 else block)
        if chance.random() < 0.15:
            blocks.append(chance.choice(blocks))  # one module twice
        model = Net(stem, blocks, nn.Linear(WIDTH, CLASSES))
        _disturb(model, chance)
        y = torch.randint(CLASSES, (EXAMPLES,))
    kind = chance.choice(["pair", "pair", "mapping", "bag"])
    if kind == "mapping":
        return model, {"x": x, "labels": y}, {}
    return (model, Bag(x, y), {"loss_fn": loss_of_bag}) if kind == "bag" else (model, (x, y), {})


def _stem(chance: random.Random) -> tuple[nn.Module, Tensor]:
    kind = chance.choice(["vector", "sequence", "tokens", "image"])
    if kind == "tokens":
        return nn.Embedding(11, WIDTH, sparse=chance.random() < 0.2), torch.randint(11, (EXAMPLES, 5))
    if kind == "image":
        return nn.Conv2d(3, WIDTH, 3, groups=1), torch.randn(EXAMPLES, 3, 5, 5)
    shape = (EXAMPLES, 6) if kind == "vector" else (EXAMPLES, 3, 6)
    return nn.Linear(6, WIDTH), torch.randn(shape)


def _disturb(model: nn.Module, chance: random.Random) -> None:
    """Gradients, modes, frozen parameters and hooks, as models come that were used before."""
    for parameter in model.parameters():
        if chance.random() < 0.3:
            parameter.grad = torch.randn_like(parameter)
        parameter.requires_grad_(chance.random() < 0.9)
    for module in model.modules():
        module.training = chance.random() < 0.7
    if chance.random() < 0.3:
        model.register_forward_hook(lambda *_: None)
    if chance.random() < 0.2 and model.head.weight.requires_grad:
        model.head.weight.register_hook(lambda gradient: gradient)
    if chance.random() < 0.1:
        model.head.register_full_backward_hook(lambda *_: None)
