"""What do exact squared gradient norms of 128 examples cost beside one forward and backward pass, and are they right?

The floor is one forward and backward pass with every parameter's gradient, on ResNet-20 and ResNet-56 without
normalization. "gradient_noise" is the whole probe, its test of decoupling included. "only its products" is what an
exact method by products of matrices cannot do without: the gradients of all activations, and beside them, on operands
that stay in the cache, the products that would give every example's kernel gradients. Beside these stand the squared
norms by torch.func (vmap of grad, 32 examples at a time), by BackPACK (BatchL2Grad), by Opacus (per-example gradients
kept for all layers), where these are installed, and example by example. Opacus and BackPACK are given torch's default
memory layout: in channels_last Opacus 1.6 gives wrong gradients for convolutions. Quality: the largest relative
distance of an example's squared norm from that of the same network in float64, of 16 examples.

    python -m benchmarks.gradient_noise [rows.json]
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row, report, rows
from normscope.nets import build_net
from normscope.probes.gradient_noise import gradient_noise

ROUNDS = 5
BATCH = 128
CHECKED = 16
FEW = 8
"""Images whose patches fit into the cache."""
NETWORKS = ("resnet20", "resnet56")

SquaredNorms = Callable[[nn.Module, Tensor, Tensor], Tensor]


def floor(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))


def ours(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    dataset = gradient_noise(model, (images, labels))
    assert dataset.attrs["in_one_pass"] == "true"
    return torch.from_numpy(dataset["squared_norm"].values)


@cache
def for_products(model: nn.Module) -> tuple[nn.Module, list[nn.Parameter], list[tuple[Tensor, ...]]]:
    """The network with one small parameter only, so that its backward pass gives the gradients of all activations; and
    for each convolution δ, patches and product of a few images, which layers of the same shape share."""
    net = copy.deepcopy(model).requires_grad_(False)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    shapes: list[tuple[int, int, int, int]] = []

    def note(conv: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        rows, columns = conv.kernel_size
        shapes.append((conv.out_channels, output[0, 0].numel(), columns * conv.in_channels, rows))

    hooks = [conv.register_forward_hook(note) for conv in convs]
    net(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    first = convs[0].bias
    assert isinstance(first, nn.Parameter)
    first.requires_grad_()

    @cache
    def operands(out: int, positions: int, width: int) -> tuple[Tensor, ...]:
        delta = torch.randn(FEW, positions, out).transpose(1, 2)
        return delta, torch.randn(FEW, positions, width), torch.empty(FEW, out, width)

    return net, [first], [operands(*shape) for *shape, rows in shapes for _ in range(rows)]


def only_products(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    net, first, products = for_products(model)
    torch.autograd.grad(F.cross_entropy(net(images), labels), first)
    for delta, patches, product in products:
        for _ in range(len(images) // FEW):
            torch.bmm(delta, patches, out=product)


def one_by_one(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    squares = []
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(image), label), list(model.parameters()))
        squares.append(torch.stack([g.square().sum() for g in gradients]).sum())
    return torch.stack(squares)


def by_torch_func(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def squared_norm(image: Tensor, label: Tensor) -> Tensor:
        def loss(values: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(model, values, (image[None],)), label[None])

        return torch.stack([g.square().sum() for g in torch.func.grad(loss)(parameters).values()]).sum()

    return torch.func.vmap(squared_norm, chunk_size=32)(images, labels)


def in_default_layout(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


@cache
def for_opacus(model: nn.Module) -> nn.Module:
    from opacus import GradSampleModule  # pyright: ignore[reportMissingImports]

    return GradSampleModule(in_default_layout(model), loss_reduction="mean")


def by_opacus(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    hooked = for_opacus(model)
    F.cross_entropy(hooked(images.contiguous()), labels).backward()
    squares = torch.stack([p.grad_sample.flatten(1).square().sum(1) for p in hooked.parameters()]).sum(0)
    for parameter in hooked.parameters():
        parameter.grad = parameter.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]
    return squares


@cache
def for_backpack(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    from backpack import extend  # pyright: ignore[reportMissingImports]

    return extend(in_default_layout(model)), extend(nn.CrossEntropyLoss())


def by_backpack(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    from backpack import backpack  # pyright: ignore[reportMissingImports]
    from backpack.extensions import BatchL2Grad  # pyright: ignore[reportMissingImports]

    net, loss_fn = for_backpack(model)
    with backpack(BatchL2Grad()):
        loss_fn(net(images.contiguous()), labels).backward()
    squares = torch.stack([p.batch_l2 for p in net.parameters()]).sum(0)
    for parameter in net.parameters():
        parameter.grad = None
        del parameter.batch_l2
    return squares * len(images) ** 2  # it has those of gradients / n


CONTESTANTS: dict[str, SquaredNorms] = {
    "gradient_noise": ours,
    "torch.func": by_torch_func,
    "Opacus": by_opacus,
    "BackPACK": by_backpack,
    "one by one": one_by_one,
}


def usable(name: str, work: SquaredNorms, model: nn.Module, images: Tensor, labels: Tensor) -> bool:
    try:
        work(model, images, labels)
    except Exception as error:
        print(f"    {name} is left out: {type(error).__name__}: {str(error).splitlines()[0][:90]}", flush=True)
        return False
    return True


def measure() -> Iterator[Row]:
    warnings.filterwarnings("ignore", category=UserWarning)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 10
    few, few_labels = images[:CHECKED], labels[:CHECKED]
    for network in NETWORKS:
        model = build_net(network, norm="none").to(memory_format=torch.channels_last)  # pyright: ignore
        exact = one_by_one(copy.deepcopy(model).double(), few.double(), few_labels).numpy()
        can = {name: work for name, work in CONTESTANTS.items() if usable(name, work, model, few, few_labels)}
        off = {
            f"    {name}": {"off": float(np.abs(work(model, few, few_labels).detach().numpy() / exact - 1).max())}
            for name, work in can.items()
        }
        contestants = {f"{network}: forward and backward": lambda m=model: floor(m, images, labels)}
        contestants["    only its products"] = lambda m=model: only_products(m, images, labels)
        contestants |= {f"    {name}": lambda w=work, m=model: w(m, images, labels) for name, work in can.items()}
        yield from rows(contestants, rounds=ROUNDS, memory=True, quality=off)


if __name__ == "__main__":
    report(__doc__, measure())
