"""Programs at their user's own rate and number of steps, each broken in one way and mended: what the loss counts, what
it makes of a model, and what a model forgets.

Of each kind there are two. Thresholds were chosen on the first (`CHOSEN`); the second (`REPORTED`) only reports.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from broken import build_seeded, digits
from torch import Tensor, nn

Build = Callable[[], nn.Module]
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Program:
    """A broken program and its mended twin, which differs in the model, the loss or both."""

    expected: str
    broken: tuple[Build, Loss]
    mended: tuple[Build, Loss]
    batches: list[Any]
    lr: float
    steps: int

    def build(self, which: str) -> Callable[[int], nn.Module]:
        """The model of a seed of "broken" or "mended"."""
        make = getattr(self, which)[0]
        return lambda seed: build_seeded(make, seed)

    def __str__(self) -> str:
        return self.expected


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_batches(*parts: Tensor, size: int = 32) -> list[Any]:
    return list(zip(*(part.split(size) for part in parts), strict=True))


# --- Padding that the loss counts ---

LENGTH, TOKENS = 24, 12


def padded_sentences() -> list[Any]:
    """The next token of sentences of 2 to 12 tokens, which depends on the last two; 0 is padding."""
    lengths = torch.randint(3, 14, (960,), generator=seeded(0))
    ids = torch.randint(1, TOKENS, (960, LENGTH + 1), generator=seeded(1))
    noise = torch.rand(ids.shape, generator=seeded(2)) < 0.4
    for t in range(2, LENGTH + 1):
        ids[:, t] = torch.where(noise[:, t], ids[:, t], 1 + (5 * ids[:, t - 1] + 3 * ids[:, t - 2]) % (TOKENS - 1))
    ids[torch.arange(LENGTH + 1)[None] >= lengths[:, None]] = 0
    return in_batches(ids[:, :-1], ids[:, 1:])


class Reader(nn.Module):
    """Tokens or vectors through a GRU to an output at every position."""

    def __init__(self, inputs: int, outputs: int, tokens: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(inputs, 24) if tokens else nn.Linear(inputs, 24)
        self.gru, self.head = nn.GRU(24, 32, batch_first=True), nn.Linear(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.embed(x))[0])


def of_tokens(ignored: int) -> Loss:
    return lambda model, batch: F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=ignored)


def padded_signals() -> list[Any]:
    """A running sum of a noisy product at every step of series of 5 to 20 steps; zeros are padding."""
    lengths = torch.randint(4, 14, (960,), generator=seeded(0))
    x = torch.randn(960, LENGTH, 3, generator=seeded(1))
    y = (x[..., 0] * x[..., 1] * x[..., 2]).cumsum(1).clamp(-3, 3) + torch.randn(960, LENGTH, generator=seeded(2))
    outside = torch.arange(LENGTH)[None] >= lengths[:, None]
    return in_batches(x.masked_fill(outside[..., None], 0.0), y.masked_fill(outside, 0.0)[..., None])


def squares(masked: bool) -> Loss:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        each = (model(x) - y).square()
        seen = (x != 0).any(-1, keepdim=True) if masked else torch.ones_like(y)
        return (each * seen).sum() / seen.sum()

    return loss


# --- Embeddings of two views that may become one point ---


def views() -> list[Any]:
    """Two noisy views of every digit."""
    x = digits()[0].flatten(1)[:960]
    return in_batches(*(x + 0.3 * torch.randn(x.shape, generator=seeded(i)) for i in range(2)))


def encoder(norm: bool) -> Build:
    def build() -> nn.Module:
        layers = [nn.Linear(64, 64), *([nn.BatchNorm1d(64)] if norm else []), nn.ReLU(), nn.Linear(64, 16)]
        return nn.Sequential(*layers)

    return build


def alike(model: nn.Module, batch: Any) -> Tensor:
    return -F.cosine_similarity(model(batch[0]), model(batch[1])).mean()


def told_apart(model: nn.Module, batch: Any) -> Tensor:
    a, b = (F.normalize(model(x), dim=-1) for x in batch)
    return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))


def images_alone() -> list[Any]:
    return [x for (x,) in in_batches(digits()[0].flatten(1)[:960])]


class Siamese(nn.Module):
    """An encoder with a predictor behind it; it makes its own views."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder(True)(), nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x + 0.3 * torch.randn_like(x))
        return z, self.predictor(z)


def predicted(stopped: bool) -> Loss:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        (z1, p1), (z2, p2) = model(x), model(x)
        if stopped:
            z1, z2 = z1.detach(), z2.detach()
        return ((F.normalize(p1, dim=1) - F.normalize(z2, dim=1)).square().sum(1).mean()) + (
            (F.normalize(p2, dim=1) - F.normalize(z1, dim=1)).square().sum(1).mean()
        )

    return loss


# --- Second derivatives ---


def fields(inputs: int, activation: type[nn.Module]) -> Build:
    return lambda: nn.Sequential(nn.Linear(inputs, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 1))


def derivative(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def string(model: nn.Module, x: Tensor) -> Tensor:
    """u″ = −π² sin πx, u(0) = u(1) = 0."""
    x = x.clone().requires_grad_()
    u = model(x)
    residual = derivative(derivative(u, x), x) + torch.pi**2 * torch.sin(torch.pi * x)
    ends = model(torch.tensor([[0.0], [1.0]]))
    return residual.square().mean() + 10 * ends.square().mean()


def heat(model: nn.Module, batch: Any) -> Tensor:
    """u_t = 0.1 u_xx, with u(x, 0) given."""
    inside, (place, value) = batch
    inside = inside.clone().requires_grad_()
    first = derivative(model(inside), inside)
    second = derivative(first[:, :1], inside)[:, :1]
    return (first[:, 1:] - 0.1 * second).square().mean() + (model(place) - value).square().mean()


def rods() -> list[Any]:
    found = []
    for i in range(10):
        place = torch.cat([torch.rand(32, 1, generator=seeded(i)), torch.zeros(32, 1)], 1)
        found.append((torch.rand(64, 2, generator=seeded(50 + i)), (place, torch.sin(torch.pi * place[:, :1]))))
    return found


# --- What came long ago ---


def first_of_many() -> list[Any]:
    """A class told by the first step of sixty."""
    x = torch.randn(960, 60, 4, generator=seeded(0))
    return in_batches(x, x[:, 0].argmax(1))


class Last(nn.Module):
    """The last state of a recurrence, forwards or backwards."""

    def __init__(self, backwards: bool) -> None:
        super().__init__()
        self.rnn, self.head, self.backwards = nn.RNN(4, 32, batch_first=True), nn.Linear(32, 4), backwards

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.flip(1) if self.backwards else x)[0][:, -1])


def classes(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def early_mean() -> list[Any]:
    """The sum of the first four of fifty numbers."""
    x = torch.randn(960, 50, 2, generator=seeded(0))
    return in_batches(x, x[:, :4, :1].sum(1) / 2)


class Cells(nn.Module):
    """A gated recurrence written by hand, whose gate stands open to the new, or keeps the old."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.gate, self.new, self.head = nn.Linear(34, 32), nn.Linear(34, 32), nn.Linear(32, 1)
        with torch.no_grad():
            self.gate.bias.fill_(bias)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 32)
        for t in range(x.shape[1]):
            both = torch.cat([x[:, t], h], 1)
            kept = torch.sigmoid(self.gate(both))
            h = kept * h + (1 - kept) * torch.tanh(self.new(both))
        return self.head(h)


def squared(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


# --- Graphs ---


def communities(nodes: int = 120, kinds: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Features, links and communities of a graph, of which most links stay inside a community."""
    y = torch.arange(nodes) % kinds
    near = torch.where(y[:, None] == y[None], 0.3, 0.03)
    links = (torch.rand(nodes, nodes, generator=seeded(0)) < near).triu(1).float()
    links = links + links.T + torch.eye(nodes)
    x = F.one_hot(y, kinds).float() + torch.randn(nodes, kinds, generator=seeded(1))
    return torch.cat([x, torch.randn(nodes, 4, generator=seeded(2))], 1), links, y


def averaged(links: Tensor) -> Tensor:
    root = links.sum(1).rsqrt()
    return root[:, None] * links * root[None]


class Graph(nn.Module):
    """Layers that average over neighbours; the links come with the data."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        sizes = [8, *[16] * (layers - 1)]
        self.layers = nn.ModuleList(nn.Linear(size, 16) for size in sizes)
        self.head = nn.Linear(16, 4)

    def forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        x, links = data
        for layer in self.layers:
            x = torch.relu(links @ layer(x))
        return self.head(x)


def one_graph() -> list[Any]:
    x, links, y = communities()
    return [((x, averaged(links)), y)]


class Neighbours(nn.Module):
    """Adds up what comes along edges, over how many there are."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        there = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
        count = torch.zeros(len(x)).index_add(0, edges[1], torch.ones(edges.shape[1]))
        return self.linear(there / count[:, None])


class EdgeNet(nn.Module):
    """The graph is the model's own; it tells a number of every node."""

    def __init__(self, layers: int, shortcuts: bool) -> None:
        super().__init__()
        self.register_buffer("edges", communities()[1].nonzero().T.contiguous())
        self.inward, self.head, self.shortcuts = nn.Linear(8, 16), nn.Linear(16, 1), shortcuts
        self.layers = nn.ModuleList(Neighbours(16, 16) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        for layer in self.layers:
            there = torch.tanh(layer(x, self.edges))
            x = x + there if self.shortcuts else there
        return self.head(x)


def numbers_of_nodes() -> list[Any]:
    x = communities()[0]
    return [(x, x[:, :1] - x[:, 1:2])]


CHOSEN = [
    Program(
        "padding",
        (lambda: Reader(TOKENS, TOKENS, True), of_tokens(-100)),
        (lambda: Reader(TOKENS, TOKENS, True), of_tokens(0)),
        padded_sentences(),
        3e-3,
        200,
    ),
    Program("collapse", (encoder(False), alike), (encoder(False), told_apart), views(), 3e-3, 200),
    Program(
        "second_derivative",
        (fields(1, nn.ReLU), string),
        (fields(1, nn.Tanh), string),
        [torch.rand(64, 1, generator=seeded(i)) for i in range(10)],
        1e-2,
        200,
    ),
    Program(
        "forgetting",
        (lambda: Last(False), classes),
        (lambda: Last(True), classes),
        first_of_many(),
        3e-3,
        200,
    ),
    Program("over_smoothing", (lambda: Graph(16), classes), (lambda: Graph(2), classes), one_graph(), 1e-2, 200),
]

REPORTED = [
    Program(
        "padding",
        (lambda: Reader(3, 1, False), squares(False)),
        (lambda: Reader(3, 1, False), squares(True)),
        padded_signals(),
        3e-3,
        200,
    ),
    Program("collapse", (Siamese, predicted(False)), (Siamese, predicted(True)), images_alone(), 3e-3, 200),
    Program("second_derivative", (fields(2, nn.LeakyReLU), heat), (fields(2, nn.SiLU), heat), rods(), 1e-2, 200),
    Program("forgetting", (lambda: Cells(-1.0), squared), (lambda: Cells(4.0), squared), early_mean(), 1e-2, 200),
    Program(
        "over_smoothing",
        (lambda: EdgeNet(16, False), squared),
        (lambda: EdgeNet(4, True), squared),
        numbers_of_nodes(),
        1e-2,
        200,
    ),
]
