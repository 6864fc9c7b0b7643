"""Intervals over seeds: of a mean (Student), a ratio of means (Fieller), a proportion (Clopper and Pearson), and of one
more draw (prediction)."""

import math
from typing import Literal

import numpy as np
from scipy.special import betaincinv, stdtrit  # not scipy.stats, which takes half a second to import

CONFIDENCE = 0.95

EQUIVALENCE_CONFIDENCE = 0.90
"""Two one-sided tests at 5 % are one interval of 90 % that lies within the margin."""

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


def mean_interval(values: np.ndarray, scale: Scale, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean and Student's t interval; infinitely wide for a single value."""
    if len(values) == 0:
        return math.nan, math.nan, math.nan
    if scale == "log":
        if (values <= 0).any():
            return math.nan, math.nan, math.nan
        mean, low, high = mean_interval(np.log(values), "linear", confidence)
        return _exp(mean), _exp(low), _exp(high)
    with np.errstate(over="ignore", invalid="ignore"):  # squares of values near the largest float: no interval
        mean, std = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.inf
    half = student_t(max(1, len(values) - 1), confidence) * std / math.sqrt(len(values))
    return mean, mean - half, mean + half


def proportion_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper and Pearson 1934): the shares under which neither so few nor so many
    successes would have a probability below (1 − confidence)/2."""
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return low, high


def prediction_band(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """The band in which one more draw lies, at all points at once, with at least this confidence: by Bonferroni, mean ±
    t · s · sqrt(1 + 1/n) with a level of (1 − confidence)/points at each.

    Args:
        values: (seeds, points), two seeds or more.

    Returns:
        Lower and upper ends, (points,).
    """
    seeds, points = values.shape
    t = student_t(seeds - 1, 1 - (1 - confidence) / points)
    half = t * values.std(0, ddof=1) * math.sqrt(1 + 1 / seeds)
    return values.mean(0) - half, values.mean(0) + half


def student_t(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The half-width of the interval in standard errors, for so many degrees of freedom."""
    return float(stdtrit(degrees, 0.5 + confidence / 2))


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf  # the largest float is e^709.78
