"""What does the gradient at the output cost beside one forward pass, and is it right?

The floor is one forward pass that records the graph, and the backward pass of the loss alone. "Whole backward" is what
retain_grad() on the logits costs, which goes back through all layers. Quality: the largest error of an entry, in units
of the top value 1/|B|, against the same network in float64.

    python -m benchmarks.output_gradients [rows.json]


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
