"""What do moments at 50 fractions of a step cost beside 50 forward passes, and are they right?

The floor is 50 forward passes without gradients in training mode: the step's gradient, the copies of the parameters and
the moments are the probe's own. "Three layers" is figure 4. Quality: the largest error of a channel's mean or variance,
in units of its layer's largest, against the same network in float64.

    python -m benchmarks.moments_along_step [rows.json]

Typical output, on a machine busy with other work, so that processor time is what to read:

    torch 2.13.0+cpu, 1 threads, Intel(R) Xeon(R) Processor
                                        seconds    wall     (quartiles)  processor     (quartiles)
    resnet20, none, 32 x 32: bare passes   25.091   1.000   (1.000 1.000)      1.000   (1.000 1.000)
        three layers                     10.455   1.046   (0.731 1.284)      1.071   (1.047 1.089)  error 8.9e-07
        all layers                       39.171   1.332   (1.260 8.190)      1.319   (1.292 1.436)  error 3.6e-06
    resnet20, batch, 32 x 32: bare passes   44.870   1.000   (1.000 1.000)      1.000   (1.000 1.000)
        three layers                     46.863   1.044   (0.955 1.146)      1.060   (1.058 1.078)  error 2.7e-05
        all layers                       42.905   0.956   (0.772 1.070)      1.212   (1.194 1.223)  error 3.1e-05
    resnet110, none, 8 x 8: bare passes   11.758   1.000   (1.000 1.000)      1.000   (1.000 1.000)
        three layers                     13.950   1.152   (0.906 1.421)      1.174   (1.161 1.223)  error 1.9e-05
        all layers                       39.742   1.879   (1.869 4.162)      1.977   (1.853 2.001)  error 3.6e-05
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
    # net, norm, image size, batch size, which layers
    ("resnet110", "none", 32, 128, ["three layers"]),
    ("resnet20", "none", 32, 128, list(LAYERS)),
    ("resnet20", "batch", 32, 128, list(LAYERS)),
    ("resnet110", "none", 8, 128, list(LAYERS)),
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
    for name, norm, size, batch_size, titles in NETS:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch_size, 3, size, size, generator=generator)
        batch = images.contiguous(memory_format=torch.channels_last), torch.arange(batch_size) % 10
        model = build_net(name, norm=norm).to(memory_format=torch.channels_last)  # pyright: ignore
        twin = build_net(name, norm=norm).double()
        quality: Mapping[str, Mapping[str, float]] = {
            f"    {title}": {"error": error(model, twin, batch, LAYERS[title])} for title in titles
        }
        probes = {
            f"    {title}": lambda m=model, b=batch, chosen=LAYERS[title]: moments_along_step(
                m, b, step_size=1e-3, fractions=FRACTIONS, layers=chosen
            )
            for title in titles
        }
        bare = f"{name}, {norm}, {size} x {size}: bare passes"
        yield from rows({bare: lambda m=model, b=batch: floor(m, *b), **probes}, rounds=ROUNDS, quality=quality)


if __name__ == "__main__":
    report(__doc__, measure())
