"""What does the largest eigenvalue of the Hessian cost beside PyHessian, and is it right?

The floor is eight bare backward passes through the graph of the gradient. Lanczos's method and PyHessian's power
iteration make eight products too, with all that they do between them, on graphs of their own that are already there.
Then each is asked for the largest eigenvalue to 1e-3. Quality: how many products that takes (one of ours gives the
curvature along the gradient, which PyHessian does not), and how far off the eigenvalue is, from what Lanczos's method
gives to 1e-6. PyHessian puts networks into evaluation mode, so that with batch norm it has another Hessian and takes no
part; it is left out too where it is not installed.

    python -m benchmarks.sharpness [rows.json]

Typical output, of one thread beside other work; wall times left out:

                                    seconds  processor     (quartiles)
    none, xavier_uniform              1.164      1.000   (1.000 1.000)
        lanczos                       1.343      1.146   (1.139 1.164)  products 5.0e+00, off 1.5e-05
        PyHessian                     1.286      1.117   (1.107 1.145)  products 9.0e+00, off 6.5e-04
    none, default                     1.189      1.000   (1.000 1.000)
        lanczos                       1.376      1.162   (1.140 1.164)  products 9.0e+00, off 1.2e-05
        PyHessian                     1.313      1.101   (1.094 1.105)  products 1.9e+01, off 2.0e-03
    none, zero_residual               0.953      1.000   (1.000 1.000)
        lanczos                       1.071      1.127   (1.119 1.130)  products 1.0e+01, off 7.1e-06
        PyHessian                     1.053      1.096   (1.087 1.104)  products 1.8e+01, off 2.4e-03
    group, xavier_uniform             2.242      1.000   (1.000 1.000)
        lanczos                       2.316      1.020   (1.017 1.028)  products 8.0e+00, off 1.3e-05
        PyHessian                     5.096      1.009   (1.006 1.017)  products 4.2e+01, off 3.4e-03
    layer, xavier_uniform             2.156      1.000   (1.000 1.000)
        lanczos                       2.235      1.058   (1.046 1.062)  products 1.1e+01, off 1.2e-05
        PyHessian                     2.294      1.064   (1.057 1.107)  products 2.3e+01, off 1.1e-02
    batch, xavier_uniform             1.906      1.000   (1.000 1.000)
        lanczos                       2.451      1.087   (1.055 1.107)  products 2.0e+01, off 5.6e-06
"""

import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.timing import Row, report, rows
from normscope.curvature.hessian import hessian
from normscope.curvature.lanczos import lanczos
from normscope.nets import build_net
from normscope.probes.sharpness import sharpness, start_vector

ROUNDS = 5
PRODUCTS = 8
BATCH, SIDE = 16, 16
NETS = [("none", "xavier_uniform"), ("none", "default"), ("none", "zero_residual"), ("group", "xavier_uniform")]
NETS += [("layer", "xavier_uniform"), ("batch", "xavier_uniform")]


def pyhessian(net: nn.Module, batch: Any) -> Any:
    """PyHessian's object for this batch, or None where it cannot measure the same thing."""
    try:
        from pyhessian import hessian as of
    except ImportError:
        return None
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        return None
    net.zero_grad(set_to_none=True)  # it adds to what is there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it keeps a graph in .grad on purpose
        return of(net, F.cross_entropy, data=batch, cuda=False)


def eigenvalue(theirs: Any) -> tuple[int, float]:
    """How many products PyHessian makes at its default tolerance of 1e-3, and the eigenvalue that it then gives."""
    module: Any = sys.modules["pyhessian.hessian"]
    original: Callable[..., Any] = module.hessian_vector_product
    calls = itertools.count()

    def product(*arguments: Any) -> Any:
        next(calls)
        return original(*arguments)

    module.hessian_vector_product = product
    try:
        torch.manual_seed(0)
        values, _ = theirs.eigenvalues(tol=1e-3)
    finally:
        module.hessian_vector_product = original
    return next(calls), float(values[0])


def measured(norm: str, init: str) -> Iterator[Row]:
    net = build_net("resnet20", norm=norm, init=init).to(memory_format=torch.channels_last)  # pyright: ignore
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    batch = images, torch.randint(10, (BATCH,), generator=generator)
    best = float(sharpness(net, batch, tolerance=1e-6)["eigenvalue"][0])
    ours = sharpness(net, batch)
    found = {"products": float(ours["num_products"]), "off": abs(float(ours["eigenvalue"][0]) / best - 1)}
    quality = {"    lanczos": found}
    parameters = list(net.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(net(images), batch[1]), parameters, create_graph=True)
    direction = [torch.randn_like(p) for p in parameters]

    def bare() -> None:
        for _ in range(PRODUCTS):
            torch.autograd.grad(slopes, parameters, direction, retain_graph=True)

    theirs = pyhessian(net, batch)
    with hessian(net, batch) as h:
        start = start_vector(h.gradient(), 0)
        contestants: dict[str, Callable[[], object]] = {
            f"{norm}, {init}": bare,
            "    lanczos": lambda: list(itertools.islice(lanczos(h.product, start), PRODUCTS)),
        }
        if theirs is not None:
            contestants["    PyHessian"] = lambda: theirs.eigenvalues(maxIter=PRODUCTS, tol=0.0)
            products, value = eigenvalue(theirs)
            quality["    PyHessian"] = {"products": float(products), "off": abs(value / best - 1)}
        yield from rows(contestants, rounds=ROUNDS, quality=quality)


def measure() -> Iterator[Row]:
    for norm, init in NETS:
        yield from measured(norm, init)


if __name__ == "__main__":
    report(__doc__, measure())
