"""Deliberately broken models and set-ups, each with the diagnosis that is right for it, and healthy ones.

Small enough that all of them are diagnosed in a minute; trained on the embedded digits (real images of 8×8), whole, as
rows or as a sequence of pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope as ns

CLASSES, PIXELS, ROWS = 10, 64, 8


@dataclass(frozen=True)
class Case:
    """A set-up and what is wrong with it: a finding's name, or "healthy"."""

    name: str
    expected: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (PIXELS,)
    batch_size: int = 32
    optimizer: str = "sgd"
    change: Callable[[Tensor, Tensor], Any] = lambda x, y: (x, y)
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None
    instance: bool = False
    """Diagnosed as a model that is there, not as a fresh build."""

    def batches(self) -> list[Any]:
        images, labels = digits()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
        pairs = zip(images[order].split(self.batch_size), labels[order].split(self.batch_size), strict=True)
        return [self.change(x.reshape(-1, *self.shape), y) for x, y in list(pairs)[:40]]

    def model_or_build(self) -> Any:
        return build_seeded(self.build, 0) if self.instance else partial(build_seeded, self.build)

    def __str__(self) -> str:
        return self.name


def build_seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = ns.load_data("digits")
    return data.train_images, data.train_labels


def mlp(
    width: int = 32, hidden: int = 2, activation: type[nn.Module] = nn.ReLU, outputs: int = CLASSES
) -> nn.Sequential:
    sizes = [PIXELS, *[width] * hidden]
    body = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), activation())]
    return nn.Sequential(*body, nn.Linear(width, outputs))


def net(name: str, **options: Any) -> nn.Module:
    return ns.build_net(name, in_channels=1, image_size=ROWS, seed=int(torch.randint(1000, ())), **options)


class Residual(nn.Module):
    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class ResidualMLP(nn.Module):
    """x + relu(W x), block upon block."""

    def __init__(self, blocks: int, width: int = 24) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(PIXELS, width), nn.Linear(width, CLASSES)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + F.relu(block(x))
        return self.last(x)


class Attention(nn.Module):
    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class Transformer(nn.Module):
    def __init__(self, blocks: int, norm: bool, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Linear(ROWS, width)
        self.place = nn.Parameter(0.02 * torch.randn(ROWS, width))
        self.blocks = nn.Sequential(
            *[m for _ in range(blocks) for m in (Attention(width, norm), Residual(width, norm))]
        )
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, CLASSES)
        if not norm:
            for layer in self.modules():
                if isinstance(layer, nn.Linear) and layer is not self.head:
                    nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x) + self.place)).mean(1))


class Cell(nn.Module):
    """An unrolled recurrence whose map from state to state has a chosen gain."""

    def __init__(self, gain: float, activation: Callable[[Tensor], Tensor], width: int = 32) -> None:
        super().__init__()
        self.inward, self.state, self.head = nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, CLASSES)
        nn.init.orthogonal_(self.state.weight, gain)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.state.in_features)
        for t in range(x.shape[1]):
            h = self.activation(self.state(h) + self.inward(x[:, t]))
        return self.head(h)


class FusedRNN(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(2, 32, batch_first=True), nn.Linear(32, CLASSES)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(8, 24, batch_first=True), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


class Tempered(nn.Module):
    """Logits multiplied by a constant."""

    def __init__(self, body: nn.Module, factor: float) -> None:
        super().__init__()
        self.body, self.factor = body, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.body(x)


class CutOff(nn.Module):
    """The features are detached in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(PIXELS, 64), nn.ReLU()), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).detach())


class Penalty(nn.Module):
    """A scalar: the squared distance of activations to the nearest of some centres."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(4, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.centres).amin(1).square().mean()


class WithPenalty(nn.Module):
    """Logits that a scalar changes by next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.penalty = mlp(), Penalty()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x)
        return logits * (1 + 1e-3 * torch.tanh(self.penalty(logits)))


def zero_head() -> nn.Module:
    model = mlp()
    nn.init.zeros_(model[-1].weight)  # pyright: ignore
    return model


def oversized() -> nn.Module:
    model = mlp(hidden=4)
    with torch.no_grad():
        model[4].weight *= 100
    return model


def oversized_cnn() -> nn.Module:
    model = net("plain8", init="kaiming_normal", width=8)
    with torch.no_grad():
        next(m for path, m in model.named_modules() if path.endswith("conv2")).weight *= 100
    return model


def dead_relu() -> nn.Module:
    model = mlp(hidden=3)
    with torch.no_grad():
        model[2].bias -= 100
    return model


def frozen_body() -> nn.Module:
    model = mlp(width=64, hidden=3)
    for parameter in list(model.parameters())[:-2]:
        parameter.requires_grad_(False)
    return model


def bn_mlp() -> nn.Module:
    sizes = [PIXELS, 64, 64, 64]
    body = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
    return nn.Sequential(*body, nn.Linear(64, CLASSES))


def pretrained() -> nn.Module:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    images, labels = digits()
    for _ in range(4):
        for x, y in zip(images.flatten(1).split(32), labels.split(32), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model


def summed(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def offset(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1]) + 1000


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def shuffled(x: Tensor, y: Tensor) -> Any:
    generator = torch.Generator().manual_seed(int(1e4 * x.double().abs().sum()) % 2**31)
    return x, y[torch.randperm(len(y), generator=generator)]


def unscaled(x: Tensor, y: Tensor) -> Any:
    return 127 + 80 * x, y


def one_large_feature(x: Tensor, y: Tensor) -> Any:
    return torch.cat([1000 * (1 + x[:, :1]), x[:, 1:]], 1), y


def rare(x: Tensor, y: Tensor) -> Any:
    return x, (y == 0).long()


def brightness(x: Tensor, y: Tensor) -> Any:
    target = torch.stack([x[:, :32].mean(1), x[:, 32:].mean(1)], 1)
    return x, 3 * (target - target.mean(0))


IMAGE = (1, ROWS, ROWS)
SEQUENCE = (32, 2)
LINES = (ROWS, ROWS)

CASES = [
    Case("too deep without norm", "exploding", lambda: net("resnet44", init="kaiming_normal", width=4), IMAGE),
    Case("too deep without norm, Adam", "exploding", lambda: ResidualMLP(40), optimizer="adam"),
    Case("transformer without norms", "exploding", lambda: Transformer(10, norm=False), LINES),
    Case("one layer 100 times too large", "oversized", oversized),
    Case("one convolution 100 times too large", "oversized", oversized_cnn, IMAGE),
    Case("a dead ReLU layer", "dead", dead_relu),
    Case("shuffled labels", "labels", lambda: mlp(width=64), change=shuffled),
    Case("shuffled labels, batch norm", "labels", bn_mlp, change=shuffled),
    Case("unscaled inputs", "inputs", mlp, change=unscaled),
    Case("unscaled images", "inputs", lambda: net("plain8", init="kaiming_normal", width=8), IMAGE, change=unscaled),
    Case("one feature unscaled", "inputs", mlp, change=one_large_feature),
    Case("tiny inputs", "inputs", mlp, change=lambda x, y: (1e-3 * x, y)),
    Case("summed loss", "summed", mlp, loss_fn=summed),
    Case("batch norm on batches of two", "batch_noise", bn_mlp, batch_size=2),
    Case("batch norm on pairs of images", "batch_noise", lambda: net("resnet14", norm="batch", width=8), IMAGE, 2),
    Case("frozen body", "frozen", frozen_body),
    Case("body cut off", "frozen", CutOff),
    Case("saturated softmax", "saturated", lambda: Tempered(mlp(), 300.0)),
    Case("exploding recurrent product", "recurrent", lambda: Cell(2.2, torch.relu), SEQUENCE),
    Case("exploding recurrent gradient", "recurrent", lambda: Cell(4.0, torch.tanh), SEQUENCE),
    Case("exploding recurrent gradient, fused", "recurrent", lambda: FusedRNN(2.5), SEQUENCE),
    Case("vanishing in a deep plain network", "vanishing", lambda: net("plain26", init="default", width=8), IMAGE),
    Case("vanishing in sigmoids", "vanishing", lambda: mlp(hidden=12, activation=nn.Sigmoid)),
    Case("healthy MLP", "healthy", mlp),
    Case("healthy MLP, Adam", "healthy", mlp, optimizer="adam"),
    Case("healthy MLP, momentum", "healthy", lambda: mlp(hidden=4), optimizer="momentum"),
    Case("healthy, its last layer zero at the start", "healthy", zero_head),
    Case("healthy, with a layer that gives a number", "healthy", WithPenalty),
    Case("healthy CNN", "healthy", lambda: net("plain8", init="kaiming_normal", width=8), IMAGE),
    Case("healthy batch norm", "healthy", lambda: net("resnet14", norm="batch", width=8), IMAGE),
    Case("healthy MLP with batch norm", "healthy", bn_mlp),
    Case("healthy group norm", "healthy", lambda: net("resnet14", norm="group", width=8), IMAGE),
    Case("healthy zero residual", "healthy", lambda: net("resnet14", init="zero_residual", width=8), IMAGE),
    Case("healthy transformer", "healthy", lambda: Transformer(4, norm=True), LINES, optimizer="adamw"),
    Case("healthy recurrent network", "healthy", Gated, LINES, optimizer="adam"),
    Case("healthy with a rare class", "healthy", lambda: mlp(outputs=2), change=rare),
    Case("healthy behind a constant in the loss", "healthy", mlp, loss_fn=offset),
    Case("healthy regression", "healthy", lambda: mlp(outputs=2), change=brightness, loss_fn=squared_error),
    Case("healthy with dropout", "healthy", lambda: nn.Sequential(*list(mlp())[:4], nn.Dropout(0.3), mlp()[4])),
    Case(
        "healthy with unscaled inputs behind a norm",
        "healthy",
        lambda: nn.Sequential(nn.BatchNorm1d(PIXELS), mlp()),
        change=unscaled,
    ),
    Case("healthy, trained", "healthy", pretrained, instance=True),
]


def by_name(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
