"""What data sets are called and how large they are; no torch, so that a config is checked and listed without it."""

from __future__ import annotations

from normscope.errors import InvalidConfig

STORED_SIZES: dict[str, int] = {"digits": 8, "cifar10": 32}
"""Pixels a side of each data set, so that an impossible size is refused before anything is loaded."""

DATA: tuple[str, ...] = tuple(STORED_SIZES)
"""The data sets that `load_data` knows; the first is the default of every command."""


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
