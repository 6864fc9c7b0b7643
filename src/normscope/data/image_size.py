"""Smaller images: each pixel the mean of a square of the stored ones, so that deep networks train in minutes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from normscope.data.image_data import RawImages
from normscope.errors import InvalidConfig

STORED_SIZES: dict[str, int] = {"digits": 8, "cifar10": 32}
"""Pixels a side of each data set, so that an impossible size is refused before anything is loaded."""


def check_image_size(data: str, image_size: int | None) -> None:
    """InvalidConfig for a size that the stored one is no multiple of."""
    stored = STORED_SIZES[data]
    if image_size is None or (image_size >= 1 and stored % image_size == 0):
        return
    sizes = [size for size in range(1, stored) if stored % size == 0]
    raise InvalidConfig(
        f"image_size is {image_size}: images of {data} have {stored} pixels a side, which can be averaged to "
        f"{', '.join(map(str, sizes))}"
    )


def averaged(raw: RawImages, image_size: int) -> RawImages:
    """The images with `image_size` pixels a side: the mean of each square of stored pixels, rounded half up."""
    return replace(
        raw,
        train_images=_averaged(raw.train_images, image_size),
        test_images=_averaged(raw.test_images, image_size),
    )


def _averaged(images: np.ndarray, size: int) -> np.ndarray:
    number, channels, height, width = images.shape
    side = height // size
    sums = images.reshape(number, channels, size, side, size, width // size).sum((3, 5), dtype=np.uint32)
    return ((2 * sums + side**2) // (2 * side**2)).astype(np.uint8)
