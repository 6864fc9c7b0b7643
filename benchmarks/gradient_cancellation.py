"""What do the summands of every kernel's gradient cost beside one forward and backward pass, and are they right?

The floor is one forward and backward pass with every parameter's gradient, on 128 images. "Written down" is what the
definition says: every summand of a layer in memory at once, by unfolding its input; it is given for 16 images on
resnet8 only, where a layer of the first stage has 38 million of them. Quality: the largest relative distance, over
layers, of b from the gradient that autograd gives in the same float32 ("b off"), and of a/b from the same network in
float64 ("float64 off"). The latter is what float32 costs the network itself: with batch norm its gradients cancel to
thousandths.

    python -m benchmarks.gradient_cancellation [rows.json]
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row, report, rows
from normscope.nets import build_net
from normscope.probes.gradient_cancellation import gradient_cancellation

ROUNDS = 5
BATCH = 128
NETWORKS = [("resnet20", "none", 32), ("resnet20", "batch", 32), ("resnet110", "batch", 8)]


def network(name: str, norm: str) -> nn.Module:
    return build_net(name, norm=norm).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def batch_of(num_examples: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_examples, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.arange(num_examples) % 10


def gradients(net: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """One forward and backward pass."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    loss = F.cross_entropy(net(batch[0]), batch[1])
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def written_down(net: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """a/b of every convolution, with every summand of a layer in memory at once."""
    ratio: dict[str, float] = {}

    def listen(path: str, module: nn.Conv2d) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            patches = F.unfold(args[0].detach(), module.kernel_size, 1, module.padding, module.stride)  # pyright: ignore

            def on_gradient(gradient: Tensor) -> None:
                terms = torch.einsum("bop,bip->oibp", gradient.flatten(2), patches)
                ratio[path] = float(terms.abs().sum((2, 3)).mean() / terms.sum((2, 3)).abs().mean())

            output.register_hook(on_gradient)

        return module.register_forward_hook(hook)

    hooks = [listen(path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    try:
        gradients(net, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return ratio


def float64_off(net: nn.Module, batch: tuple[Tensor, Tensor], found: dict[str, float], **options: bool) -> float:
    """The largest relative distance of a/b from that of the same network in float64."""
    exact = gradient_cancellation(copy.deepcopy(net).double(), (batch[0].double(), batch[1]), **options)
    return max(abs(ratio / float(exact["ratio"].sel(layer=path)) - 1) for path, ratio in found.items())


def quality(net: nn.Module, batch: tuple[Tensor, Tensor], **options: bool) -> dict[str, float]:
    dataset = gradient_cancellation(net, batch, **options)
    paths = dataset["layer"].values.tolist()
    off = {"float64 off": float64_off(net, batch, dict(zip(paths, dataset["ratio"].values, strict=True)), **options)}
    if not options:
        own = gradients(net, batch)
        b = [float(own[f"{path}.weight"].abs().mean()) for path in paths]
        off["b off"] = float(np.abs(dataset["absolute_of_sum"].values / b - 1).max())
    return off


def measure() -> Iterator[Row]:
    for name, norm, size in NETWORKS:
        net, batch = network(name, norm), batch_of(BATCH, size)
        contestants = {
            f"{name}, {norm}, {size} pixels: floor": lambda n=net, b=batch: gradients(n, b),
            "    gradient_cancellation": lambda n=net, b=batch: gradient_cancellation(n, b),
        }
        qualities = {"    gradient_cancellation": quality(net, batch)}
        if norm == "batch":
            contestants["    frozen statistics"] = lambda n=net, b=batch: gradient_cancellation(
                n, b, frozen_statistics=True
            )
            qualities["    frozen statistics"] = quality(net, batch, frozen_statistics=True)
        yield from rows(contestants, rounds=ROUNDS, memory=True, quality=qualities)
    net, batch = network("resnet8", "none"), batch_of(16, 32)
    off = {"float64 off": float64_off(net, batch, written_down(net, batch))}
    yield from rows(
        {
            "resnet8, none, 16 images: floor": lambda: gradients(net, batch),
            "    gradient_cancellation": lambda: gradient_cancellation(net, batch),
            "    written down": lambda: written_down(net, batch),
        },
        rounds=3,
        memory=True,
        quality={"    gradient_cancellation": quality(net, batch), "    written down": off},
    )


if __name__ == "__main__":
    report(__doc__, measure())
