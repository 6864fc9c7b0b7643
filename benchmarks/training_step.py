"""How much faster is a training step than in the loop that people write, is it as good, and what is left of it?

The plain loop is a tutorial's: fp32, NCHW, a DataLoader with two workers over a Dataset that crops, flips and
normalizes image by image with PIL and numpy, `loss.item()` every step. Ours is `training.epochs`, with its record of
loss, accuracy and gradient norm. Batches of 128 images of 3x32x32, ResNets with BN, SGD with momentum and weight decay.

"Step" has its mini-batch at hand, "epoch" is one over 1,024 images with all that brings them. Beside a step stand what
it cannot avoid: its convolutions alone, forwards and backwards on the same inputs, and one large matmul with as many
operations as they have. All ratios are to ours: the plain loop's is how many times faster ours is; target 3. Quality:
GFLOP/s, and how far the first step's gradient is from that in float64, relative in norm.

The last rows train on the digits, with several seeds: the test accuracies in per cent, mean and standard deviation.

    python -m benchmarks.training_step [rows.json [device]]
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Row, report, rows
from normscope.data import ImageData
from normscope.data.augmentation import Augmentation
from normscope.data.digits import load_digits
from normscope.data.image_data import RawImages, standardized
from normscope.nets import build_net
from normscope.training.config import RunConfig
from normscope.training.epochs import Descent, descent
from normscope.training.train import trained

NETS = {"resnet56": 3, "resnet110": 2}
"""Rounds of each."""
BATCH, EPOCH = 128, 1024
WORKERS = 2
SEEDS, EPOCHS = 5, 10
DIGITS = RunConfig(net="resnet20", data="digits", lr=0.1, epochs=EPOCHS, evaluate_every=EPOCHS, batch_size=BATCH)


class Images(Dataset[tuple[Tensor, int]]):
    """What torchvision's CIFAR10 with its usual transforms does to an image."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, data: ImageData, *, augmented: bool = True) -> None:
        self.pixels, self.labels, self.augmentation = pixels, labels, data.augmentation
        shape = (len(data.mean), 1, 1)
        self.mean, self.std = (torch.tensor(each).float().reshape(shape) / 255 for each in (data.mean, data.std))
        self.augmented = augmented

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.pixels[index].transpose(1, 2, 0)
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        if self.augmented:
            image = self.cropped_and_flipped(image)
        array = np.array(image, copy=True).reshape(pixels.shape)
        tensor = torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div(255)
        return tensor.sub_(self.mean).div_(self.std), int(self.labels[index])

    def cropped_and_flipped(self, image: Image.Image) -> Image.Image:
        pad, (width, height) = self.augmentation.pad, image.size
        padded = ImageOps.expand(image, border=pad, fill=0)
        x, y = torch.randint(2 * pad + 1, (2,)).tolist()
        image = padded.crop((x, y, x + width, y + height))
        if self.augmentation.flip and torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def sgd(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def plain_step(net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    optimizer.zero_grad()
    outputs = net(images)
    loss = F.cross_entropy(outputs, labels)
    loss.backward()
    optimizer.step()
    return loss.item() + float((outputs.argmax(1) == labels).sum().item())


def plain_epoch(net: nn.Module, optimizer: torch.optim.Optimizer, loader: Any, device: str) -> None:
    net.train()
    for images, labels in loader:
        plain_step(net, optimizer, images.to(device), labels.to(device))


def random_images() -> RawImages:
    """As many pixels as CIFAR-10 has in an image; the time does not depend on what they show."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(256, size=(EPOCH, 3, 32, 32), dtype=np.uint8), np.arange(EPOCH) % 10
    return RawImages("noise", images, labels, images[:BATCH], labels[:BATCH], 10, Augmentation(pad=4, flip=True))


def our_epoch(run: Descent, number: Iterator[int]) -> None:
    """All steps of the run's next epoch, without the evaluation behind them."""
    run._walk_steps(next(number), lambda step: None)


def convolutions(net: nn.Module, images: Tensor, cast: Callable[[], Any]) -> Callable[[], None]:
    """Every convolution of the network forwards and backwards, on the inputs that it has there, and nothing else."""
    calls: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        needs_gradient = len(calls) > 0  # the first one's input has none
        calls.append(
            (module, inputs[0].detach().to(output.dtype).requires_grad_(needs_gradient), torch.ones_like(output))
        )

    handles = [m.register_forward_hook(keep) for m in net.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad(), cast():
        net(images)
    for handle in handles:
        handle.remove()

    def work() -> None:
        for module, given, slope in calls:
            with cast():
                output = F.conv2d(given, module.weight, None, module.stride, module.padding)
            wanted = [module.weight, *([given] if given.requires_grad else [])]
            torch.autograd.grad(output, wanted, slope)

    return work


def matmul(operations: float, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
    """One matrix product with this many operations, of matrices that are large and close to square."""
    side = 2048
    a, b = torch.randn(round(operations / 2 / side**2), side, device=device), torch.randn(side, side, device=device)
    a, b, out = a.to(dtype), b.to(dtype), torch.empty(len(a), side, dtype=dtype, device=device)
    return lambda: torch.mm(a, b, out=out)


def operations(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Floating-point operations of a forward and backward pass, almost all of them in convolutions."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(images), labels).backward()
    net.zero_grad()
    return float(counter.get_total_flops())


def gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None])


def gradient_in_float64(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    twin = copy.deepcopy(net).double()
    F.cross_entropy(twin(images.double()), labels).backward()
    return gradient(twin)


def speed(name: str, device: str, rounds: int) -> Iterator[Row]:
    raw = random_images()
    data = standardized(raw, device=device)
    config = RunConfig(net=name, data="cifar10", train_size=EPOCH, lr=0.01, device=device)
    run = descent(config, data, checkpoint=None)
    first = replace(raw, train_images=raw.train_images[:BATCH], train_labels=raw.train_labels[:BATCH])
    one = standardized(first, device=device)
    alone = replace(config, train_size=BATCH, augment=False)
    step = descent(alone, one, checkpoint=None)
    plain = build_net(name, norm="batch", init=config.init, seed=config.seed).to(device)
    optimizer = sgd(plain, config.lr)
    loader = DataLoader(Images(raw.train_images, raw.train_labels, data), BATCH, shuffle=True, num_workers=WORKERS)

    images, labels = one.train_images, one.train_labels
    flops = operations(plain, images, labels)
    exact = gradient_in_float64(plain, images, labels)
    plain_step(plain, optimizer, images, labels)
    our_epoch(step, count())
    off = {net: float((gradient(net) - exact).norm() / exact.norm()) for net in (step.net, plain)}
    dtype = torch.bfloat16 if step.precision == "bf16" else torch.float32
    last = images.contiguous(memory_format=torch.channels_last)
    ours = f"{name}: our step, {step.precision}"
    contestants = {
        ours: partial(our_epoch, step, count(1)),
        "    its convolutions alone": convolutions(step.net, last, step.autocast),
        "    a matmul of their size": matmul(flops, dtype, device),
        "    plain step": partial(plain_step, plain, optimizer, images, labels),
    }
    found = rows(contestants, rounds=2 * rounds, memory=True, device=device)
    for row in found:
        net = {ours: step.net, "    plain step": plain}.get(row.name)
        quality = {"GFLOP/s": flops / row.seconds / 1e9} | ({} if net is None else {"gradient off": off[net]})
        yield replace(row, quality=quality)
    epochs = {
        f"{name}: our epoch": partial(our_epoch, run, count()),
        f"    plain loop, {WORKERS} workers": partial(plain_epoch, plain, optimizer, loader, device),
    }
    yield from rows(epochs, rounds=rounds, device=device)


def plain_accuracy(seed: int, raw: RawImages, data: ImageData, config: RunConfig, device: str) -> float:
    """Test accuracy of the plain loop after as many epochs, with the same rates."""
    torch.manual_seed(seed)
    net = build_net(config.net, norm=config.norm, init=config.init, seed=seed, **data.net_shape()).to(device)
    optimizer = sgd(net, config.lr)
    loader = DataLoader(
        Images(raw.train_images, raw.train_labels, data), config.batch_size, shuffle=True, drop_last=True
    )
    for number in range(config.epochs):
        optimizer.param_groups[0]["lr"] = config.lr_of(number)
        plain_epoch(net, optimizer, loader, device)
    net.eval()
    right = 0
    with torch.no_grad():
        for images, labels in DataLoader(Images(raw.test_images, raw.test_labels, data, augmented=False), 500):
            right += int((net(images.to(device)).argmax(1).cpu() == labels).sum())
    return right / len(raw.test_labels)


def our_accuracy(data: ImageData, config: RunConfig) -> float:
    return float(trained(config, data).result["test_accuracy"][-1])


def accuracy(device: str) -> Iterator[Row]:
    raw = load_digits()
    data = standardized(raw, device=device)
    found: dict[str, list[tuple[float, float]]] = {"digits, resnet20: ours": [], "    plain loop": []}
    for seed in range(SEEDS):
        config = replace(DIGITS, seed=seed, device=device)
        contestants = partial(our_accuracy, data, config), partial(plain_accuracy, seed, raw, data, config, device)
        for row, contestant in zip(found.values(), contestants, strict=True):
            begun = time.perf_counter()
            right = contestant()
            row.append((time.perf_counter() - begun, 100 * right))
    base = statistics.median(seconds for seconds, _ in next(iter(found.values())))
    for name, taken in found.items():
        seconds, right = zip(*taken, strict=True)
        ratio = statistics.median(seconds) / base
        quality = {"accuracy": statistics.mean(right), "sd": statistics.stdev(right)}
        yield Row(name, statistics.median(seconds), (ratio,) * 3, (ratio,) * 3, quality=quality)


def measure(device: str) -> Iterator[Row]:
    for name, rounds in NETS.items():
        yield from speed(name, device, rounds)
    yield from accuracy(device)


if __name__ == "__main__":
    report(__doc__, measure(sys.argv[2] if len(sys.argv) > 2 else "cpu"))
