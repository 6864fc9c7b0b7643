"""What do the summands of every kernel's gradient cost beside one forward and backward pass, and are they right?

The floor is one forward and backward pass with every parameter's gradient. "Written down" is what the definition says:
every summand of a layer in memory at once, by unfolding its input; it is given for 16 images on resnet8 only, where a
layer of the first stage has 38 million of them. Contestants take turns in one run. Quality: the largest relative
distance, over layers, of b from the gradient that autograd gives in the same float32 ("b off"), and of a/b from the
same network in float64, which is what float32 costs the network itself: with batch norm its gradients cancel to
thousandths ("float64 off").

    OMP_NUM_THREADS=1 python benchmarks/gradient_cancellation.py [rows.json]

Typical output, one thread of an Intel Xeon shared with other work (ranges leave out the extreme rounds):

    resnet20, no norm         774.1 ms    1.40 of the floor (1.39 to 1.42)  b off 1e-07, float64 off 3e-06
    resnet20, batch norm      643.3 ms    1.34 of the floor (1.32 to 1.41)  b off 1e-07, float64 off 2e-03
    resnet20, frozen          624.3 ms    1.45 of the floor (1.42 to 1.47)  float64 off 2e-04
    resnet110, 8 x 8          301.4 ms    1.65 of the floor (1.59 to 1.67)  b off 2e-07, float64 off 2e-03
    resnet8, written down   15201.6 ms  373.92 of the floor (358.10 to 390.26)  float64 off 2e-07
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.nets import build_net
from normscope.probes.gradient_cancellation import gradient_cancellation

ROUNDS = 7
QUALITIES = ("b_off", "float64_off")
CONTESTANTS = [
    # name, net, norm, image size, batch size, options
    ("resnet20, no norm", "resnet20", "none", 32, 128, {}),
    ("resnet20, batch norm", "resnet20", "batch", 32, 128, {}),
    ("resnet20, frozen", "resnet20", "batch", 32, 128, {"frozen_statistics": True}),
    ("resnet110, 8 x 8", "resnet110", "batch", 8, 128, {}),
    ("resnet8, written down", "resnet8", "none", 32, 16, None),
]


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


def written_down(net: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """a/b of every convolution, with every summand of a layer in memory at once."""
    ratio: dict[str, float] = {}

    def hook_for(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, nn.Conv2d)
            size: tuple[int, int] = module.kernel_size  # pyright: ignore[reportAssignmentType]
            patches = F.unfold(args[0].detach(), size, module.dilation, module.padding, module.stride)  # pyright: ignore

            def on_gradient(gradient: Tensor) -> None:
                terms = torch.einsum("bop,bip->oibp", gradient.flatten(2), patches)
                a, b = terms.abs().sum((2, 3)).mean(), terms.sum((2, 3)).abs().mean()
                ratio[path] = float(a / b)

            output.register_hook(on_gradient)

        return hook

    hooks = [m.register_forward_hook(hook_for(p)) for p, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    try:
        F.cross_entropy(net(batch[0]), batch[1]).backward()
    finally:
        for hook in hooks:
            hook.remove()
    return ratio


def measured(name: str, norm: str, size: int, batch_size: int, options: dict[str, bool] | None) -> dict[str, float]:
    net = build_net(name, norm=norm).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,), generator=generator)
    parameters = list(net.parameters())

    def floor() -> None:
        torch.autograd.grad(F.cross_entropy(net(images), labels), parameters)

    quality = {}
    if options is None:
        row = against(floor, lambda: written_down(net, (images, labels)))
        found = written_down(net, (images, labels))
    else:
        row = against(floor, lambda: gradient_cancellation(net, (images, labels), **options))
        dataset = gradient_cancellation(net, (images, labels), **options)
        found = dict(zip(dataset["layer"].values.tolist(), dataset["ratio"].values, strict=True))
        if not options:
            F.cross_entropy(net(images), labels).backward()
            own = [net.get_submodule(path).weight.grad.abs().mean().item() for path in found]  # pyright: ignore
            quality["b_off"] = float(np.abs(dataset["absolute_of_sum"].values / own - 1).max())
            net.zero_grad()
    twin = gradient_cancellation(net.double(), (images.double(), labels), **(options or {}))
    exact = dict(zip(twin["layer"].values.tolist(), twin["ratio"].values, strict=True))
    quality["float64_off"] = max(float(abs(found[path] / exact[path] - 1)) for path in found)
    return row | quality


def main() -> None:
    torch.set_num_threads(1)
    rows = {}
    for title, *how in CONTESTANTS:
        row = rows[title] = measured(*how)
        print(
            f"    {title:22} {row['seconds'] * 1e3:8.1f} ms  {row['ratio']:6.2f} of the floor"
            f" ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})  "
            + ", ".join(f"{name.replace('_', ' ')} {row[name]:.0e}" for name in QUALITIES if name in row),
            flush=True,
        )
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
