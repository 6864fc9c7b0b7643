"""What does the gradient at the output cost beside one forward pass, and is it right?

The floor is one forward pass that records the graph, and the backward pass of the loss alone. "Whole backward" is what
retain_grad() on the logits costs, which goes back through all layers. Quality: the largest error of an entry, in units
of the top value 1/|B|, against the same network in float64.

    python -m benchmarks.output_gradients [rows.json]

Typical output, on a machine busy with other work, so that processor time is what to read:

    torch 2.13.0+cpu, 1 threads, Intel(R) Xeon(R) Processor
                                        seconds    wall     (quartiles)  processor     (quartiles)
    resnet20, none, 32 x 32: bare passes    0.674   1.000   (1.000 1.000)      1.000   (1.000 1.000)
        output_gradients                  0.637   0.962   (0.896 1.018)      1.000   (0.924 1.044)  error 5.5e-08
        whole backward                    1.842   2.639   (2.554 2.847)      2.590   (2.552 2.804)
    resnet20, batch, 32 x 32: bare passes    0.770   1.000   (1.000 1.000)      1.000   (1.000 1.000)
        output_gradients                  0.759   0.997   (0.978 1.027)      1.023   (1.006 1.032)  error 1.6e-06
        whole backward                    1.899   2.492   (2.425 2.506)      2.496   (2.476 2.525)
    resnet110, batch, 8 x 8: bare passes    0.444   1.000   (1.000 1.000)      1.000   (1.000 1.000)
        output_gradients                  0.531   1.231   (1.161 1.294)      1.214   (1.176 1.242)  error 5.4e-05
        whole backward                    1.102   2.466   (2.380 2.565)      2.482   (2.400 2.507)
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row, report, rows
from normscope.nets import build_net
from normscope.probes.output_gradients import output_gradients

ROUNDS = 15
BATCH = 128
NETS = [
    # net, norm, image size
    ("resnet20", "none", 32),
    ("resnet20", "batch", 32),
    ("resnet110", "batch", 8),
]


def floor(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    logits = model(images)
    torch.autograd.grad(F.cross_entropy(logits, labels), logits)


def whole_backward(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    logits = model(images)
    logits.retain_grad()
    F.cross_entropy(logits, labels).backward()
    model.zero_grad()


def measure() -> Iterator[Row]:
    for name, norm, size in NETS:
        images = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))
        batch = images.contiguous(memory_format=torch.channels_last), torch.arange(BATCH) % 10
        model = build_net(name, norm=norm).to(memory_format=torch.channels_last)  # pyright: ignore
        twin = build_net(name, norm=norm).double()
        found, exact = (
            output_gradients(m, b)["gradient"] for m, b in [(model, batch), (twin, (images.double(), batch[1]))]
        )
        yield from rows(
            {
                f"{name}, {norm}, {size} x {size}: bare passes": lambda m=model, b=batch: floor(m, *b),
                "    output_gradients": lambda m=model, b=batch: output_gradients(m, b),
                "    whole backward": lambda m=model, b=batch: whole_backward(m, *b),
            },
            rounds=ROUNDS,
            quality={"    output_gradients": {"error": BATCH * float(abs(found - exact).max())}},
        )


if __name__ == "__main__":
    report(__doc__, measure())
