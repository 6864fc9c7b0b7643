"""A claim as data: what is claimed, whose claim it is, and the threshold, all there before anything is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from normscope.statistics.intervals import Scale
from normscope.statistics.judgement import band_requirement, judge, judge_band, judge_proportion, judge_share, limits
from normscope.statistics.verdict import KINDS, THE_PAPERS, Verdict

Of = Literal["mean", "share", "proportion", "band"]


@dataclass(frozen=True)
class Scope:
    """Which results a claim is made of."""

    words: str
    """As in "judged on networks of more than 30 layers"; empty for all."""
    holds: Callable[[Any], bool]


ANY = Scope("", lambda dataset: True)


@dataclass(frozen=True)
class Bounded:
    """Values of which some are only lower bounds."""

    values: Any
    lower_bound: Any
    """(seeds,) whether the true value may be larger."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim about a result. The threshold is data, and stands in `requirement` before there is any value."""

    statement: str
    where: str = ""
    """Where the paper says it, for example "Figure 3"; empty for the place of its exhibit."""
    kind: str = THE_PAPERS
    """One of `verdict.KINDS`."""
    value: Callable[[Any], Any]
    """What is judged of a result. Of a mean: one value a seed, or `Bounded`; of a share: its part and its whole, two
    arrays; of a proportion: whether it is so, seed by seed, NaN where not known; of a band: (seeds, points)."""
    of: Of = "mean"
    above: float | None = None
    below: float | None = None
    equals: float | None = None
    margin: float | None = None
    published: Sequence[float] = ()
    """Of a band: the published values, one a point."""
    points: str = ""
    """Of a band: what its points are called."""
    widest: float | None = None
    """Of a band: how wide it may be and still say something (on a log scale, a factor)."""
    scale: Scale = "linear"
    unit: str = ""
    paper: Any = ""
    """The paper's own value."""
    note: str = ""
    no_value: str = "not finite"
    """What a seed is, in words, that has no value."""
    awaits: bool = False
    """Whether a seed without a value is one that is still to come, so that more of them can settle it."""
    in_sample: bool = False
    """Whether the set-up was chosen by fitting the very numbers that it is compared with."""
    scope: Scope = ANY
    detail: Callable[[Any], str] = lambda dataset: ""
    """What of a result belongs to the note, for example the rates that were compared."""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        assert self.requirement, self.statement

    @property
    def requirement(self) -> str:
        """What must hold, in words."""
        if self.of == "band":
            return band_requirement(len(self.published), self.points, self.scale, self.widest, self.unit)
        unit = " of the seeds" if self.of == "proportion" else self.unit
        return limits(self.above, self.below, self.equals, self.margin, self.scale, unit)[2]

    def judged(self, dataset: Any, *, kind: str | None = None) -> Verdict:
        """The verdict on a result; `kind` in place of its own where the result is not of the paper's size."""
        value = self.value(dataset)
        more = {
            "paper": self.paper,
            "note": "; ".join(filter(None, (self.note, self.detail(dataset)))),
            "kind": kind or self.kind,
            "in_sample": self.in_sample,
            "no_value": self.no_value,
            "awaits": self.awaits,
        }
        if self.of == "band":
            del more["awaits"]
            return judge_band(
                self.statement,
                self.where,
                value,
                np.asarray(self.published),
                of=self.points,
                scale=self.scale,
                widest=self.widest,
                unit=self.unit,
                **more,
            )
        if self.of == "share":
            return judge_share(self.statement, self.where, *value, above=self.above, below=self.below, **more)
        if self.of == "proportion":
            return judge_proportion(self.statement, self.where, value, above=self.above, below=self.below, **more)
        bounds = value.lower_bound if isinstance(value, Bounded) else None
        return judge(
            self.statement,
            self.where,
            value.values if isinstance(value, Bounded) else value,
            above=self.above,
            below=self.below,
            equals=self.equals,
            margin=self.margin,
            lower_bound=bounds,
            scale=self.scale,
            unit=self.unit,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class RatioClaim(Claim):
    """A claim on a ratio: judged by its logarithm, and told as so many times."""

    scale: Scale = "log"
    unit: str = " times"
