"""Six small sound trainings of different kinds, whose parts can be changed one at a time.

Each learns its task in a second or two of one core. Data are scikit-learn's digits, a noisy series and Python's own
help pages; every example is in `train` or in `test`, never in both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training_tasks import text
from normscope.data import load_data

Batch = tuple[Tensor, Tensor]

BATCHES, SIZE = 40, 32
"""Mini-batches to train on, and the examples of each."""


@dataclass(frozen=True)
class Spec:
    """One training, and how well it is told what was learned."""

    name: str
    build: Callable[[int], nn.Module]
    """The model of a seed."""
    train: Sequence[Batch]
    test: Sequence[Batch]
    optimizer: Callable[[Any, float], torch.optim.Optimizer]
    lr: float
    steps: int
    loss: Callable[[Tensor, Tensor], Tensor]
    """Of outputs and targets."""
    metric: Callable[[nn.Module, Sequence[Batch]], float]
    """Share of what there is to learn that holds on `test`: 0 by guessing, 1 perfect."""

    def loss_fn(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss as a training asks for it."""
        return self.loss(model(batch[0]), batch[1])


# Metrics


def accuracy(model: nn.Module, test: Sequence[Batch]) -> float:
    """Above guessing the commonest class, of all there is above it."""
    right = torch.cat([model(x).argmax(-1) == y for x, y in test]).double().mean()
    guess = torch.cat([y for _, y in test]).bincount().double()
    return _above(float(right), float(guess.max() / guess.sum()))


def explained(model: nn.Module, test: Sequence[Batch]) -> float:
    """R², at least 0."""
    outputs, targets = (torch.cat(parts).double() for parts in zip(*((model(x), y) for x, y in test), strict=True))
    share = 1 - float((outputs - targets).square().mean() / targets.var(correction=0))
    return max(share, 0.0) if share == share else 0.0


def last_characters(model: nn.Module, test: Sequence[Batch]) -> float:
    """Accuracy on the character after sequences that end there: nothing can be seen that is to be told."""
    rights, seen = [], []
    for x, y in test:
        for length in (12, 18, 25, 32):
            rights.append(model(x[:, :length])[:, -1].argmax(-1) == y[:, length - 1])
            seen.append(y[:, length - 1])
    guess = torch.cat(seen).bincount().double()
    return _above(float(torch.cat(rights).double().mean()), float(guess.max() / guess.sum()))


def _above(share: float, guess: float) -> float:
    return max(share - guess, 0.0) / (1 - guess)


# Data


@cache
def digits(seed: int = 0, size: int = SIZE) -> tuple[list[Batch], list[Batch]]:
    """Handwritten digits, 8 x 8, standardized."""
    data = load_data("digits")
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))[: BATCHES * size]
    images, labels = data.train_images[order], data.train_labels[order].long()
    train = list(zip(images.split(size), labels.split(size), strict=True))
    return train, list(zip(data.test_images.split(120), data.test_labels.long().split(120), strict=True))


@cache
def series(seed: int = 0, size: int = SIZE) -> tuple[list[Batch], list[Batch]]:
    """24 values of a noisy sum of two sines, and the next."""
    generator = torch.Generator().manual_seed(seed)
    examples = BATCHES * size + 320
    phases = 6.28 * torch.rand(examples, 1, 2, generator=generator)
    speeds = 0.2 + 0.6 * torch.rand(examples, 1, 2, generator=generator)
    values = torch.sin(torch.arange(25)[None, :, None] * speeds + phases).sum(-1)
    values = values + 0.05 * torch.randn(values.shape, generator=generator)
    x, y = values[:, :-1, None], values[:, -1:]
    return _parted(x, y, size)


@cache
def characters(seed: int = 0, size: int = SIZE // 2) -> tuple[list[Batch], list[Batch]]:
    """Pieces of 32 characters, and the same one further; the last tenth of the text is held out."""
    generator, all_text = torch.Generator().manual_seed(seed), text()
    end = len(all_text) * 9 // 10
    begins = torch.randint(end - 33, (BATCHES * size,), generator=generator).tolist()
    begins += torch.randint(end, len(all_text) - 33, (320,), generator=generator).tolist()
    pieces = torch.stack([all_text[i : i + 33] for i in begins])
    return _parted(pieces[:, :-1], pieces[:, 1:], size)


def _parted(x: Tensor, y: Tensor, size: int) -> tuple[list[Batch], list[Batch]]:
    n = BATCHES * size
    train = list(zip(x[:n].split(size), y[:n].split(size), strict=True))
    return train, list(zip(x[n:].split(160), y[n:].split(160), strict=True))


# Models


def mlp(width: int) -> nn.Module:
    sizes = (64, width, width, width)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def cnn(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for place, channels in enumerate((1, width, width)):
        conv = nn.Conv2d(channels, width, 3, padding=1, stride=2 if place else 1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width, 10))


class ResidualBlock(nn.Module):
    """x + scale · branch(x), without a norm."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.relu, self.scale = nn.ReLU(), scale
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.conv2(self.relu(self.conv1(self.relu(x))))


class ResNet(nn.Module):
    """Eight residual blocks, scaled down so that they need no norm."""

    def __init__(self, width: int, blocks: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, stride=2)
        self.blocks = nn.Sequential(*(ResidualBlock(width, blocks**-0.5) for _ in range(blocks)))
        self.relu, self.head = nn.ReLU(), nn.Linear(width * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.avg_pool2d(self.relu(self.blocks(self.stem(images))), 2).flatten(1))


class LSTM(nn.Module):
    """Reads a series, and tells its next value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.lstm(series)[0][:, -1])


class Attention(nn.Module):
    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.causal, self.order, self.scale = 4, causal, (0, 1, 2), (width // 4) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        examples, length, width = x.shape
        parts = self.qkv(x).view(examples, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = (parts[i] for i in self.order)
        logits = self.scale * (q @ k.transpose(-2, -1))
        if self.causal:
            logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        return self.out((logits.softmax(-1) @ v).transpose(1, 2).reshape(examples, length, width))


class TransformerBlock(nn.Module):
    """Attention and an MLP on a residual stream, with pre-norm."""

    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2, self.factor = nn.LayerNorm(width), nn.LayerNorm(width), 1.0
        self.attention = Attention(width, causal=causal)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.factor * self.attention(self.norm1(x))
        return x + self.factor * self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, width: int, layers: int = 2) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(64, width), nn.Embedding(32, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, causal=True) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 64)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.5 * width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class ViT(nn.Module):
    def __init__(self, width: int, layers: int = 2) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(4, width), nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, causal=False) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        patches = F.unfold(images, 2, stride=2).transpose(1, 2)
        return self.head(self.norm(self.blocks(self.embed(patches) + self.position)).mean(1))


# Trainings


def momentum(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr, momentum=0.9)


def adamw(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr)


def cross_entropy(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


MODELS: dict[str, tuple[Callable[[int], nn.Module], int, Any, Any, float, int, Any, Any]] = {
    "mlp": (mlp, 64, digits, momentum, 0.05, 200, cross_entropy, accuracy),
    "cnn": (cnn, 12, digits, momentum, 0.05, 120, cross_entropy, accuracy),
    "resnet": (ResNet, 8, digits, torch.optim.Adam, 5e-3, 120, cross_entropy, accuracy),
    "lstm": (LSTM, 24, series, torch.optim.Adam, 1e-2, 160, F.mse_loss, explained),
    "gpt": (GPT, 32, characters, adamw, 1e-2, 120, cross_entropy, last_characters),
    "vit": (ViT, 32, digits, adamw, 5e-3, 160, cross_entropy, accuracy),
}
"""Model, width, data, optimizer, rate, steps, loss and metric."""

TUNED, REPORTED = ("mlp", "cnn"), ("lstm", "resnet", "gpt", "vit")
"""Thresholds and rules were chosen on the first two; the others only report."""


def spec(name: str, *, width: float = 1.0, data: int = 0) -> Spec:
    """The sound training of a name.

    Args:
        width: factor of the model's own.
        data: seed of the examples that are drawn.
    """
    make, own_width, of, optimizer, lr, steps, loss, metric = MODELS[name]
    wide = max(4, round(own_width * width / 4) * 4)
    train, test = of(data)
    return Spec(name, partial(_seeded, make, wide), train, test, optimizer, lr, steps, loss, metric)


def _seeded(make: Callable[[int], nn.Module], width: int, seed: int) -> nn.Module:
    torch.manual_seed(1000 + seed)
    return make(width)


def trained(one: Spec, seed: int = 0) -> float:
    """The held-out metric after the training; 0 where it cannot be run or diverges."""
    model = one.build(seed)
    torch.manual_seed(seed)
    try:
        optimizer = one.optimizer([p for p in model.parameters() if p.requires_grad], one.lr)
        order = torch.Generator().manual_seed(seed)
        places: list[int] = []
        model.train()
        for _ in range(one.steps):
            places = places or torch.randperm(len(one.train), generator=order).tolist()
            optimizer.zero_grad()
            one.loss_fn(model, one.train[places.pop()]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            return one.metric(model, one.test)
    except (RuntimeError, ValueError, IndexError):
        return 0.0
