"""95 % intervals over seeds: of a mean, by Student's t, and of a ratio of means, by Fieller's theorem."""

import math
from typing import Literal

import numpy as np
from scipy.special import stdtrit  # not scipy.stats, which takes half a second to import

CONFIDENCE = 0.95

Scale = Literal["linear", "log"]


def ratio_interval(part: np.ndarray, whole: np.ndarray) -> tuple[float, float, float]:
    """The ratio r of the means, and where a·r² − 2b·r + c ≤ 0: where |mean(part − r · whole)| is at most t of its
    standard errors."""
    n, p, w = len(part), part.mean(), whole.mean()
    if w <= 0:
        return math.nan, -math.inf, math.inf
    of_means, t2 = np.cov(part, whole) / n, student_t(n - 1) ** 2
    a, b, c = w * w - t2 * of_means[1, 1], p * w - t2 * of_means[0, 1], p * p - t2 * of_means[0, 0]
    if a <= 0:
        return float(p / w), -math.inf, math.inf
    half = math.sqrt(max(b * b - a * c, 0.0))
    return float(p / w), float((b - half) / a), float((b + half) / a)


def mean_interval(values: np.ndarray, scale: Scale) -> tuple[float, float, float]:
    """Mean and Student's t interval; infinitely wide for a single value."""
    if len(values) == 0:
        return math.nan, math.nan, math.nan
    if scale == "log":
        if (values <= 0).any():
            return math.nan, math.nan, math.nan
        mean, low, high = mean_interval(np.log(values), "linear")
        return _exp(mean), _exp(low), _exp(high)
    with np.errstate(over="ignore", invalid="ignore"):  # squares of values near the largest float: no interval
        mean, std = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.inf
    half = student_t(max(1, len(values) - 1)) * std / math.sqrt(len(values))
    return mean, mean - half, mean + half


def student_t(degrees: int) -> float:
    """The half-width of the interval in standard errors, for so many degrees of freedom."""
    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf  # the largest float is e^709.78
