"""Which images belong together: fixed subsets in which every class keeps its share."""

from __future__ import annotations

import numpy as np


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A fixed shuffle of the examples in which every stretch is stratified.

    The j-th of the n_c examples of class c, shuffled, stands at (j + 1/2) / n_c of the way, so the first m of
    all N examples hold m n_c / N of class c, give or take one or two, and so do the last m. Ties between
    classes are broken at random.

    labels: integers (N,). Returns the indices (N,), int64.
    """
    # RandomState and not default_rng: numpy promises that its stream never changes, so neither do the splits.
    random = np.random.RandomState(seed)
    order = random.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place, kind="stable")].astype(np.int64)
