"""What became of a claim: reproduced, not reproduced, or not enough evidence, with the numbers behind it."""

import math
from dataclasses import dataclass

from normscope.statistics.numbers import three_digits

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
NOT_ENOUGH = "not enough evidence"

VERDICTS = (REPRODUCED, NOT_REPRODUCED, NOT_ENOUGH)

MIN_SEEDS = 3

THE_PAPERS = "the paper's"
AT_REDUCED_SIZE = "the paper's, at reduced size"
LATER_WORKS = "later work's"
CONTROL = "our control"

KINDS = (THE_PAPERS, AT_REDUCED_SIZE, LATER_WORKS, CONTROL)
"""Whose claim it is. They are counted apart: a control that holds says nothing for the paper."""


@dataclass(frozen=True)
class Verdict:
    """One claim judged. `low` and `high` bound the mean (the geometric mean on a log scale, the share of the seeds for
    a proportion) with the confidence that `interval` says."""

    statement: str
    where: str
    """Where the paper says it, for example "Figure 3"."""
    verdict: str
    mean: float
    low: float
    high: float
    requirement: str
    """What the whole interval must satisfy, for example "above 30"."""
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
    kind: str = CONTROL
    """One of `KINDS`."""
    in_sample: bool = False
    """Whether the set-up was chosen by fitting the very numbers that it is compared with."""
    interval: str = "95 %"
    """The confidence of `low` and `high`."""
    p_value: float = math.nan
    """Of the one-sided test that the threshold is not passed (of the worse of two, for an equality; the probability of
    the seeds' agreeing by a coin's throw, where all are bounds); NaN for a band, which is no test, and where there is
    no value."""
    seeds_needed: int | None = None
    """How many seeds would settle it, were they to scatter as these do; None where it is settled, or no number
    would."""
    text: str = ""
    """What was measured, where it is no mean."""

    @property
    def measured(self) -> str:
        """The mean with its interval, and how many seeds are bounds or diverged, as text."""
        finite = self.seeds - self.diverged - self.beyond
        parts = []
        if self.text:
            parts.append(self.text)
        elif finite and not math.isnan(self.mean):
            parts.append(f"{'at least ' if self.bounded else ''}{three_digits(self.mean)}{self.unit}")
        if not self.text and finite > 1 and math.isinf(self.low) and math.isinf(self.high):
            parts.append("[no bounds]")
        elif not self.text and finite > 1 and self.low < self.high:
            parts.append(f"[{three_digits(self.low)}, {three_digits(self.high)}]")
        if self.bounded:
            parts.append(f"(a bound in {self.bounded} of {self.seeds} seeds)")
        if self.beyond:
            parts.append(f"beyond the range in {self.beyond} of {self.seeds} seeds")
        if self.diverged:
            parts.append(f"{self.diverged} of {self.seeds} seeds {self.no_value}")
        return " ".join(parts) or "–"

    @property
    def settled_by(self) -> str:
        """For a claim without enough evidence: how many seeds would settle it, in words; else empty."""
        if self.verdict != NOT_ENOUGH:
            return ""
        if self.seeds < MIN_SEEDS:
            return f"it takes {MIN_SEEDS} seeds or more"
        if self.diverged == self.seeds:
            return "no seed has a value"
        if self.seeds - self.diverged == 1:
            return "only one seed has a value"
        if self.seeds_needed is None:
            return "more seeds alone would not settle it"
        if self.diverged and self.seeds_needed <= self.seeds:
            return f"the {self.diverged} of {self.seeds} seeds still to come would settle it, scattering as the others"
        return f"about {self.seeds_needed} seeds would settle it"
