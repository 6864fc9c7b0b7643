"""Values over seeds + a threshold -> a verdict. Four ways: a mean, a share of an effect, a proportion of the seeds, and
a published curve in the seeds' prediction band. No torch, no probe."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, bdtrc, stdtr

from normscope.statistics.intervals import (
    CONFIDENCE,
    EQUIVALENCE_CONFIDENCE,
    Scale,
    mean_interval,
    prediction_band,
    proportion_interval,
    ratio_interval,
    student_t,
)
from normscope.statistics.numbers import three_digits
from normscope.statistics.verdict import MIN_SEEDS, NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED, Verdict

MOST_SEEDS = 1000
"""Where a claim needs more, it is said that seeds alone would not settle it."""


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
    scale: Scale = "linear",
    unit: str = "",
    awaits: bool = False,
    **more: Any,
) -> Verdict:
    """Judge one claim from one value a seed (for a comparison: one paired difference or ratio a seed).

    *Reproduced* only if the whole 95 % interval of the mean (Student's t over seeds) lies beyond the threshold; *not
    reproduced* if the whole interval lies on its wrong side; else, and with fewer than three seeds, *not enough
    evidence*. Give exactly one of:

    - `above`: the mean lies above this threshold;
    - `below`: the mean lies below it;
    - `equals` with `margin`: equivalence, the mean lies within `margin` of it (on a log scale: within that factor), by
      two one-sided tests at 5 %, which is one interval of 90 %.

    A NaN is a seed without a value. An infinity is a bound ("no divergence up to the largest step" is +inf for the
    step of divergence): it counts for the claim where it lies on the right side of the threshold, against it where not.
    Where bounds leave a single finite value, which has no interval, that value has to lie beyond the threshold itself.

    Args:
        measured: (seeds,) values.
        lower_bound: (seeds,) whether the true value may be larger than the measured one (a ratio whose numerator is
            censored): then being below a threshold, or equal to it, cannot be concluded, nor that "above" fails.
        scale: "log" takes the mean and the interval of the logarithms; values must be positive.
        unit: written behind the number, with its own leading space.
        awaits: whether a seed without a value is one that is still to come: then it is said how many would settle it.
        more: other fields of `Verdict`: `paper`, `note`, `no_value`, `kind`, `in_sample`.

    Example:
        >>> ns.judge("BN takes larger rates", "figure 3", [12.1, 13.5, 12.8], above=10).verdict
        'reproduced'
        >>> ns.judge("BN takes larger rates", "figure 3", [4.0, 25.0, 13.3], above=10).verdict
        'not enough evidence'
    """
    values = np.asarray(measured, dtype=np.float64).ravel()
    low_limit, high_limit, wanted = limits(above, below, equals, margin, scale, unit)
    confidence = CONFIDENCE if equals is None else EQUIVALENCE_CONFIDENCE
    finite = values[np.isfinite(values)]
    infinite = values[np.isinf(values)]
    supporting = int(((infinite >= low_limit) & (infinite <= high_limit)).sum())
    contrary = len(infinite) - supporting
    missing = int(np.isnan(values).sum())
    bounded = 0 if lower_bound is None else int(np.asarray(lower_bound, dtype=bool).sum())
    mean, low, high = mean_interval(finite, scale, confidence)
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
    logs = _logs if scale == "log" else float
    p_value = _p_of_mean(finite, low_limit, high_limit, scale) if len(finite) > 1 else 0.5 ** len(values)
    if missing or contrary or not len(values):
        p_value = math.nan if missing or not len(values) else 1.0
    needed = None
    if verdict == NOT_ENOUGH and len(finite) > 1 and not (len(infinite) or bounded) and (awaits or not missing):
        spread = finite if scale == "linear" else np.log(finite) if (finite > 0).all() else np.array([math.nan] * 2)
        ends = [logs(limit) for limit in (low_limit, high_limit)]
        needed = _seeds_for_mean(spread, ends, confidence, more_than=0 if missing else len(finite))
    return Verdict(
        statement,
        where,
        verdict,
        mean,
        low,
        high,
        wanted,
        seeds=len(values),
        diverged=missing,
        beyond=len(infinite),
        bounded=bounded,
        unit=unit,
        interval=f"{100 * confidence:.0f} %",
        p_value=p_value,
        seeds_needed=needed,
        **_text(more),
    )


def judge_share(
    statement: str,
    where: str,
    part: ArrayLike,
    whole: ArrayLike,
    *,
    above: float | None = None,
    below: float | None = None,
    awaits: bool = False,
    **more: Any,
) -> Verdict:
    """Judge which share of one effect another one is: mean(part) / mean(whole), paired by seed.

    The interval is Fieller's (1954): all r for which the mean of part − r · whole is not told apart from 0 by Student's
    t over seeds. It lies beyond a threshold r exactly where that mean does. Where the whole effect is not told apart
    from 0 it has no bounds, and there is not enough evidence. No bootstrap, because one of three seeds has no resample
    outside their range: that holds the true share in three cases of four.

    Args:
        part, whole: (seeds,), paired.
        above, below: give exactly one: the share lies above, or below, this.
        more: other fields of `Verdict`.
    """
    low_limit, high_limit, wanted = limits(above, below, None, None, "linear", "")
    parts, wholes = np.asarray(part, dtype=np.float64).ravel(), np.asarray(whole, dtype=np.float64).ravel()
    known = np.isfinite(parts) & np.isfinite(wholes)
    missing = int((~known).sum())
    mean, low, high, verdict = math.nan, math.nan, math.nan, NOT_ENOUGH
    p_value, needed = math.nan, None
    if known.sum() > 1 and (awaits or not missing):
        mean, low, high = ratio_interval(parts[known], wholes[known])
        threshold = low_limit if above is not None else high_limit
        rest = (parts - threshold * wholes)[known]
        zero = (0.0, math.inf) if above is not None else (-math.inf, 0.0)
        p_value = math.nan if missing else _p_of_mean(rest, *zero, "linear")
        if wholes[known].mean() > 0:
            needed = _seeds_for_mean(rest, zero, CONFIDENCE, more_than=0 if missing else len(rest))
    if len(parts) >= MIN_SEEDS and not missing:
        verdict = _concluded(low, high, low_limit, high_limit)
    return Verdict(
        statement,
        where,
        verdict,
        mean,
        low,
        high,
        wanted,
        seeds=len(parts),
        diverged=missing,
        p_value=p_value,
        seeds_needed=needed if verdict == NOT_ENOUGH else None,
        **_text(more),
    )


def judge_proportion(
    statement: str,
    where: str,
    measured: ArrayLike,
    *,
    above: float | None = None,
    below: float | None = None,
    awaits: bool = False,
    **more: Any,
) -> Verdict:
    """Judge in which share of all networks something is so, from k of n seeds, by the exact interval of Clopper and
    Pearson (95 %).

    Args:
        measured: (seeds,) 1 where it is so, 0 where not, NaN where it is not known: then nothing is concluded.
        above, below: give exactly one, between 0 and 1.
        more: other fields of `Verdict`.
    """
    low_limit, high_limit, wanted = limits(above, below, None, None, "linear", " of the seeds")
    values = np.asarray(measured, dtype=np.float64).ravel()
    known = values[np.isfinite(values)]
    missing, trials, successes = len(values) - len(known), len(known), int((known > 0.5).sum())
    mean, low, high, p_value, verdict, needed = math.nan, 0.0, 1.0, math.nan, NOT_ENOUGH, None
    if trials:
        mean = successes / trials
        low, high = proportion_interval(successes, trials)
        p_value = float(bdtrc(successes - 1, trials, low_limit)) if above is not None and successes else 1.0
        if below is not None:
            p_value = float(bdtr(successes, trials, high_limit))

    def settles(n: int) -> bool:
        return _concluded(*proportion_interval(round(mean * n), n), low_limit, high_limit) != NOT_ENOUGH

    if len(values) >= MIN_SEEDS and not missing:
        verdict = _concluded(low, high, low_limit, high_limit)
    if verdict == NOT_ENOUGH and trials and (awaits or not missing):
        needed = fewest(settles, 0 if missing else trials + 1)
    return Verdict(
        statement,
        where,
        verdict,
        mean,
        low,
        high,
        wanted,
        seeds=len(values),
        diverged=missing,
        p_value=p_value if not missing else math.nan,
        seeds_needed=needed,
        text=f"{successes} of {trials} seeds, a share of [{three_digits(low)}, {three_digits(high)}]" if trials else "",
        **_text(more),
    )


def judge_band(
    statement: str,
    where: str,
    measured: ArrayLike,
    published: ArrayLike,
    *,
    of: str,
    scale: Scale = "linear",
    widest: float | None = None,
    unit: str = "",
    **more: Any,
) -> Verdict:
    """Judge whether what is published, one draw, could be one more seed: whether it lies, at all points at once, in the
    seeds' 95 % prediction band (see `prediction_band`).

    *Reproduced* where it does, *not reproduced* where it lies outside at any point: a true replica does in at most one
    case of twenty. *Not enough evidence* where the band is wider than `widest`, so that it would hold nearly anything.

    Args:
        measured: (seeds, points); published: (points,). `of` names the points.
        scale: "log" takes the logarithms of both; values must be positive.
        widest: the band's width, upper end less lower (on a log scale: over lower), that it may have at most.
        more: other fields of `Verdict`.
    """
    values, paper = np.asarray(measured, dtype=np.float64), np.asarray(published, dtype=np.float64)
    seeds, points = values.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        logs, of_paper = (np.log(values), np.log(paper)) if scale == "log" else (values, paper)
    missing = int((~np.isfinite(logs).all(1)).sum())
    inside, verdict, needed, text = math.nan, NOT_ENOUGH, None, ""
    if seeds > 1 and not missing:
        lows, highs = prediction_band(logs)
        inside = int(((of_paper >= lows) & (of_paper <= highs)).sum())
        width = float((highs - lows).max())
        if points <= 2:
            ends = np.exp([lows, highs]) if scale == "log" else np.array([lows, highs])
            text = ", ".join(f"[{three_digits(low)}, {three_digits(high)}]{unit}" for low, high in ends.T)
        else:
            text = f"{inside} of {points} {of} inside"
        most = math.inf if widest is None else math.log(widest) if scale == "log" else widest
        if seeds >= MIN_SEEDS:
            if width <= most or inside < points:
                verdict = REPRODUCED if inside == points else NOT_REPRODUCED
            else:
                scatter = logs.std(0, ddof=1).max()
                level = 1 - (1 - CONFIDENCE) / points
                needed = fewest(lambda n: 2 * student_t(n - 1, level) * scatter * math.sqrt(1 + 1 / n) <= most, seeds)
    return Verdict(
        statement,
        where,
        verdict,
        inside,
        inside,
        inside,
        band_requirement(points, of, scale, widest, unit),
        seeds=seeds,
        diverged=missing,
        seeds_needed=needed,
        text=text,
        interval="95 % prediction band",
        **_text(more),
    )


def band_requirement(points: int, of: str, scale: Scale, widest: float | None, unit: str = "") -> str:
    """What a band must satisfy, in words."""
    inside = f"all {points} {of} in the seeds' prediction band" if points > 1 else f"{of} in the seeds' prediction band"
    if widest is None:
        return inside
    return f"{inside}, at most {'a factor ' if scale == 'log' else ''}{three_digits(widest)}{unit} wide"


def _p_of_mean(values: np.ndarray, low_limit: float, high_limit: float, scale: Scale) -> float:
    """Of the test that the mean does not lie between these limits, one-sided; of two, the larger."""
    if scale == "log":
        if (values <= 0).any():
            return math.nan
        values, low_limit, high_limit = np.log(values), _logs(low_limit), _logs(high_limit)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))

    def beyond(distance: float) -> float:
        if math.isinf(distance):
            return 0.0
        if not error > 0 or not math.isfinite(error):
            return (0.0 if distance > 0 else 1.0) if error == 0 else math.nan
        return float(stdtr(len(values) - 1, -distance / error))

    return max(beyond(mean - low_limit), beyond(high_limit - mean))


def _seeds_for_mean(values: np.ndarray, threshold: Sequence[float], confidence: float, *, more_than: int) -> int | None:
    """How many seeds would have an interval that lies wholly on one side of every limit, were their mean and scatter
    those of these values."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(values.mean()), float(values.std(ddof=1))
    distance = min(abs(mean - limit) for limit in threshold if math.isfinite(limit))
    if not math.isfinite(std) or not distance > 0:
        return None
    return fewest(lambda n: student_t(n - 1, confidence) * std / math.sqrt(n) < distance, more_than + 1)


def fewest(settles: Callable[[int], bool], start: int) -> int | None:
    """The least number from `start` on, or from three, that settles; None where none up to `MOST_SEEDS` does."""
    return next((n for n in range(max(start, MIN_SEEDS), MOST_SEEDS + 1) if settles(n)), None)


def limits(
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


def _concluded(low: float, high: float, low_limit: float, high_limit: float) -> str:
    """The verdict of an interval: it lies wholly within the limits, wholly outside, or neither."""
    if low > low_limit and high < high_limit:
        return REPRODUCED
    return NOT_REPRODUCED if high < low_limit or low > high_limit else NOT_ENOUGH


def _logs(value: float) -> float:
    return math.log(value) if 0 < value < math.inf else math.inf if value > 0 else -math.inf


def _text(more: dict[str, Any]) -> dict[str, Any]:
    return {**more, "paper": str(more["paper"])} if "paper" in more else more
