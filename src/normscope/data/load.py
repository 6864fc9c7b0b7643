"""A data set by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from normscope.data.cifar10 import load_cifar10
from normscope.data.digits import load_digits
from normscope.data.image_data import ImageData, RawImages, standardized
from normscope.data.image_size import averaged
from normscope.data.names import DATA, check_image_size
from normscope.errors import unknown

_LOADERS: dict[str, Callable[[str | Path | None], RawImages]] = {
    "digits": lambda data_dir: load_digits(),
    "cifar10": load_cifar10,
}


def load_data(
    name: str,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
    train_size: int | None = None,
    held_out: int = 0,
    image_size: int | None = None,
) -> ImageData:
    """Load a data set onto the device, standardized per channel.

    name: "digits" (scikit-learn's, 1,437 training and 360 test images of 1x8x8, in a fixed stratified split)
        or "cifar10" (50,000 and 10,000 images of 3x32x32).
    data_dir: where a copy of CIFAR-10 lies: the folder holding cifar-10-batches-bin or -py, that folder
        itself, the folder holding the tar.gz, or the tar.gz; by default the environment's NORMSCOPE_DATA.
        Where that is not set, or the folder holds no CIFAR-10, it is downloaded once. The digits need none.
    train_size: how many training images to keep, by default all; the classes keep their shares, the choice is
        fixed, and a smaller one lies within a larger one.
    held_out: how many training images to set aside, for choosing learning rates, as the split "held_out";
        which ones does not depend on `train_size`.

    image_size: pixels a side that images are averaged to, a divisor of the stored ones; None for those.

    Raises InvalidConfig for an unknown name or an impossible size, DataError where a copy is missing or
    damaged.

    Example:
        >>> ns.load_data("digits").train_images.shape
        torch.Size([1437, 1, 8, 8])
    """
    if name not in _LOADERS:
        raise unknown("data set", name, DATA)
    check_image_size(name, image_size)
    raw = _LOADERS[name](data_dir)
    if image_size is not None:
        raw = averaged(raw, image_size)
    return standardized(raw, device=device, train_size=train_size, held_out=held_out)
