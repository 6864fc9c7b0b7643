"""Small trainings that go well or badly, for the benchmark of early warning: networks, data, how each is led astray.

A run is fixed by its architecture, optimizer, kind and seed. Kinds: `safe` has a rate far below the edge; `constant`
one about it; `rising` a rate that grows through it, or `gentle` one that stops below; `warmup` too short a warmup to
too high a rate; `lag` gradients that grow while Adam's second moment is slow; `bad_batch` and `overflow` break at one
step.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.data import load_data
from normscope.descent.outcome import has_diverged
from normscope.model.loss import cross_entropy, label_entropy
from normscope.monitoring.watch import watch

Batches = Iterator[tuple[Tensor, Tensor]]

FITTED = ("mlp", "cnn", "resnet_bn", "lstm")
HELD_OUT = ("mlp_deep", "resnet", "vit", "gpt")
"""No run of these is looked at when the rule is fitted."""

OPTIMIZERS = ("momentum", "adam", "adamw")
FORECASTABLE = ("constant", "rising", "warmup", "lag")
SUDDEN = ("bad_batch", "overflow")
CONTROLS = ("safe", "gentle")
EDGES = {"momentum": (0.01, 2.5, 10), "adam": (0.003, 3.0, 10)}
"""Where the search for the edge begins, its factor, and how many rates it tries at most."""

EVERY = 32
"""Steps between two measurements: about a tenth of the time."""

LAG_EVERY = 4
"""StableAdamW's lag is looked at every so many steps."""

BATCH = {"mlp": 32, "mlp_deep": 32, "lstm": 8, "gpt": 4}
"""Of the others 16."""


class Residual(nn.Module):
    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1, self.norm2 = (nn.BatchNorm2d(channels) if norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Transformer(nn.Module):
    """A ViT over patches, or a GPT over characters."""

    def __init__(self, embed: nn.Module, tokens: int, classes: int, *, causal: bool, width: int = 32) -> None:
        super().__init__()
        self.embed, self.causal = embed, causal
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.place[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=self.causal)
        return self.head(self.norm(x if self.causal else x.mean(1)))


class Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2).transpose(1, 2)


class Recurrent(nn.Module):
    def __init__(self, classes: int, width: int = 48) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = (
            nn.Embedding(classes, 24),
            nn.LSTM(24, width, batch_first=True),
            nn.Linear(width, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0])


def mlp(inputs: int, widths: list[int]) -> nn.Module:
    sizes = [inputs, *widths]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], 10))


def network(name: str, characters: int) -> nn.Module:
    if name == "mlp":
        return mlp(64, [64, 64])
    if name == "mlp_deep":
        return mlp(64, [48] * 6)
    if name == "cnn":
        convs = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
        return nn.Sequential(*convs, nn.Flatten(), nn.Linear(32 * 16, 10))
    if name in ("resnet", "resnet_bn"):
        blocks = [Residual(10, name == "resnet_bn") for _ in range(3)]
        return nn.Sequential(
            nn.Conv2d(3, 10, 3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 10)
        )
    if name == "vit":
        return Transformer(Patches(32), 16, 10, causal=False)
    if name == "gpt":
        return Transformer(nn.Embedding(characters, 32), 32, characters, causal=True)
    if name == "lstm":
        return Recurrent(characters)
    raise ValueError(name)


@dataclass(frozen=True)
class Source:
    """What there is to learn from."""

    digits: tuple[Tensor, Tensor]
    images: tuple[Tensor, Tensor]
    text: Tensor
    characters: int

    def of(self, net: str) -> tuple[Tensor, Tensor] | None:
        """Examples and labels; None for a language model."""
        return self.digits if net.startswith("mlp") else None if net in ("gpt", "lstm") else self.images

    def batches(self, net: str, seed: int) -> Batches:
        generator = torch.Generator().manual_seed(seed)
        found = self.of(net)
        while True:
            if found is None:
                starts = torch.randint(len(self.text) - 33, (BATCH[net],), generator=generator)
                rows = torch.stack([self.text[i : i + 33] for i in starts.tolist()])
                yield rows[:, :-1], rows[:, 1:].contiguous()
            else:
                chosen = torch.randint(len(found[1]), (BATCH.get(net, 16),), generator=generator)
                yield found[0][chosen], found[1][chosen]

    def constant_loss(self, net: str) -> float:
        found = self.of(net)
        return label_entropy(self.text if found is None else found[1])


def source(data_dir: Path | None = None) -> Source:
    """Digits, CIFAR-10 at 16 x 16 (where it is found; the digits in three colours otherwise), and this project's pages
    as text."""
    digits = load_data("digits")
    small = (digits.train_images, digits.train_labels)
    try:
        cifar = load_data("cifar10", data_dir=data_dir)
        images = (F.avg_pool2d(cifar.train_images[:5000], 2), cifar.train_labels[:5000])
    except Exception as error:
        print(f"no CIFAR-10 ({type(error).__name__}): the digits in its place")
        images = (F.interpolate(small[0], size=16).expand(-1, 3, -1, -1).contiguous(), small[1])
    root = Path(__file__).parents[1]
    text = "".join(path.read_text() for path in sorted(root.glob("docs/*.md")))
    alphabet = sorted(set(text))
    place = {character: i for i, character in enumerate(alphabet)}
    return Source(small, images, torch.tensor([place[c] for c in text]), len(alphabet))


def optimizer_of(name: str, net: nn.Module, lr: float, *, slow: bool = False) -> torch.optim.Optimizer:
    if name == "momentum":
        return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    betas = (0.9, 0.9995 if slow else 0.999)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(net.parameters(), lr=lr, betas=betas)


def edge(data: Source, net: str, optimizer: str) -> float:
    """The lowest rate of a lattice at which a run of 60 steps diverges."""
    low, factor, number = EDGES["momentum" if optimizer == "momentum" else "adam"]
    for i in range(number):
        lr = low * factor**i
        torch.manual_seed(0)
        model = network(net, data.characters)
        steps = optimizer_of(optimizer, model, lr)
        start = best = math.nan
        for _, (x, y) in zip(range(60), data.batches(net, 0), strict=False):
            steps.zero_grad()
            loss = cross_entropy(model(x), y)
            value = float(loss.detach())
            start = value if math.isnan(start) else start
            best = value if not best <= value else best
            if has_diverged(value, start=start, best=best, constant_loss=data.constant_loss(net)):
                return lr
            loss.backward()
            steps.step()
    return low * factor**number


def schedule(kind: str, edge_lr: float, steps: int, draw: random.Random) -> Callable[[int], float]:
    """The rate at each step."""
    if kind == "rising":
        first, last = edge_lr * 0.05, edge_lr * draw.uniform(3, 30)
        return lambda step: first * (last / first) ** (step / steps)
    if kind == "gentle":
        first, last = edge_lr * 0.01, edge_lr * draw.uniform(0.05, 0.25)
        return lambda step: first * (last / first) ** (step / steps)
    if kind == "warmup":
        length, peak = draw.randint(80, 250), edge_lr * draw.uniform(1, 8)
        return lambda step: peak * min(1.0, (step + 1) / length)
    low, high = (-0.6, 0.1) if kind == "constant" else (-2, -0.8)
    rate = edge_lr * 10 ** draw.uniform(low, high)
    return lambda step: rate


def run(data: Source, net: str, optimizer: str, kind: str, seed: int, edge_lr: float) -> tuple[Any, dict[str, Any]]:
    """Train under a watch that measures every `EVERY` steps; its record, and what became of the run."""
    draw = random.Random(f"{net} {optimizer} {kind} {seed}")
    torch.manual_seed(seed)
    steps, broken_at = draw.randint(300, 450), draw.randint(80, 220)
    model = network(net, data.characters)
    moves = optimizer_of(optimizer, model, edge_lr, slow=kind == "lag")
    rate = schedule(kind, edge_lr, steps, draw)
    constant = data.constant_loss(net)
    start = best = math.nan
    diverged_at = -1
    lags: list[float] = []
    with watch(model, moves, every=EVERY) as seen:
        for step, (x, y) in zip(range(steps), data.batches(net, seed), strict=False):
            if kind == "bad_batch" and step == broken_at and x.is_floating_point():
                x = x * 1e6
            if kind == "overflow" and step == broken_at:
                with torch.no_grad():
                    draw.choice([p for p in model.parameters() if p.ndim > 1]).mul_(1e20)
            for group in moves.param_groups:
                group["lr"] = rate(step)
            if (
                kind == "lag"
            ):  # at first every label is the same, so that gradients fade; then ever more are the true ones
                share = min(1.0, max(0.0, (step - broken_at) / 100))
                y = torch.where(torch.rand(y.shape) < share, y, 0)
            moves.zero_grad()
            loss = cross_entropy(model(x), y)
            value = float(loss.detach())
            start = value if math.isnan(start) else start
            best = value if not best <= value else best
            loss.backward()
            seen.step(loss, (x, y))
            lags.append(stable_adamw_lag(moves) if step % LAG_EVERY == 0 else math.nan)
            if has_diverged(value, start=start, best=best, constant_loss=constant):
                diverged_at = step
                break
            moves.step()
    facts = {
        "net": net,
        "optimizer": optimizer,
        "kind": kind,
        "seed": seed,
        "diverged_at": diverged_at,
        "broken_at": broken_at if kind in (*SUDDEN, "lag") else -1,
        "constant_loss": constant,
        "share": seen.schedule.share,
    }
    return seen.record().assign(stable_adamw_lag=("step", lags)), facts


def stable_adamw_lag(optimizer: torch.optim.Optimizer) -> float:
    """The largest RMS_t of StableAdamW over all parameters: √(mean of g² / max(v̂, ε²)), v̂ with this g in it."""
    found = [0.0]
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if p.grad is None or "exp_avg_sq" not in state:
                continue
            beta, count = group["betas"][1], float(state["step"]) + 1
            second = (beta * state["exp_avg_sq"] + (1 - beta) * p.grad.square()) / (1 - beta**count)
            found.append(float((p.grad.square() / second.clamp_min(group["eps"] ** 2)).mean().sqrt()))
    return max(found)
