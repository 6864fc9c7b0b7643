"""What do the moments of every channel cost beside a bare forward pass, and are they right?

The floor is one forward pass without gradients in training mode, in the same memory format, and its loss. "Plain hooks"
are what one writes first: `mean` and `var` of every convolution's output. Quality: the largest distance of a channel's
mean (in standard deviations) and variance (relative) from those of the same float32 outputs in float64.

    python -m benchmarks.channel_moments [rows.json]
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row, report, rows
from normscope.model.layers import LayerCall, channel_dim, record_calls
from normscope.nets import build_net
from normscope.probes.channel_moments import channel_moments

ROUNDS = 9
BATCH = 128
FORMATS = {"channels last": torch.channels_last, "NCHW": torch.contiguous_format}
CONTESTANTS = [  # net, norm, memory format, rounds
    ("resnet110", "batch", "channels last", ROUNDS),
    ("resnet110", "none", "channels last", ROUNDS),
    ("resnet20", "batch", "NCHW", 3),
]


def plain_moments(model: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance of every layer's output by the two calls that say so."""
    found: list[tuple[Tensor, Tensor]] = []

    def on_call(call: LayerCall) -> None:
        over = [d for d in range(call.output.ndim) if d != channel_dim(call.module, call.output)]
        found.append((call.output.mean(over), call.output.var(over, correction=0)))

    with torch.no_grad(), record_calls(model, on_call):
        model(images)
    return found


def errors(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Largest error of a mean, in standard deviations, and of a variance, relative."""
    exact: dict[str, tuple[Tensor, Tensor]] = {}

    def on_call(call: LayerCall) -> None:
        over = [d for d in range(call.output.ndim) if d != channel_dim(call.module, call.output)]
        exact[call.name] = torch.var_mean(call.output.double(), over, correction=0)

    with torch.no_grad(), record_calls(model, on_call):
        model(batch[0])
    dataset = channel_moments(model, batch)
    mean_off = variance_off = 0.0
    for name, (variance, mean) in exact.items():
        one = dataset.sel(layer=name, channel=slice(0, len(mean) - 1))
        mean_off = max(mean_off, float((abs(one["mean"].values - mean.numpy()) / variance.sqrt().numpy()).max()))
        variance_off = max(variance_off, float(abs(one["variance"].values / variance.numpy() - 1).max()))
    return {"mean off": mean_off, "variance off": variance_off}


def measure() -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32, generator=generator), torch.arange(BATCH) % 10
    for name, norm, layout, rounds in CONTESTANTS:
        model = build_net(name, norm=norm).to(memory_format=FORMATS[layout])  # pyright: ignore
        inputs = images.contiguous(memory_format=FORMATS[layout])

        def bare(model: nn.Module = model, inputs: Tensor = inputs) -> None:
            with torch.no_grad():
                F.cross_entropy(model(inputs), labels)

        label = f"{name}, {norm}, {layout}"
        yield from rows(
            {
                f"{label}: bare": bare,
                "    channel_moments": lambda m=model, x=inputs: channel_moments(m, (x, labels)),
                "    plain hooks": lambda m=model, x=inputs: plain_moments(m, x),
            },
            rounds=rounds,
            memory=True,
            quality={"    channel_moments": errors(model, (inputs, labels))},
        )


if __name__ == "__main__":
    report(__doc__, measure())
