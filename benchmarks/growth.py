"""Does the cost of every probe grow as the work does, over depth, batch size and channels?

Time and the most memory at once are measured along each axis, and the slope of their logarithms is fitted: the exponent
of a probe stands beside that of its floor, the bare passes it cannot avoid, which took turns with it. The networks are
ResNets without normalization, on images of 16 x 16 pixels so that it takes minutes on two cores:

    depth       20, 56, 110, 218 layers      batch of 32, width 16
    batch       32, 128, 512                 ResNet-20, width 16
    channels    8, 16, 32, 64 at first       ResNet-20, batch of 64

Exponents of the floor differ from 1 (2 for channels) where small passes leave the processor idle: what matters is that
a probe's own does not exceed them. "Ratio" is time over the floor's at the smallest and at the largest size.

    python -m benchmarks.growth [growth.json]
"""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import about, headline, write_json
from benchmarks.timing import Work, in_turns, peak_bytes
from normscope.nets import build_net
from normscope.probes.channel_moments import channel_moments
from normscope.probes.gradient_cancellation import gradient_cancellation
from normscope.probes.gradient_histogram import gradient_histogram
from normscope.probes.gradient_noise import gradient_noise
from normscope.probes.gradient_norms import gradient_norms
from normscope.probes.moments_along_step import moments_along_step
from normscope.probes.output_gradients import output_gradients
from normscope.probes.relative_loss import relative_loss
from normscope.probes.sharpness import sharpness

ROUNDS = 2
SIDE = 16
POINTS = 4
PRODUCTS = 2
Size = tuple[int, int, int]  # depth, batch, width
AXES: Mapping[str, Sequence[tuple[int, Size]]] = {
    "depth": [(depth, (depth, 32, 16)) for depth in (20, 56, 110, 218)],
    "batch": [(batch, (20, batch, 16)) for batch in (32, 128, 512)],
    "channels": [(width, (20, 64, width)) for width in (8, 16, 32, 64)],
}

Batch = tuple[Tensor, Tensor]


def forward(net: nn.Module, batch: Batch) -> None:
    with torch.no_grad():
        F.cross_entropy(net(batch[0]), batch[1])


def forwards(net: nn.Module, batch: Batch) -> None:
    """Four points of a step, and its gradient."""
    gradient(net, batch)
    for _ in range(POINTS):
        forward(net, batch)


def output_gradient(net: nn.Module, batch: Batch) -> None:
    logits = net(batch[0])
    torch.autograd.grad(F.cross_entropy(logits, batch[1]), logits)


def gradient(net: nn.Module, batch: Batch) -> None:
    torch.autograd.grad(F.cross_entropy(net(batch[0]), batch[1]), list(net.parameters()))


def products(net: nn.Module, batch: Batch) -> None:
    """The gradient's graph and two products of the Hessian with a vector."""
    parameters = list(net.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(net(batch[0]), batch[1]), parameters, create_graph=True)
    for _ in range(PRODUCTS):
        torch.autograd.grad(slopes, parameters, [slope.detach() for slope in slopes], retain_graph=True)


STEPS = np.geomspace(1e-5, 1e-4, POINTS)
FRACTIONS = np.linspace(0, 1, POINTS)
PROBES: Mapping[Callable[[nn.Module, Batch], None], Mapping[str, Callable[[nn.Module, Batch], Any]]] = {
    forward: {"channel_moments": channel_moments},
    forwards: {
        "relative_loss": lambda net, batch: relative_loss(net, batch, step_sizes=STEPS),
        "moments_along_step": lambda net, batch: moments_along_step(net, batch, step_size=1e-4, fractions=FRACTIONS),
    },
    output_gradient: {"output_gradients": output_gradients},
    gradient: {
        "gradient_noise": gradient_noise,
        "gradient_cancellation": gradient_cancellation,
        "gradient_histogram": gradient_histogram,
        "gradient_norms": gradient_norms,
    },
    products: {"sharpness": lambda net, batch: sharpness(net, batch, max_products=PRODUCTS, tolerance=1e-12)},
}
"""The probes by their floor."""


def network_and_batch(size: Size) -> tuple[nn.Module, Batch]:
    depth, batch, width = size
    net = build_net(f"resnet{depth}", norm="none", width=width, init_scale=0.5)  # activations of 218 layers stay small
    images = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch) % 10
    net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return net, (images.contiguous(memory_format=torch.channels_last), labels)


def costs(size: Size) -> dict[str, dict[str, float]]:
    """{contestant: {seconds, processor seconds, peak bytes}} of probes and floors, these by their function's name."""
    net, batch = network_and_batch(size)
    found: dict[str, dict[str, float]] = {}
    for floor, probes in PROBES.items():
        works: dict[str, Work] = {floor.__name__: lambda f=floor: f(net, batch)}
        works |= {name: lambda p=probe: p(net, batch) for name, probe in probes.items()}
        for name, spent in in_turns(works, rounds=ROUNDS).items():
            wall, processor = (statistics.median(times) for times in zip(*spent, strict=True))
            found[name] = {"seconds": wall, "processor": processor, "peak_bytes": peak_bytes(works[name])}
    return found


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """k of values ∝ sizes^k, by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def fitted(axis: str, sizes: Sequence[int], measured: Sequence[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """One row a probe."""

    def fit(name: str, what: str) -> float:
        return exponent(sizes, [one[name][what] for one in measured])

    def against(name: str, floor: str, what: str) -> list[float]:
        return [one[name][what] / one[floor][what] for one in measured]

    return [
        {
            "axis": axis,
            "probe": name,
            "floor": floor.__name__,
            "time_exponent": fit(name, "seconds"),
            "floor_time_exponent": fit(floor.__name__, "seconds"),
            "memory_exponent": fit(name, "peak_bytes"),
            "floor_memory_exponent": fit(floor.__name__, "peak_bytes"),
            "time_ratios": against(name, floor.__name__, "seconds"),
            "memory_ratios": against(name, floor.__name__, "peak_bytes"),
        }
        for floor, probes in PROBES.items()
        for name in probes
    ]


def main() -> None:
    print((__doc__ or "").split("\n")[0])
    described = about()
    print(headline())
    print(f"{'':24}{'time: exponent (floor)':>24}{'ratio':>16}{'memory: exponent (floor)':>28}{'ratio':>16}")
    table, points = [], {}
    for axis, along in AXES.items():
        sizes, measured = [size for size, _ in along], [costs(size) for _, size in along]
        points[axis] = [{"size": size, "costs": one} for size, one in zip(sizes, measured, strict=True)]
        print(f"{axis}, {sizes[0]} to {sizes[-1]}")
        for row in fitted(axis, sizes, measured):
            table.append(row)
            time, memory = row["time_ratios"], row["memory_ratios"]
            print(
                f"    {row['probe']:20}{row['time_exponent']:15.2f} ({row['floor_time_exponent']:.2f})  "
                f"{time[0]:10.2f} to {time[-1]:.2f}{row['memory_exponent']:20.2f} ({row['floor_memory_exponent']:.2f})"
                f"{memory[0]:14.2f} to {memory[-1]:.2f}",
                flush=True,
            )
    if len(sys.argv) > 1:
        write_json(sys.argv[1], {**described, "rows": table, "points": points})


if __name__ == "__main__":
    main()
