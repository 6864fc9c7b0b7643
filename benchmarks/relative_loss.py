"""What does the relative loss at 50 step sizes cost beside the passes it cannot avoid, and is it right?

The floor is 50 forward passes without gradients and one forward and backward pass, on ResNet-110 with 128 images. The
memory to compare with is that of one forward and backward pass. Quality: the largest relative distance of a loss from
that of what one writes first, a deep copy of the model for every step size.

    python -m benchmarks.relative_loss [rows.json]
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row, peak_bytes, report, rows
from normscope.nets import build_net
from normscope.probes.relative_loss import relative_loss

ROUNDS = 3
POINTS = 50
BATCH = 128
STEP_SIZES = np.geomspace(1e-5, 1e-2, POINTS)


def forward_and_backward(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    F.cross_entropy(model(images), labels).backward()
    model.zero_grad()


def floor(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    forward_and_backward(model, images, labels)
    with torch.no_grad():
        for _ in STEP_SIZES:
            F.cross_entropy(model(images), labels)


def copies(model: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    losses = []
    with torch.no_grad():
        for step_size in STEP_SIZES:
            moved = copy.deepcopy(model)
            for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
                parameter -= float(step_size) * gradient
            losses.append(F.cross_entropy(moved(images), labels).item())
    return np.array(losses)


def measure() -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 10
    for norm in ("batch", "none"):
        model = build_net("resnet110", norm=norm).to(memory_format=torch.channels_last)  # pyright: ignore
        dataset = relative_loss(model, (images, labels), step_sizes=STEP_SIZES)
        off = float(abs(dataset["loss"].values / copies(model, images, labels) - 1).max())
        passes = peak_bytes(lambda m=model: forward_and_backward(m, images, labels))
        peak = peak_bytes(lambda m=model: relative_loss(m, (images, labels), step_sizes=STEP_SIZES[:3]))
        parameters = sum(p.numel() * p.element_size() for p in model.parameters())
        yield from rows(
            {
                f"resnet110, {norm}: bare passes": lambda m=model: floor(m, images, labels),
                "    relative_loss": lambda m=model: relative_loss(m, (images, labels), step_sizes=STEP_SIZES),
            },
            rounds=ROUNDS,
            quality={
                "    relative_loss": {
                    "off": off,
                    "peak beyond forward and backward, in parameters": (peak - passes) / parameters,
                }
            },
        )


if __name__ == "__main__":
    report(__doc__, measure())
