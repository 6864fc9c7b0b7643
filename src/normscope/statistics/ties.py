"""Which rates cannot be told apart from the one with the lowest loss at the horizon: a set, never one best rate."""

from collections.abc import Mapping

import numpy as np
from scipy.special import stdtrit  # not scipy.stats, which takes half a second to import

CONFIDENCE = 0.95
"""One rate beats another where the one-sided interval of this confidence lies beyond zero."""


def indistinguishable(horizons: Mapping[int, Mapping[int, np.ndarray]]) -> set[int]:
    """The cells that cannot be told apart from the lowest loss: those that no other cell beats.

    Two cells are compared on the seeds that both were tried on, where they saw the same mini-batches. One beats the
    other if the mean difference of their losses at the horizon lies beyond zero by Student's one-sided 95 % interval
    over those seeds (over the mini-batches of the horizon, where there is one seed in common).

    Args:
        horizons: cell -> seed -> (steps,) losses of the last tenth of the steps; only cells that learn.
    """
    return {
        cell
        for cell, losses in horizons.items()
        if not any(beats(other, losses) for rival, other in horizons.items() if rival != cell)
    }


def beats(one: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray]) -> bool:
    """Whether the first loss lies below the other, paired by seed."""
    common = [seed for seed in one if seed in other]
    if not common:
        return False
    differences = [other[seed] - one[seed] for seed in common]
    values = differences[0] if len(common) == 1 else np.asarray([d.mean() for d in differences])
    if len(values) < 2:
        return bool(values.mean() > 0)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return bool(values.mean() > stdtrit(len(values) - 1, CONFIDENCE) * error)
