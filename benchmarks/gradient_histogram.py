"""What does the histogram of every layer's gradient, with its spread and tails, cost beside the gradient itself?

The floor is one forward and backward pass with every parameter's gradient. Contestants take turns in one run. Quality:
entries that are in no bin (none may be), and the largest relative distance, over layers, of the kurtosis from scipy's
and of the tail index from a full sort's.

    OMP_NUM_THREADS=1 python benchmarks/gradient_histogram.py [rows.json]

Typical output, one thread of an Intel Xeon shared with other work (ranges leave out the extreme rounds):

    resnet20, no norm       454.8 ms    0.97 of the floor (0.91 to 1.04)  missing 0, kurtosis off 4e-16, tail off 4e-16
    resnet20, batch norm    478.8 ms    1.01 of the floor (0.95 to 1.12)  missing 0, kurtosis off 2e-16, tail off 3e-16
    resnet110, 8 x 8        406.4 ms    1.39 of the floor (1.37 to 1.39)  missing 0, kurtosis off 3e-16, tail off 6e-16
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F

from normscope.nets import build_net
from normscope.probes.gradient_histogram import TAIL_SHARE, gradient_histogram

ROUNDS = 7
CONTESTANTS = [
    # title, net, norm, image size
    ("resnet20, no norm", "resnet20", "none", 32),
    ("resnet20, batch norm", "resnet20", "batch", 32),
    ("resnet110, 8 x 8", "resnet110", "batch", 8),
]
BATCH_SIZE = 128


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def against(floor: Callable[[], object], contestant: Callable[[], object]) -> dict[str, float]:
    """Medians over rounds in which both take turns, after one of each to warm up; the ratio is taken by round."""
    pairs = [(seconds(floor), seconds(contestant)) for _ in range(ROUNDS + 1)][1:]
    ratios = sorted(late / early for early, late in pairs)
    return {
        "floor_seconds": statistics.median(early for early, _ in pairs),
        "seconds": statistics.median(late for _, late in pairs),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[1],
        "ratio_high": ratios[-2],
    }


def hill(values: np.ndarray) -> float:
    """The tail index by a full sort."""
    sizes = np.sort(np.abs(values[values != 0]))[::-1]
    k = round(TAIL_SHARE * len(sizes))
    return float(1 / np.mean(np.log(sizes[:k] / sizes[k])))


def measured(name: str, norm: str, size: int) -> dict[str, float]:
    net = build_net(name, norm=norm).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH_SIZE, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH_SIZE,), generator=generator)
    parameters = list(net.parameters())

    def floor() -> None:
        torch.autograd.grad(F.cross_entropy(net(images), labels), parameters)

    row = against(floor, lambda: gradient_histogram(net, (images, labels)))
    dataset = gradient_histogram(net, (images, labels))
    F.cross_entropy(net(images), labels).backward()
    kurtosis_off = tail_index_off = 0.0
    for path in dataset["layer"].values.tolist():
        one, values = dataset.sel(layer=path), net.get_submodule(path).weight.grad.double().numpy().ravel()  # pyright: ignore
        exact = scipy.stats.kurtosis(values, fisher=False)
        kurtosis_off = max(kurtosis_off, float(abs(one["kurtosis"] / exact - 1)))
        tail_index_off = max(tail_index_off, float(abs(one["tail_index"] / hill(values) - 1)))
    missing = float(dataset["num_entries"].sum() - dataset["count"].sum())
    return row | {"missing": missing, "kurtosis_off": kurtosis_off, "tail_index_off": tail_index_off}


def main() -> None:
    torch.set_num_threads(1)
    rows = {}
    for title, *how in CONTESTANTS:
        row = rows[title] = measured(*how)
        print(
            f"    {title:20} {row['seconds'] * 1e3:8.1f} ms  {row['ratio']:6.2f} of the floor"
            f" ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})  missing {row['missing']:.0f},"
            f" kurtosis off {row['kurtosis_off']:.0e}, tail off {row['tail_index_off']:.0e}",
            flush=True,
        )
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
