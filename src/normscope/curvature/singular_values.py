"""What singular values say of a matrix: its condition number and its effective rank. No torch here."""

import numpy as np
from numpy.typing import NDArray

RESOLUTION = 200 * float(np.finfo(np.float64).eps)
"""A singular value below this fraction of the largest is lost in rounding. Against 60-digit arithmetic,
float64 products of up to 20 matrices and their decomposition were off by about 2 eps times the largest
singular value, so what lies above is good to about one per cent."""

Floats = NDArray[np.float64]


def conditioning(values: Floats, resolution: float) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """Of descending singular values, shape (..., n): condition number (...), whether it is only a lower bound
    (...), and which values lie above `resolution` times the largest (..., n). Non-finite values and zero
    matrices give NaN."""
    largest, smallest = values[..., 0], values[..., -1]
    floor = min(resolution, 1.0) * largest
    with np.errstate(invalid="ignore"):
        resolved = (values > floor[..., None]) & np.isfinite(values)
        condition = largest / np.maximum(smallest, floor)
    return condition, ~resolved[..., -1] & np.isfinite(condition), resolved


def effective_rank(values: Floats) -> Floats:
    """Of descending singular values s, shape (..., n): (sum s^2)^2 / sum s^4, between 1 (one direction is
    all) and n (all are alike), shape (...). Unlike the condition number it is finite where ReLU leaves a
    matrix rank-deficient. Non-finite values and zero matrices give NaN."""
    with np.errstate(invalid="ignore"):
        squares = (values / values[..., :1]) ** 2
    return squares.sum(-1) ** 2 / (squares**2).sum(-1)
