"""What do gradient norms of all weights and activations cost beside one forward and backward pass, and are they right?

The floor is one forward and backward pass with every parameter's gradient, on 128 images. "Kept, then measured" is what
one writes first: every output's gradient is kept by `retain_grad` until the end. Quality: the largest relative distance
of a norm from what autograd gives in the same float32, over layers, for weights ("off") and outputs ("outputs off").

    python -m benchmarks.gradient_norms [rows.json]
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row, report, rows
from normscope.model.layers import LayerCall, record_calls
from normscope.nets import build_net
from normscope.probes.gradient_norms import gradient_norms

ROUNDS = 5
BATCH = 128
NETWORKS = [("resnet20", "none", 32), ("resnet20", "batch", 32), ("resnet110", "batch", 8)]


def kept(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, tuple[float, float]]:
    """{layer: norm of the weight's gradient, norm of the output's gradient}."""
    outputs: dict[str, Tensor] = {}

    def on_call(call: LayerCall) -> None:
        call.output.retain_grad()
        outputs[call.name] = call.output

    with record_calls(model, on_call):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    weights = {name: model.get_submodule(name).weight for name in outputs}
    found = {name: (float(weights[name].grad.norm()), float(outputs[name].grad.norm())) for name in outputs}  # pyright: ignore
    model.zero_grad()
    return found


def floor(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))


def measure() -> Iterator[Row]:
    for network, norm, size in NETWORKS:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(BATCH, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(BATCH) % 10
        model = build_net(network, norm=norm).to(memory_format=torch.channels_last)  # pyright: ignore
        dataset = gradient_norms(model, (images, labels))
        twin = kept(copy.deepcopy(model), images, labels)
        off = [
            max(abs(float(dataset[of].sel(layer=name)) / norms[i] - 1) for name, norms in twin.items())
            for i, of in enumerate(("weight_gradient_norm", "activation_gradient_norm"))
        ]
        yield from rows(
            {
                f"{network}, {norm}, {size} pixels: floor": lambda m=model, x=images, y=labels: floor(m, x, y),
                "    gradient_norms": lambda m=model, x=images, y=labels: gradient_norms(m, (x, y)),
                "    kept, then measured": lambda m=model, x=images, y=labels: kept(m, x, y),
            },
            rounds=ROUNDS,
            memory=True,
            quality={"    gradient_norms": {"off": off[0], "outputs off": off[1]}},
        )


if __name__ == "__main__":
    report(__doc__, measure())
