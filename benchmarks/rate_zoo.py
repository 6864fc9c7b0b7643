"""Thirty-one small networks to fit foretold rates on; `training_tasks`, on which they are judged, has none of them.

They have 650 to 40,000 parameters, and a step takes a millisecond or two on one slow core.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training_tasks import Batches, Task, characters, digits, images_alone, mse, named, seeded

OPTIMIZERS = ("sgd", "adam", "momentum", "adamw,betas=0.9:0.95,weight_decay=0.1")


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU, norm: Callable[[int], nn.Module] | None = None) -> Any:
    def make() -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in pairwise(widths[:-1]):
            layers += [nn.Linear(a, b), *([norm(b)] if norm else []), activation()]
        return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))

    return seeded(make)


def convolutions(norm: Callable[[int], nn.Module] | None, width: int = 12, depth: int = 3, groups: int = 1) -> Any:
    def make() -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        for _ in range(depth - 1):
            layers += [nn.Conv2d(width, width, 3, padding=1, groups=groups), *([norm(width)] if norm else [])]
            layers += [nn.SiLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))

    return seeded(make)


class Rows(nn.Module):
    """Reads an image row by row."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.read, self.head = kind(8, 24, batch_first=True), nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.read(images.squeeze(1))[0][:, -1])


class Encoder(nn.Module):
    """Torch's own transformer layer on the rows of an image."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.position = nn.Parameter(0.1 * torch.randn(8, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=norm_first)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(images.squeeze(1)) + self.position).mean(1))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.across = nn.Linear(8, 16), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.along = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.squeeze(1))
        x = x + self.across(x.transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.along(x)).mean(1))


class Characters(nn.Module):
    """The next character from the eight before it, or from what was read so far."""

    def __init__(self, *, recurrent: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(64, 16), nn.Linear(32, 64)
        self.read = nn.GRU(16, 32, batch_first=True) if recurrent else nn.Conv1d(16, 32, 8)
        self.recurrent = recurrent

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        if self.recurrent:
            return self.head(self.read(x)[0])
        return self.head(self.read(F.pad(x.transpose(1, 2), (7, 0))).relu().transpose(1, 2))


def scaled(factor: float) -> Batches:
    return lambda seed: ((factor * images, labels) for images, labels in digits()(seed))


def curves(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(32, 8, generator=generator)
        yield x, (x[:, :1] * x[:, 1:2]).tanh() + 0.3 * x[:, 2:3]


def ill_conditioned(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-1.5, 0.5, 20)
    while True:
        x = torch.randn(32, 20, generator=generator) * scales
        yield x, x.sum(1, keepdim=True) + 0.1 * torch.randn(32, 1, generator=generator)


def bits(model: nn.Module, batch: Any) -> Tensor:
    images, labels = batch
    wanted = torch.stack([labels // 2**i % 2 for i in range(4)], 1).float()
    return F.binary_cross_entropy_with_logits(model(images), wanted)


def rebuilt(model: nn.Module, images: Tensor) -> Tensor:
    return F.mse_loss(model(images), images.flatten(1))


def huber(model: nn.Module, batch: Any) -> Tensor:
    return F.smooth_l1_loss(model(batch[0]), batch[1])


def built(net: str, norm: str, width: int, **options: Any) -> Callable[[int], nn.Module]:
    from normscope.nets import build_net

    return lambda seed: build_net(net, norm=norm, width=width, in_channels=1, image_size=8, seed=2000 + seed, **options)


def task(build: Callable[[int], nn.Module], batches: Batches | None = None, loss_fn: Any = None) -> Task:
    return Task(build, batches or digits(), "sgd", loss_fn)


ZOO = {
    "softmax regression": task(mlp(64, 10)),
    "MLP 2": task(mlp(64, 128, 10)),
    "MLP 3, tanh": task(mlp(64, 48, 48, 10, activation=nn.Tanh)),
    "MLP 4, GELU, LN": task(mlp(64, 48, 48, 48, 10, activation=nn.GELU, norm=nn.LayerNorm)),
    "MLP 5, SiLU": task(mlp(64, *[48] * 4, 10, activation=nn.SiLU)),
    "MLP 3, BN": task(mlp(64, 64, 64, 10, norm=nn.BatchNorm1d)),
    "MLP 6": task(named("mlp6", "none", 48)),
    "MLP 6, BN": task(built("mlp6", "batch", 48)),
    "MLP 10": task(named("mlp10", "none", 32)),
    "MLP 8, LN": task(named("mlp8", "layer", 32)),
    "MLP 4, init × 2": task(built("mlp4", "none", 48, init="kaiming_normal", init_scale=2.0)),
    "MLP 4, init × 0.5": task(built("mlp4", "none", 48, init="kaiming_normal", init_scale=0.5)),
    "MLP 3, inputs × 10": task(mlp(64, 48, 48, 10), scaled(10.0)),
    "MLP 3, inputs × 0.1": task(mlp(64, 48, 48, 10), scaled(0.1)),
    "MLP 3, bits": task(mlp(64, 64, 64, 4), None, bits),
    "CNN": task(convolutions(None)),
    "CNN, GN": task(convolutions(lambda c: nn.GroupNorm(4, c))),
    "CNN depthwise, BN": task(convolutions(nn.BatchNorm2d, depth=4, groups=12)),
    "plain 8": task(built("plain8", "none", 4, init="orthogonal")),
    "ResNet 8, LN": task(named("resnet8", "layer", 4)),
    "RNN": task(seeded(lambda: Rows(nn.RNN))),
    "GRU": task(seeded(lambda: Rows(nn.GRU))),
    "encoder, post-norm": task(seeded(lambda: Encoder(norm_first=False))),
    "encoder, pre-norm": task(seeded(lambda: Encoder(norm_first=True))),
    "mixer": task(seeded(Mixer)),
    "autoencoder": task(mlp(64, 32, 8, 32, 64), images_alone, rebuilt),
    "linear regression": task(mlp(20, 1), ill_conditioned, mse),
    "regression, SiLU": task(mlp(8, 48, 48, 1, activation=nn.SiLU), curves, mse),
    "regression, Huber": task(mlp(8, 64, 1, activation=nn.Tanh), curves, huber),
    "characters, convolution": task(seeded(lambda: Characters(recurrent=False)), characters),
    "characters, GRU": task(seeded(lambda: Characters(recurrent=True)), characters),
}
