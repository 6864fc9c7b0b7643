"""How many findings stand when many are looked for at once: the procedure of Benjamini and Hochberg (1995)."""

from collections.abc import Sequence

import numpy as np

LEVEL = 0.05
"""The expected share of false ones among the findings that stand."""


def benjamini_hochberg(p_values: Sequence[float], level: float = LEVEL) -> np.ndarray:
    """Which of the hypotheses are rejected with a false discovery rate of at most `level`: (hypotheses,) of bool.

    The k smallest p-values are, k being the largest number for which the k-th smallest is at most k · level / m.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    passes = np.flatnonzero(p[order] <= level * np.arange(1, len(p) + 1) / max(len(p), 1))
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order[: passes[-1] + 1 if len(passes) else 0]] = True
    return rejected
