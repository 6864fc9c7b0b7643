"""A netCDF file as bytes: its checksum behind the last of them, and what it would unfold to, before it is unfolded.

The line `normscope sha256 HEX` stands behind the end that the HDF5 format itself notes, where every reader of netCDF
passes over it. A file that ends where its format says so was written before there were checksums, or by others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

_SIGNATURE = b"\x89HDF\r\n\x1a\n"

ROOM = 64 * 2**20
"""What any file may unfold to, in bytes."""

LARGEST_RATIO = 100
"""A larger one may unfold to so many times its size: compressed numbers do not come near it, damaged sizes do."""

MAX_DEPTH = 32
"""Groups inside groups."""


def sealed(content: bytes) -> bytes:
    """The file with its checksum."""
    return content + _seal(content)


def is_sealed(content: bytes) -> bool:
    """Whether the file has a checksum, and it is right.

    Raises:
        ValueError: where it is wrong, or this is no netCDF-4 file.
    """
    if not content.startswith(_SIGNATURE):
        raise ValueError("it is no netCDF-4 file")
    # the end of the file as its superblock notes it, whose place depends on its version
    place = 40 if content[8] < 2 else 28
    end = int.from_bytes(content[place : place + 8], "little")
    if end > len(content):
        raise ValueError("its end is missing")
    if end == len(content):
        return False
    if content[end:] != _seal(content[:end]):
        raise ValueError("its checksum differs")
    return True


def refuse_out_of_proportion(path: Path) -> None:
    """Raise ValueError for a file that would take far more memory than its own size, or whose numbers lie in other
    files. Reads only how large things are, none of them."""
    room = max(ROOM, LARGEST_RATIO * path.stat().st_size)
    total = 0
    with h5py.File(path) as file:
        for dataset in _datasets(file, 0):
            if dataset.external or dataset.is_virtual:
                raise ValueError(f"{dataset.name} lies in another file")
            numbers = max(dataset.size or 0, math.prod(dataset.chunks or ()))
            total += numbers * max(dataset.dtype.itemsize, 1)
            if total > room:
                raise ValueError(f"it would take {total / 2**30:.3g} GiB of memory or more")


def _datasets(group: Any, depth: int) -> Iterator[Any]:
    if depth > MAX_DEPTH:
        raise ValueError(f"its groups lie more than {MAX_DEPTH} deep")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link to somewhere else")
        inner = group[name]
        if isinstance(inner, h5py.Group):
            yield from _datasets(inner, depth + 1)
        elif isinstance(inner, h5py.Dataset):
            yield inner


def _seal(content: bytes) -> bytes:
    return b"normscope sha256 " + hashlib.sha256(content).hexdigest().encode() + b"\n"
