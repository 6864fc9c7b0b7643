"""Which rates cannot be told apart from the one with the lowest loss at the horizon: a set, never one best rate."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95
"""A rate is told apart where the one-sided interval of this confidence lies above the lowest loss."""


def indistinguishable(horizons: Mapping[int, Mapping[int, np.ndarray]]) -> set[int]:
    """The cells that cannot be told apart from the lowest loss.

    The reference is the cell with the lowest mean loss among those tried on the most seeds. Every other is compared
    with it on the seeds that both were tried on, where they saw the same mini-batches: it belongs to the set unless the
    mean difference of their losses at the horizon lies above zero by Student's one-sided 95 % interval over those seeds
    (over the mini-batches of the horizon, where there is one seed in common).

    Args:
        horizons: cell -> seed -> (steps,) losses of the last tenth of the steps; only cells that learn.
    """
    if not horizons:
        return set()
    most = max(len(of_seed) for of_seed in horizons.values())
    full = {cell: of_seed for cell, of_seed in horizons.items() if len(of_seed) == most}
    reference = min(full, key=lambda cell: np.mean([np.mean(losses) for losses in full[cell].values()]))
    return {cell for cell in horizons if not told_apart(horizons[cell], horizons[reference])}


def told_apart(candidate: Mapping[int, np.ndarray], reference: Mapping[int, np.ndarray]) -> bool:
    """Whether the candidate's loss lies above the reference's, paired by seed."""
    common = [seed for seed in candidate if seed in reference]
    if not common:
        return False
    differences = [candidate[seed] - reference[seed] for seed in common]
    values = differences[0] if len(common) == 1 else np.asarray([d.mean() for d in differences])
    if len(values) < 2:
        return bool(values.mean() > 0)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return bool(values.mean() > student.ppf(CONFIDENCE, len(values) - 1) * error)
