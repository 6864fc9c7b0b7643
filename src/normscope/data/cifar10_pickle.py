"""CIFAR-10's python layout: pickles written by Python 2, read without trusting them.

Unpickling runs whatever a file names, so a plain `pickle.load` of a download is somebody else's program. A
batch names only three things of numpy; here each of them is a stand-in that can hold bytes and nothing more,
and any other name is refused. Not even numpy's own code runs on the file: its array state could describe
objects at any address.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

from normscope.errors import DataError, one_line

_MODULES = {"numpy.core.multiarray", "numpy._core.multiarray"}  # before numpy 2, and since


class _Type:
    """Stands in for numpy.dtype: remembers what it was called."""

    def __init__(self, code: Any = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: nothing that matters to bytes."""


class _Array:
    """Stands in for numpy.ndarray: takes the state (version, shape, dtype, is_fortran, bytes)."""

    values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        of_bytes = isinstance(dtype, _Type) and dtype.code in (b"u1", "u1") and isinstance(content, bytes)
        if not of_bytes or is_fortran or len(shape) > 2 or len(content) != math.prod(shape):
            raise pickle.UnpicklingError("an array in it is not one of bytes in rows")
        self.values = np.frombuffer(content, np.uint8).reshape(shape)


def _reconstruct(*_: object) -> _Array:
    return _Array()


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name == "_reconstruct":
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Array if name == "ndarray" else _Type
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch of CIFAR-10 does")


MOST_OPCODES, MOST_TUPLES, MOST_DIGITS = 200_000, 16, 64
"""Of a batch: one for each label and some around them; a few, for shapes and types; bytes of one number."""


def _refuse_out_of_proportion(content: bytes) -> None:
    """Raise UnpicklingError for what would take far more memory or time than its size; nothing is carried out yet.

    A few bytes can ask for a memo of gigabytes, or name a tuple of tuples of tuples whose hash takes for ever.
    """
    tuples = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        tuples += "TUPLE" in opcode.name
        memo = argument if "PUT" in opcode.name and isinstance(argument, int) else 0
        long = isinstance(argument, int) and argument.bit_length() > 8 * MOST_DIGITS
        if number > MOST_OPCODES or tuples > MOST_TUPLES or memo > MOST_OPCODES or long:
            raise pickle.UnpicklingError("it would take far more memory or time than a batch")


def read_pickled_batch(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (N, 3072) and labels uint8 (N,) of one batch; DataError, naming `where`, for all else."""
    try:
        _refuse_out_of_proportion(content)
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{where} is not a batch of CIFAR-10 ({one_line(error)}): replace it") from error
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise DataError(f"{where} is not a batch of CIFAR-10 (it holds no 'data' and 'labels'): replace it")
    data, labels = batch[b"data"], batch[b"labels"]
    pixels = data.values if isinstance(data, _Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise DataError(f"{where} is damaged: its 'data' are not rows of 3072 pixels; replace it")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label <= 255 for label in labels):
        raise DataError(f"{where} is damaged: its 'labels' are not a list of class numbers; replace it")
    if len(labels) != len(pixels):
        raise DataError(f"{where} is damaged: {len(labels)} labels for {len(pixels)} images; replace it")
    return pixels, np.array(labels, np.uint8)
