"""What do moments at 50 fractions of a step cost beside 50 forward passes, and are they right?

The floor is 50 forward passes without gradients in training mode: the step's gradient, the copies of the parameters and
the moments are the probe's own. "Three layers" is figure 4. Quality: the largest error of a channel's mean or variance,
in units of its layer's largest, against the same network in float64.

    python -m benchmarks.moments_along_step [rows.json]


"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row, report, rows
from normscope.nets import build_net
from normscope.probes.moments_along_step import moments_along_step

ROUNDS = 3
POINTS = 50
FRACTIONS = np.linspace(0, 1, POINTS)
LAYERS = {"three layers": ("layer1.1.conv1", "layer2.1.conv1", "layer3.1.conv1"), "all layers": None}
NETS = [
    # net, norm, image size, batch size
    ("resnet20", "none", 32, 128),
    ("resnet20", "batch", 32, 128),
    ("resnet110", "none", 8, 128),
]


def floor(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        for _ in range(POINTS):
            F.cross_entropy(model(images), labels)


def error(model: nn.Module, twin: nn.Module, batch: tuple[Tensor, Tensor], layers: tuple[str, ...] | None) -> float:
    ends = {"step_size": 1e-3, "fractions": [0, 1], "layers": layers}
    found = moments_along_step(model, batch, **ends)
    exact = moments_along_step(twin, (batch[0].double(), batch[1]), **ends)
    # a channel's mean may be nearly zero, and its rounding is that of its layer
    return max(float((abs(found[m] - exact[m]) / abs(exact[m]).max("channel")).max()) for m in ("mean", "variance"))


def measure() -> Iterator[Row]:
    for name, norm, size, batch_size in NETS:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch_size, 3, size, size, generator=generator)
        batch = images.contiguous(memory_format=torch.channels_last), torch.arange(batch_size) % 10
        model = build_net(name, norm=norm).to(memory_format=torch.channels_last)  # pyright: ignore
        twin = build_net(name, norm=norm).double()
        quality: Mapping[str, Mapping[str, float]] = {
            f"    {title}": {"error": error(model, twin, batch, layers)} for title, layers in LAYERS.items()
        }
        probes = {
            f"    {title}": lambda m=model, b=batch, chosen=layers: moments_along_step(
                m, b, step_size=1e-3, fractions=FRACTIONS, layers=chosen
            )
            for title, layers in LAYERS.items()
        }
        bare = f"{name}, {norm}, {size} x {size}: bare passes"
        yield from rows({bare: lambda m=model, b=batch: floor(m, *b), **probes}, rounds=ROUNDS, quality=quality)


if __name__ == "__main__":
    report(__doc__, measure())
