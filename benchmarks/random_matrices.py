"""What do spectra of random products and input-output Jacobians cost beside what they cannot avoid?

The floor of a product's spectrum is numpy's own decomposition of one N x N matrix for each length; the floor of a
Jacobian is the bare backward passes, one for each row. Contestants take turns in one run; the quality, distance
from the law and from a float64 twin, stands beside the time.

    OMP_NUM_THREADS=1 python benchmarks/random_matrices.py [rows.json]

Typical output, one thread of an Intel Xeon shared with other work (ranges leave out the extreme rounds). What
products cost above their floor is drawing five matrices, multiplying them, and the law's distribution:

    products, N = 500         275.4 ms  1.60 of the floor (1.58 to 1.63)  ks_distance 6.7e-03, edge_off 2.8e-02
    jacobian, no norm         467.5 ms  1.11 of the floor (1.05 to 1.15)  error 4.3e-08
    jacobian, batch norm      852.8 ms  1.09 of the floor (1.06 to 1.14)  error 1.4e-07
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from normscope.nets import build_net
from normscope.paper.random_matrices import product_singular_values
from normscope.probes.input_jacobian import input_jacobian

SIZE = 500
FACTORS = (1, 3, 5)
BATCH = 16
ROUNDS = 7


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def against(floor: Callable[[], object], contestant: Callable[[], object]) -> dict[str, float]:
    """Medians over rounds in which both take turns, after one to warm up; the ratio is taken by round."""
    pairs = [(seconds(floor), seconds(contestant)) for _ in range(ROUNDS + 1)][1:]
    ratios = sorted(late / early for early, late in pairs)
    return {
        "floor_seconds": statistics.median(early for early, _ in pairs),
        "seconds": statistics.median(late for _, late in pairs),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[1],
        "ratio_high": ratios[-2],
    }


def products() -> dict[str, float]:
    """A draw of M = 1, 3, 5 beside three decompositions of one matrix of the same size."""
    matrix = np.random.default_rng(0).standard_normal((SIZE, SIZE))
    row = against(
        lambda: [np.linalg.svd(matrix, compute_uv=False) for _ in FACTORS],
        lambda: product_singular_values(FACTORS, SIZE, draws=1),
    )
    dataset = product_singular_values(FACTORS, SIZE, draws=3)
    off = np.abs(dataset["largest"].mean("draw") / dataset["edge"] - 1)
    return row | {"ks_distance": float(dataset["ks_distance"].max()), "edge_off": float(off.max())}


def jacobian(norm: str) -> dict[str, float]:
    """One example's Jacobian of the 64 features of a resnet20 by its image, beside 64 backward passes."""
    net = build_net("resnet20", norm=norm, in_channels=1, image_size=8).train()
    net.fc = nn.Identity()
    images = torch.randn(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def backwards() -> None:
        leaf = images.clone().requires_grad_()
        total = net(leaf).sum()
        for _ in range(64):
            torch.autograd.grad(total, leaf, retain_graph=True)

    row = against(backwards, lambda: input_jacobian(net, images, num_examples=1))
    values = input_jacobian(net, images, num_examples=1)["singular_value"].values
    twin = input_jacobian(net.double(), images.double(), num_examples=1)["singular_value"].values
    return row | {"error": float(np.abs(values - twin).max() / twin.max())}


def main() -> None:
    torch.set_num_threads(1)
    rows = {
        f"products, N = {SIZE}": products(),
        "jacobian, no norm": jacobian("none"),
        "jacobian, batch norm": jacobian("batch"),
    }
    for name, row in rows.items():
        quality = ", ".join(f"{key} {value:.1e}" for key, value in list(row.items())[5:])
        print(
            f"{name:22} {row['seconds'] * 1e3:8.1f} ms  {row['ratio']:.2f} of the floor"
            f" ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})  {quality}"
        )
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
