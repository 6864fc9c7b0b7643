"""Fourteen small trainings of different kinds, to try rates on: what is built, on which batches, with which loss.

Half of them were looked at while the search for a rate was tuned; the others (`aside`) were not. Models have 2,000 to
60,000 parameters and a step takes a few milliseconds on one slow core, so that a grid of rates fits into minutes.
"""

import pydoc_data.topics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.data import load_data
from normscope.data.batches import batches as batches_of
from normscope.nets import build_net

Batches = Callable[[int], Iterator[Any]]


@dataclass(frozen=True)
class Task:
    """One training: every seed has a network and an order of the batches of its own."""

    build: Callable[[int], nn.Module]
    batches: Batches
    optimizer: Any
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None
    decades: tuple[int, int] = (-5, 1)
    """log10 of the grid's lowest and highest rate."""
    steps: int = 100
    aside: bool = False


def seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(1000 + seed)
        return make()

    return build


@cache
def digits_data() -> Any:
    return load_data("digits")


def digits(size: int = 32) -> Batches:
    return lambda seed: batches_of(digits_data(), size, seed=seed)


# Networks


class Block(nn.Module):
    """Attention and an MLP on a residual stream, with pre-norm or without any."""

    def __init__(self, width: int, *, norm: bool, causal: bool) -> None:
        super().__init__()
        self.causal, self.heads = causal, 4
        self.norm1, self.norm2 = (nn.LayerNorm(width) if norm else nn.Identity() for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        examples, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(examples, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(examples, length, width))
        return x + self.mlp(self.norm2(x))


class CharGPT(nn.Module):
    def __init__(self, *, norm: bool, width: int = 32, layers: int = 2, length: int = 32) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(64, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, norm=norm, causal=True) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width) if norm else nn.Identity(), nn.Linear(width, 64, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(ids) + self.position.weight)))


class ViT(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(4, width), nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(Block(width, norm=True, causal=False) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        patches = F.unfold(images, 2, stride=2).transpose(1, 2)
        return self.head(self.norm(self.blocks(self.embed(patches) + self.position)).mean(1))


class UNet(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        conv = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU())  # noqa: E731
        self.down1, self.down2, self.middle = conv(1, width), conv(width, 2 * width), conv(2 * width, 2 * width)
        self.up2, self.up1, self.head = conv(4 * width, width), conv(2 * width, width), nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        three = F.interpolate(self.middle(F.max_pool2d(two, 2)), scale_factor=2)
        return self.head(self.up1(torch.cat([one, F.interpolate(self.up2(torch.cat([two, three], 1)), None, 2)], 1)))


class LSTM(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.lstm(images.squeeze(1))[0][:, -1])


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decode = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encode(x).chunk(2, 1)
        return self.decode(mean + torch.randn_like(mean) * (0.5 * logvar).exp()), mean, logvar


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for i, channels in enumerate((1, 16, 16, 16)):
        layers.append(nn.Conv2d(channels, 16, 3, padding=1, stride=2 if i == 2 else 1))
        layers += [nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


def named(net: str, norm: str, width: int) -> Callable[[int], nn.Module]:
    return lambda seed: build_net(net, norm=norm, width=width, in_channels=1, image_size=8, seed=1000 + seed)


# Data and losses


@cache
def text() -> Tensor:
    """Python's own help pages as 64 characters."""
    words = "".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)).lower()
    alphabet = " \nabcdefghijklmnopqrstuvwxyz0123456789.,;:'\"`()[]{}<>=+-*/\\_#@!?"[:63]
    return torch.tensor([alphabet.find(c) + 1 for c in words])


def characters(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        begin = torch.randint(len(text()) - 33, (16,), generator=generator)
        pieces = torch.stack([text()[i : i + 33] for i in begin])
        yield pieces[:, :-1], pieces[:, 1:]


def regression(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Targets of size 30: a network has far to go at a small rate."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(32, 16, generator=generator)
        yield x, 30 * (x[:, :1] + 0.5 * (2 * x[:, 1:2]).sin() + 0.1 * torch.randn(32, 1, generator=generator))


def mse(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def noisy(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for images, _ in digits()(seed):
        yield images + torch.randn(images.shape, generator=generator), images


def images_alone(seed: int) -> Iterator[Tensor]:
    for images, _ in digits()(seed):
        yield images


def evidence_bound(model: nn.Module, x: Tensor) -> Tensor:
    out, mean, logvar = model(x)
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
    return 0.5 * (out - x.flatten(1)).square().sum(1).mean() + divergence


def two_views(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for images, _ in digits()(seed):
        yield tuple(images + 0.7 * torch.randn(images.shape, generator=generator) for _ in range(2))


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    one, two = (F.normalize(model(view), dim=1) for view in batch)
    return F.cross_entropy(one @ two.T / 0.1, torch.arange(len(one)))


def points(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.rand(64, 1, generator=generator)


def residual(model: nn.Module, x: Tensor) -> Tensor:
    """u' = −3 u, u(0) = 1."""
    with torch.enable_grad():
        x = x.clone().requires_grad_(True)
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (slope + 3 * u).square().mean() + 10 * (model(torch.zeros(1, 1)) - 1).square().mean()


@cache
def trained() -> nn.Module:
    """A CNN that has seen half of the digits' classes rightly and the others permuted."""
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step, (images, labels) in enumerate(digits()(77)):
        if step == 200:
            return model
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.where(labels < 7, labels, (labels - 6) % 3 + 7)).backward()
        optimizer.step()
    raise AssertionError


def fine_tuned(seed: int) -> nn.Module:
    import copy

    return copy.deepcopy(trained())


def adamw(betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.01) -> Any:
    return lambda params, lr: torch.optim.AdamW(params, lr, betas=betas, weight_decay=weight_decay)


TASKS = {
    "MLP, momentum": Task(named("mlp4", "none", 64), digits(), "momentum", decades=(-4, 1)),
    "CNN BN, SGD": Task(seeded(cnn), digits(), "sgd", decades=(-4, 2)),
    "ResNet 8, Adam": Task(named("resnet8", "none", 8), digits(), "adam", steps=80),
    "char-GPT LN, AdamW": Task(seeded(lambda: CharGPT(norm=True)), characters, adamw((0.9, 0.95), 0.1)),
    "LSTM, Adam": Task(seeded(LSTM), digits(), "adam"),
    "regression, AdamW": Task(
        seeded(lambda: nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))),
        regression,
        "adamw",
        mse,
    ),
    "fine-tuning, AdamW": Task(fine_tuned, digits(), "adamw"),
    "ResNet 8 BN, momentum": Task(
        named("resnet8", "batch", 8), digits(), "momentum", steps=80, decades=(-4, 2), aside=True
    ),
    "U-Net, Adam": Task(seeded(UNet), noisy, "adam", mse, steps=80, aside=True),
    "char-GPT, AdamW": Task(seeded(lambda: CharGPT(norm=False)), characters, "adamw", aside=True),
    "ViT, AdamW": Task(seeded(ViT), digits(), "adamw", aside=True),
    "VAE, Adam": Task(seeded(VAE), images_alone, "adam", evidence_bound, aside=True),
    "contrastive, momentum": Task(
        seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))),
        two_views,
        "momentum",
        contrastive,
        (-4, 1),
        aside=True,
    ),
    "PINN, Adam": Task(
        seeded(lambda: nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))),
        points,
        "adam",
        residual,
        aside=True,
    ),
}
