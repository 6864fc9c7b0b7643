"""What does the histogram of every layer's gradient, with its spread and tails, cost beside the gradient itself?

The floor is one forward and backward pass with every parameter's gradient, on 128 images. Quality: entries that are in
no bin (none may be), and the largest relative distance, over layers, of the kurtosis from scipy's and of the tail index
from a full sort's. resnet110 has 1.7 million entries, and with 8 x 8 pixels little else to do.

    python -m benchmarks.gradient_histogram [rows.json]

Typical output on one thread of an Intel Xeon shared with other work: processor time as a share of the floor's, with
its quartiles, peak memory in MB, quality.

    resnet20, none, 32 pixels: floor      1.00 (1.00, 1.00)    100.8
        gradient_histogram                1.01 (0.99, 1.03)    101.9  missing 0, kurtosis off 4.4e-16, tail off 4.4e-16
    resnet20, batch, 32 pixels: floor     1.00 (1.00, 1.00)    203.4
        gradient_histogram                0.99 (0.98, 1.02)    204.5  missing 0, kurtosis off 2.2e-16, tail off 4.4e-16
    resnet110, batch, 8 pixels: floor     1.00 (1.00, 1.00)     68.1
        gradient_histogram                1.36 (1.36, 1.38)     75.1  missing 0, kurtosis off 4.4e-16, tail off 4.4e-16
"""

from collections.abc import Iterator

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row, report, rows
from normscope.nets import build_net
from normscope.probes.gradient_histogram import TAIL_SHARE, gradient_histogram

ROUNDS = 7
BATCH = 128
NETWORKS = [("resnet20", "none", 32), ("resnet20", "batch", 32), ("resnet110", "batch", 8)]


def gradients(net: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """One forward and backward pass."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    loss = F.cross_entropy(net(batch[0]), batch[1])
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def hill(values: np.ndarray) -> float:
    """The tail index by a full sort."""
    sizes = np.sort(np.abs(values[values != 0]))[::-1]
    k = round(TAIL_SHARE * len(sizes))
    return float(1 / np.mean(np.log(sizes[:k] / sizes[k])))


def quality(net: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    dataset, own = gradient_histogram(net, batch), gradients(net, batch)
    kurtosis_off, tail_off = [], []
    for path in dataset["layer"].values.tolist():
        one, values = dataset.sel(layer=path), own[f"{path}.weight"].double().numpy().ravel()
        kurtosis_off.append(abs(float(one["kurtosis"]) / float(scipy.stats.kurtosis(values, fisher=False)) - 1))
        tail_off.append(abs(float(one["tail_index"]) / hill(values) - 1))
    missing = float(dataset["num_entries"].sum() - dataset["count"].sum())
    return {"missing": missing, "kurtosis off": max(kurtosis_off), "tail off": max(tail_off)}


def measure() -> Iterator[Row]:
    for name, norm, size in NETWORKS:
        net = build_net(name, norm=norm).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(BATCH, 3, size, size, generator=generator)
        batch = images.contiguous(memory_format=torch.channels_last), torch.arange(BATCH) % 10
        yield from rows(
            {
                f"{name}, {norm}, {size} pixels: floor": lambda n=net, b=batch: gradients(n, b),
                "    gradient_histogram": lambda n=net, b=batch: gradient_histogram(n, b),
            },
            rounds=ROUNDS,
            memory=True,
            quality={"    gradient_histogram": quality(net, batch)},
        )


if __name__ == "__main__":
    report(__doc__, measure())
