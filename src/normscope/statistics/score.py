"""Verdicts counted: by whose claims they are, in one weighted score, and those that stand when all are looked at."""

from collections.abc import Sequence

import numpy as np

from normscope.statistics.multiplicity import LEVEL, benjamini_hochberg
from normscope.statistics.verdict import (
    AT_REDUCED_SIZE,
    KINDS,
    NOT_ENOUGH,
    REPRODUCED,
    THE_PAPERS,
    VERDICTS,
    Verdict,
)

WEIGHTS = {THE_PAPERS: 1.0, AT_REDUCED_SIZE: 0.5}
"""What a claim weighs in the score; all others, and those that are in-sample, nothing."""


def counted(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """A table: a row for each kind that occurs, in-sample claims in one of their own, with a count of each verdict."""
    rows: list[tuple[str, ...]] = [("whose claims", *VERDICTS)]
    for kind in KINDS:
        for in_sample in (False, True):
            of = [one.verdict for one in verdicts if (one.kind, one.in_sample) == (kind, in_sample)]
            if of:
                name = f"{kind}, on numbers that the set-up was fitted to" if in_sample else kind
                rows.append((name, *(str(of.count(word)) for word in VERDICTS)))
    return rows


def score(verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """The weight of the paper's claims that are reproduced over the weight of all of them; and the same were all that
    is open reproduced. NaN where there are none."""
    weights = np.array([0.0 if one.in_sample else WEIGHTS.get(one.kind, 0.0) for one in verdicts])
    if not weights.sum():
        return float("nan"), float("nan")
    done = np.array([one.verdict == REPRODUCED for one in verdicts])
    open_ = np.array([one.verdict == NOT_ENOUGH for one in verdicts])
    return float((weights * done).sum() / weights.sum()), float((weights * (done | open_)).sum() / weights.sum())


def score_line(verdicts: Sequence[Verdict]) -> str:
    """`score` in words; empty where there are no claims of the paper."""
    low, high = score(verdicts)
    if np.isnan(low):
        return ""
    most = "" if low == high else f" ({100 * high:.0f} were all that is open reproduced)"
    return (
        f"Score: {100 * low:.0f} of 100{most}: the paper's claims that are reproduced, those at reduced size weighed "
        "one half; controls, later work's claims and numbers that the set-up was fitted to weigh nothing."
    )


def multiplicity_line(verdicts: Sequence[Verdict]) -> str:
    """How many of the reproduced claims stand under Benjamini and Hochberg's procedure, in words; empty where none is
    a test."""
    tested = [one for one in verdicts if one.p_value == one.p_value]
    if not tested:
        return ""
    stands = benjamini_hochberg([one.p_value for one in tested])
    reproduced = [one.verdict == REPRODUCED for one in tested]
    standing = sum(bool(both) for both in stands & np.array(reproduced))
    return (
        f"Of {len(tested)} claims that are tests, {sum(reproduced)} are reproduced, and {standing} of those stand with "
        f"a false discovery rate of {100 * LEVEL:.0f} % over all of them (Benjamini–Hochberg). Prediction bands are no "
        "tests; theirs hold a true replica in 95 of 100 cases."
    )
