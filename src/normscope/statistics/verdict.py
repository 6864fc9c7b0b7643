"""Statement + evidence over seeds -> reproduced, not reproduced, or not enough evidence. No torch, no probe."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from normscope.statistics.intervals import Scale, mean_interval, ratio_interval, student_t
from normscope.statistics.numbers import three_digits

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
NOT_ENOUGH = "not enough evidence"

MIN_SEEDS = 3


@dataclass(frozen=True)
class Verdict:
    """One claim judged. `low` and `high` bound the mean (the geometric mean on a log scale) with 95 % confidence."""

    statement: str
    where: str
    """Where the paper says it, for example "Figure 3"."""
    verdict: str
    mean: float
    low: float
    high: float
    requirement: str
    """What the whole interval must satisfy, for example "at least 30"."""
    seeds: int
    """Seeds that were measured."""
    paper: str = ""
    """The paper's own value as text; empty where it gives none."""
    diverged: int = 0
    """Seeds whose value is NaN or not finite where that does not settle the claim: counted, never averaged away."""
    beyond: int = 0
    """Seeds known only to lie beyond all that was measured (an infinite value)."""
    bounded: int = 0
    """Seeds of which only a lower bound is known, which enters the mean in the value's place."""
    unit: str = ""
    note: str = ""
    no_value: str = "not finite"
    """What a seed is, in words, that has no value."""

    @property
    def measured(self) -> str:
        """The mean with its interval, and how many seeds are bounds or diverged, as text."""
        finite = self.seeds - self.diverged - self.beyond
        parts = []
        if finite and not math.isnan(self.mean):
            parts.append(f"{'at least ' if self.bounded else ''}{three_digits(self.mean)}{self.unit}")
        if finite > 1 and math.isinf(self.low) and math.isinf(self.high):
            parts.append("[no bounds]")
        elif finite > 1 and self.low < self.high:
            parts.append(f"[{three_digits(self.low)}, {three_digits(self.high)}]")
        if self.bounded:
            parts.append(f"(a bound in {self.bounded} of {self.seeds} seeds)")
        if self.beyond:
            parts.append(f"beyond the range in {self.beyond} of {self.seeds} seeds")
        if self.diverged:
            parts.append(f"{self.diverged} of {self.seeds} seeds {self.no_value}")
        return " ".join(parts) or "–"


def judge(
    statement: str,
    where: str,
    measured: ArrayLike,
    *,
    above: float | None = None,
    below: float | None = None,
    equals: float | None = None,
    margin: float | None = None,
    lower_bound: ArrayLike | None = None,
    paper: object = "",
    scale: Scale = "linear",
    unit: str = "",
    note: str = "",
    no_value: str = "not finite",
) -> Verdict:
    """Judge one claim from one value a seed (for a comparison: one paired difference or ratio a seed).

    *Reproduced* only if the whole 95 % interval of the mean (Student's t over seeds) lies beyond the threshold; *not
    reproduced* if the whole interval lies on its wrong side; else, and with fewer than three seeds, *not enough
    evidence*. Give exactly one of:

    - `above`: the mean lies above this threshold;
    - `below`: the mean lies below it;
    - `equals` with `margin`: equivalence, the mean lies within `margin` of it (on a log scale: within that factor).

    A NaN is a seed without a value. An infinity is a bound ("no divergence up to the largest step" is +inf for the
    step of divergence): it counts for the claim where it lies on the right side of the threshold, against it where not.
    Where bounds leave a single finite value, which has no interval, that value has to lie beyond the threshold itself.

    Args:
        measured: (seeds,) values.
        lower_bound: (seeds,) whether the true value may be larger than the measured one (a ratio whose numerator is
            censored): then being below a threshold, or equal to it, cannot be concluded, nor that "above" fails.
        scale: "log" takes the mean and the interval of the logarithms; values must be positive.
        unit: written behind the number, with its own leading space.
        no_value: what a seed without a value is, in words.
    """
    values = np.asarray(measured, dtype=np.float64).ravel()
    low_limit, high_limit, requirement = _limits(above, below, equals, margin, scale, unit)
    finite = values[np.isfinite(values)]
    infinite = values[np.isinf(values)]
    supporting = int(((infinite >= low_limit) & (infinite <= high_limit)).sum())
    contrary = len(infinite) - supporting
    missing = int(np.isnan(values).sum())
    bounded = 0 if lower_bound is None else int(np.asarray(lower_bound, dtype=bool).sum())
    mean, low, high = mean_interval(finite, scale)
    if len(values) < MIN_SEEDS:
        verdict = NOT_ENOUGH
    else:
        holds = len(finite) == 0 or (low > low_limit and high < high_limit)
        fails = len(finite) == 0 or high < low_limit or low > high_limit
        if len(finite) == 1:
            holds, fails = low_limit < mean < high_limit, mean < low_limit or mean > high_limit
        if bounded:
            holds, fails = holds and above is not None, fails and above is None and low > high_limit
        if missing == 0 and contrary == 0 and holds:
            verdict = REPRODUCED
        elif missing == 0 and supporting == 0 and fails:
            verdict = NOT_REPRODUCED
        else:
            verdict = NOT_ENOUGH
    return Verdict(
        statement,
        where,
        verdict,
        mean,
        low,
        high,
        requirement,
        seeds=len(values),
        paper=str(paper),
        diverged=missing,
        beyond=len(infinite),
        bounded=bounded,
        unit=unit,
        note=note,
        no_value=no_value,
    )


def judge_band(
    statement: str, where: str, measured: ArrayLike, published: ArrayLike, *, of: str, note: str = ""
) -> Verdict:
    """Judge whether a published curve could be one more seed: at how many points it lies in the seeds' pointwise 95 %
    prediction band, mean ± t · s · sqrt(1 + 1/n). *Reproduced* if at all, *not reproduced* if at fewer than half.

    Args:
        measured: (seeds, points); published: (points,). `of` names the points.
    """
    values, paper = np.asarray(measured, dtype=np.float64), np.asarray(published, dtype=np.float64)
    seeds, points = values.shape
    inside = math.nan  # one seed has no band
    if seeds > 1:
        with np.errstate(invalid="ignore"):
            half = student_t(seeds - 1) * values.std(0, ddof=1) * math.sqrt(1 + 1 / seeds)
            inside = int((np.abs(paper - values.mean(0)) <= half).sum())
    if seeds < MIN_SEEDS or not np.isfinite(values).all():
        verdict = NOT_ENOUGH
    else:
        verdict = REPRODUCED if inside == points else NOT_REPRODUCED if inside < points / 2 else NOT_ENOUGH
    missing = int((~np.isfinite(values).all(1)).sum())
    return Verdict(
        statement,
        where,
        verdict,
        inside,
        inside,
        inside,
        requirement=f"all {points} {of} inside",
        seeds=seeds,
        diverged=missing,
        unit=f" of {points} {of}",
        note=note,
    )


def judge_share(
    statement: str,
    where: str,
    part: ArrayLike,
    whole: ArrayLike,
    *,
    above: float | None = None,
    below: float | None = None,
    paper: object = "",
    note: str = "",
) -> Verdict:
    """Judge which share of one effect another one is: mean(part) / mean(whole), paired by seed.

    The interval is Fieller's (1954): all r for which the mean of part − r · whole is not told apart from 0 by Student's
    t over seeds. It lies beyond a threshold r exactly where that mean does. Where the whole effect is not told apart
    from 0 it has no bounds, and there is not enough evidence. No bootstrap, because one of three seeds has no resample
    outside their range: that holds the true share in three cases of four.

    Args:
        part, whole: (seeds,), paired.
        above, below: give exactly one: the share lies above, or below, this.
    """
    low_limit, high_limit, requirement = _limits(above, below, None, None, "linear", "")
    parts, wholes = np.asarray(part, dtype=np.float64).ravel(), np.asarray(whole, dtype=np.float64).ravel()
    missing = int((~np.isfinite(parts) | ~np.isfinite(wholes)).sum())
    mean, low, high, verdict = math.nan, math.nan, math.nan, NOT_ENOUGH
    if not missing and len(parts) > 1:
        mean, low, high = ratio_interval(parts, wholes)
    if len(parts) >= MIN_SEEDS:
        if low > low_limit and high < high_limit:
            verdict = REPRODUCED
        elif high < low_limit or low > high_limit:
            verdict = NOT_REPRODUCED
    return Verdict(
        statement,
        where,
        verdict,
        mean,
        low,
        high,
        requirement,
        seeds=len(parts),
        paper=str(paper),
        diverged=missing,
        note=note,
    )


def _limits(
    above: float | None,
    below: float | None,
    equals: float | None,
    margin: float | None,
    scale: Scale,
    unit: str,
) -> tuple[float, float, str]:
    """The open interval that the mean must lie in, and its description."""
    if sum(limit is not None for limit in (above, below, equals)) != 1:
        raise ValueError("give exactly one of above, below, equals")
    if above is not None:
        return above, math.inf, f"above {three_digits(above)}{unit}"
    if below is not None:
        return -math.inf, below, f"below {three_digits(below)}{unit}"
    assert equals is not None
    if margin is None:
        raise ValueError("equals needs a margin")
    if scale == "log":
        return equals / margin, equals * margin, f"{three_digits(equals)}{unit} within a factor {three_digits(margin)}"
    return equals - margin, equals + margin, f"{three_digits(equals)} ± {three_digits(margin)}{unit}"
