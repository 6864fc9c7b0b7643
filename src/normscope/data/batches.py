"""Batches that never leave the device, fixed by a seed.

The order, crops and flips of an epoch are drawn at its start by one generator, seeded by (seed, epoch). So
any batch can be had again without those before it, which is how a killed run goes on, and an image's crop
depends neither on the batch size nor on the global random state. The bits are the same on the same kind of
device; a GPU draws other numbers than a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor

from normscope.data.augmentation import augment as augmented
from normscope.data.augmentation import draw
from normscope.data.image_data import ImageData
from normscope.errors import InvalidConfig

Batch = tuple[Tensor, Tensor]
"""Images float32 (B, C, H, W) and labels int64 (B,)."""


def batches(
    data: ImageData,
    batch_size: int,
    *,
    seed: int,
    augment: bool = True,
    split: str = "train",
    drop_last: bool = True,
    start: int = 0,
) -> Iterator[Batch]:
    """Training batches without end, reshuffled and augmented anew in each epoch.

    start: the number of the first batch wanted, counted from 0 over all epochs, to go on where a run stopped.
    drop_last: leave out an epoch's last batch where it is smaller than the others.
    With another split than "train": one pass over it, as `evaluation_batches` gives it, whatever the other
    options.

    Raises InvalidConfig, at once, for a batch size that the data cannot fill, a negative seed or an unknown
    split.

    Example:
        >>> images, labels = next(ns.batches(ns.load_data("digits"), 32, seed=0))
        >>> images.shape, labels.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """
    if split != "train":
        return evaluation_batches(data, batch_size, split=split)
    per_epoch = _batches_per_epoch(data, batch_size, drop_last)
    _refuse_negative(seed=seed, start=start)

    def endless() -> Iterator[Batch]:
        first, skip = divmod(start, per_epoch)
        for number in count(first):
            yield from epoch(
                data, batch_size, seed=seed, epoch=number, augment=augment, drop_last=drop_last, start=skip
            )
            skip = 0

    return endless()


def epoch(
    data: ImageData,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    augment: bool = True,
    drop_last: bool = True,
    start: int = 0,
) -> Iterator[Batch]:
    """The training batches of one epoch (counted from 0), from its batch number `start` on.

    The same (seed, epoch) gives the same bits, with or without the epochs before. Raises as `batches` does.
    """
    images, labels = data.split("train")
    number = _batches_per_epoch(data, batch_size, drop_last)
    _refuse_negative(seed=seed, epoch=epoch, start=start)
    generator = _seeded(seed, epoch, data.device)
    order = torch.randperm(len(images), generator=generator, device=data.device)
    draws = draw(len(images), data.augmentation, generator)
    black = data.black()

    def batch(index: int) -> Batch:
        part = slice(index * batch_size, (index + 1) * batch_size)
        chosen = images[order[part]]
        if augment:
            chosen = augmented(chosen, draws[part], pad=data.augmentation.pad, fill=black)
        return chosen, labels[order[part]]

    return map(batch, range(start, number))


def evaluation_batches(data: ImageData, batch_size: int, *, split: str = "test") -> Iterator[Batch]:
    """Every image of a split once, in the stored order and not augmented; the last batch may be smaller.

    Raises InvalidConfig for a batch size below 1, an unknown split, or "held_out" where nothing was held out.
    """
    images, labels = data.split(split)
    if batch_size < 1:
        raise InvalidConfig(f"batch_size is {batch_size}: it must be at least 1")
    # Copies, so that a network that works in place on its input leaves the data as they are.
    parts = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return ((some.clone(), their.clone()) for some, their in parts)


def _batches_per_epoch(data: ImageData, batch_size: int, drop_last: bool) -> int:
    size = len(data.train_images)
    if not 1 <= batch_size <= size:
        raise InvalidConfig(
            f"batch_size is {batch_size}: {data.name} has {size} training images here: choose 1 to {size}"
        )
    return size // batch_size if drop_last else -(-size // batch_size)


def _seeded(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    # Hashed together, since seed + epoch would give seed 1 the epochs of seed 0, one later.
    state = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state >> 1)


def _refuse_negative(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 0:
            raise InvalidConfig(f"{name} is {number}: it must not be negative")
