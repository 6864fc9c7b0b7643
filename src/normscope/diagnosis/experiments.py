"""Which repairs does a program need? All that are suspected are made at once, and then taken back one by one.

Faults come together: scaled inputs buy nothing behind a ReLU that confines probabilities, nor a sigmoid in front of
inputs of 3e9. So the program is mended in everything that is suspected; where it still does not learn, rates,
optimizers and more steps are tried on top; and then every repair is taken back that the program learns as well without,
the unlikeliest first. What remains is needed. A fault is told first if the program loses most without its repair.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import GAIN, Fault, Repair, Suspicion
from normscope.diagnosis.program import Program, Run, tried

LEARNED = 0.8
"""A program that learned this share of what there is to learn is not repaired."""

PARTLY = 0.5
"""Tuning (rate, optimizer, steps, dropout) is tried where less than this was learned, for a sound program gains from it
too, ..."""

SOLVED = 0.6
"""... and is blamed only where it leads to this much."""

TIMES_MORE, NOTHING = 3.0, 0.05
"""... or to this many times what is learned without, in tasks of which little can be learned; at least to `GAIN` above
this."""

MORE = 2.0
"""Tuning is not blamed of a program that learns half as much without."""

EASED = ("regularization",)
"""Categories whose repair lowers the loss of training in any case."""

AS_GOOD = 0.1
"""Programs whose scores are this close have learned the same."""

LADDER = (0.1, 0.01, 1e-3)
"""Rates that are tried beside the one found, where there is none of the user's own."""

MOST_TUNING = 2
"""Repairs by tuning that are made on top of each other."""

TUNING_SHARE = 0.6
"""Of the time there is; the rest is for taking repairs back."""

TRIAL_SECONDS = 3.0
"""Of the processor, for one run."""


@dataclass(frozen=True)
class Step:
    """A repair of a suspected fault, by its place among the fault's repairs."""

    fault: Fault
    suspicion: Suspicion
    place: int = 0

    def made(self, program: Program, facts: Facts) -> Repair | None:
        """The repair of this program."""
        if self.fault.repairs is None:
            return None
        for place, repair in enumerate(self.fault.repairs(program, facts)):
            if place == self.place:
                return repair
        return None


@dataclass(frozen=True)
class Needed:
    """A repair that the program needs."""

    step: Step
    repair: Repair
    without: float
    """The score of the mended program without it; NaN where that was not tried."""


@dataclass(frozen=True)
class Search:
    """The repairs that are needed, the most needed first, and what becomes of the program with all of them."""

    needed: tuple[Needed, ...] = ()
    program: Program | None = None
    run: Run | None = None
    best: float = -1.0
    """The highest score of any program tried, the user's own among them."""
    tried: tuple[tuple[str, float], ...] = ()
    """What was done in every trial, and its score."""
    cut: bool = False
    """Whether there was no time for all."""

    @property
    def score(self) -> float:
        """Of the mended program."""
        return -1.0 if self.run is None else self.run.score


@dataclass
class _Trials:
    """Runs combinations of repairs, each once."""

    facts: Facts
    seed: int
    until: float | None
    tuning_until: float | None
    known: dict[tuple[tuple[str, int], ...], tuple[Program, list[Repair], Run | None]] = field(default_factory=dict)
    log: list[tuple[str, float]] = field(default_factory=list)
    cut: bool = False

    def out_of_time(self) -> bool:
        over = self.until is not None and time.process_time() > self.until
        self.cut = self.cut or over
        return over

    def measured(self, steps: Sequence[Step]) -> float:
        """The same as `score`; NaN where there was no time."""
        _, _, run = self.run(steps)
        return float("nan") if run is None else run.score

    def score(self, steps: Sequence[Step]) -> float:
        """Of the program with these repairs; -1 where it cannot be run, or there is no time."""
        _, _, run = self.run(steps)
        return -1.0 if run is None else run.score

    def run(self, steps: Sequence[Step]) -> tuple[Program, list[Repair], Run | None]:
        ordered = sorted(steps, key=lambda step: step.fault.order)
        key = tuple((step.fault.name, step.place) for step in ordered)
        if key in self.known:
            return self.known[key]
        if not key:
            return self.facts.program, [], self.facts.run
        program, repairs = self.facts.program, []
        for step in ordered:
            repair = step.made(program, self.facts)
            if repair is None:
                continue
            program = repair.program
            repairs.append(repair)
        if self.out_of_time() or len(repairs) < len(ordered):
            return program, repairs, None
        limit = time.process_time() + TRIAL_SECONDS
        limit = limit if self.until is None else min(limit, self.until)
        result = best_of_rates(program, self.facts.own, seed=self.seed, until=limit)
        self.known[key] = program, repairs, result
        self.log.append((", ".join(repair.done for repair in repairs), -1.0 if result is None else result.score))
        return self.known[key]


def search(
    facts: Facts, suspected: Sequence[tuple[Fault, Suspicion]], *, seed: int = 0, until: float | None = None
) -> Search:
    """Find out which repairs a program needs that does not learn what there is to learn.

    Args:
        suspected: see `fault.suspicions`.
        until: `time.process_time()` by which it ends.
    """
    certain = [Step(f, s) for f, s in suspected if s.certain]
    if facts.score >= LEARNED and not certain:
        return Search(best=facts.score)
    now = time.process_time()
    trials = _Trials(facts, seed, until, None if until is None else now + TUNING_SHARE * (until - now))
    suspected = [(f, s) for f, s in suspected if f.repairs is not None]
    steps = [Step(f, s) for f, s in suspected if not f.tuning]
    if facts.own and (rate := smaller_rate(trials, suspected)) is not None:
        steps = [*(step for step in steps if step.suspicion.certain), rate]
    elif facts.own and facts.score < PARTLY and trials.score(steps) < LEARNED:
        steps = tuned(trials, steps, [(f, s) for f, s in suspected if f.tuning])
    steps = without_the_needless(trials, steps)
    program, _, run = trials.run(steps)
    score = trials.score(steps)
    needed = [one for one in _needed(trials, steps) if one.step.suspicion.certain or is_needed(one, score)]
    best = max([facts.score, *(score for _, score in trials.log)])
    return Search(tuple(needed), program, run, best, tuple(trials.log), trials.cut)


def best_of_rates(program: Program, own: bool, *, seed: int = 0, until: float | None = None) -> Run | None:
    """The run at the program's own rate; where that is not its user's, the best of the runs at several."""
    best = tried(program, seed=seed, until=until, hopeless=True)
    for lr in () if own else LADDER:
        if best is not None and best.score >= LEARNED:
            break
        other = tried(replace(program, lr=lr), seed=seed, until=until, hopeless=True)
        if other is not None and (best is None or other.score > best.score):
            best = other
    return best


def smaller_rate(trials: _Trials, suspected: Sequence[tuple[Fault, Suspicion]]) -> Step | None:
    """Of a program that learns nothing and whose data are suspected: a rate ten or a hundred times smaller, where that
    alone mends it. It is told before data that would suffer the rate if they were scaled."""
    if trials.facts.score > 0 or not any(f.category == "preprocessing" for f, _ in suspected):
        return None
    program = trials.facts.program
    for step in _ways(trials.facts, [(f, s) for f, s in suspected if f.name == "learning_rate"]):
        repair = step.made(program, trials.facts)
        if repair is None or not 0.005 * program.lr < repair.program.lr < program.lr:  # the larger ones come first
            return None
        if trials.score([step]) >= LEARNED:
            return step
    return None


def tuned(trials: _Trials, steps: list[Step], tuning: Sequence[tuple[Fault, Suspicion]]) -> list[Step]:
    """The steps with tuning on top, as far as it helps."""
    for _ in range(MOST_TUNING):
        before = trials.score(steps)
        if before >= LEARNED:
            break
        done = {step.fault.name for step in steps}
        best: list[Step] | None = None
        for step in _ways(trials.facts, [(f, s) for f, s in tuning if f.name not in done]):
            if trials.out_of_time() or (trials.tuning_until is not None and time.process_time() > trials.tuning_until):
                trials.cut = True
                break
            with_it = [*steps, step]
            if best is None or trials.score(with_it) > trials.score(best) + AS_GOOD:
                best = with_it
            if trials.score(with_it) >= LEARNED + AS_GOOD:
                break
        if best is None or trials.score(best) <= before + AS_GOOD:
            break
        steps = best
    return steps


def _ways(facts: Facts, tuning: Sequence[tuple[Fault, Suspicion]]) -> Iterator[Step]:
    for fault, suspicion in tuning:
        count = sum(1 for _ in fault.repairs(facts.program, facts)) if fault.repairs else 0
        yield from (Step(fault, suspicion, place) for place in range(count))


def without_the_needless(trials: _Trials, steps: list[Step]) -> list[Step]:
    """The steps without those that the program learns as well without, the unlikeliest first."""
    for step in sorted(steps, key=lambda step: -step.fault.order):
        if step.suspicion.certain:
            continue
        fewer = [one for one in steps if one is not step]
        if trials.score(fewer) >= trials.score(steps) - min(AS_GOOD, step.fault.gain):
            steps = fewer
    return steps


def _needed(trials: _Trials, steps: list[Step]) -> list[Needed]:
    _, repairs, _ = trials.run(steps)
    ordered = sorted(steps, key=lambda step: step.fault.order)
    found = [
        Needed(step, repair, trials.measured([one for one in steps if one is not step]))
        for step, repair in zip(ordered, repairs, strict=False)
    ]

    # What the program loses most without comes first; losses that are alike go by likelihood.
    def loss(one: Needed) -> int:
        return 99 if math.isnan(one.without) else round(max(one.without, 0.0) / GAIN / 2)

    return sorted(found, key=lambda one: (not one.step.suspicion.certain, loss(one)))


def is_needed(one: Needed, score: float) -> bool:
    """Whether to say so: the mended program loses by its absence, and has learned enough for tuning to be blamed."""
    fault = one.step.fault
    if not score - max(one.without, 0.0) >= fault.gain:  # also where it was not measured
        return False
    if fault.tuning and score < MORE * one.without:
        return False
    enough = SOLVED if fault.category in EASED else min(SOLVED, max(TIMES_MORE * one.without, NOTHING + GAIN))
    return not fault.tuning or score >= enough
