"""The terms of the loss differ so much in size that one of them is not learned.

Measured: whether a term knows its inputs after the program's own steps, and after the same steps without the other
terms. A term that fell knows them where it is lower than with every layer giving each example what is another's; one
that constants satisfy, as a code's divergence from its prior, never does.
"""

import math
import time

import numpy as np
import torch

from normscope.descent.recipe import Recipe
from normscope.diagnosis.experiments import LADDER
from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.diagnosis.learnability import after_descent, exchanged
from normscope.diagnosis.loss_terms import Split
from normscope.model.state import seeded
from normscope.statistics.numbers import number, percent

UNKNOWN, KNOWN = 0.1, 0.3
"""1 − (term) / (the same with examples exchanged), 0 of a term that did not fall: at most the first with the terms as
they are, more than the second without the others."""

SMALLER = 0.1
"""Others that are less of the loss drown nothing; and the advice is to make them this share of the term, or of what
they were where they were smaller."""

LOWER = 0.9
"""A term that was drowned ends at least this much lower without."""

MOST_STEPS, JUDGED, SECONDS = 300, 4, 1.5
"""Of a run; batches that terms are judged on; seconds of the processor for all runs."""


def _suspected(facts: Facts) -> Suspicion | None:
    of_data = [i for i, term in enumerate(facts.terms) if not term.penalty]
    if len(of_data) < 2 or facts.run is None:
        return None
    until = time.process_time() + SECONDS
    before = _best(facts, {}, until)
    if before is None:
        return None
    for place in of_data:
        term = facts.terms[place]
        others = sum(facts.terms[i].share for i in of_data if i != place)
        # What is weighted by hand is small on purpose.
        if term.weighted or before[1][place] > UNKNOWN or others < SMALLER:
            continue
        factor = SMALLER * min(term.share / others, 1.0)
        after = _best(facts, {i: 0.0 for i in of_data if i != place}, until, place)
        if after is None or not after[1][place] > KNOWN or not after[0][place] < LOWER * before[0][place]:
            continue
        names = ", ".join(facts.terms[i].name for i in of_data if i != place)
        largest = facts.terms[max((i for i in of_data if i != place), key=lambda i: facts.terms[i].share)]
        return Suspicion(
            f"{largest.name} drowns {term.name}",
            f"Before any step {names} is {percent(others)} of the loss. After {_steps(facts)} steps {term.name} is at "
            f"{number(before[0][place])} and knows nothing of the inputs; without the rest it gets to "
            f"{number(after[0][place])}.",
            {"share": others, "others": before[0][place], "alone": after[0][place], "factor": factor},
            True,
            place=largest.name,
        )
    return None


def _steps(facts: Facts) -> int:
    return min(facts.program.steps, MOST_STEPS)


def _best(
    facts: Facts, factors: dict[int, float], until: float, place: int | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Every term's loss after the program's steps and how much it knows; None where there was no time, or it could not
    be run.

    Args:
        factors: by which terms are multiplied, by their places.
        place: the term whose knowledge is asked for, at the best of several rates; None for the largest that does
            not diverge.
    """
    program = facts.program
    best: tuple[np.ndarray, np.ndarray] | None = None
    model, batches = program.build(0), program.batches[:JUDGED]
    whole = program.loss_fn.loss_fn if isinstance(program.loss_fn, Split) else program.loss_fn
    split = Split(whole, scale=lambda _name, place: factors.get(place, 1.0))
    recipe = Recipe(program.optimizer, _steps(facts), split, warmup=program.warmup, clip_norm=program.clip_norm)

    def terms() -> np.ndarray:
        torch.manual_seed(0)
        seen = []
        for batch in batches:
            split(model, batch)
            seen.append([float(value.detach()) for _, value, _ in split.values])
        return np.mean(seen, 0)

    def judge() -> tuple[np.ndarray, np.ndarray]:
        own = terms()
        with exchanged(model):
            return own, terms()

    with seeded(model, 0):
        start = terms()
    for share in (1.0, *LADDER):
        if time.process_time() > until:
            return None
        after = after_descent(model, program.batches, share * program.lr, recipe, 0, judge)
        if after is None or not all(len(found) == len(facts.terms) for found in (start, *after[1])):
            continue
        own, others = after[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            knows = np.where(own < start, np.nan_to_num(1 - own / others, nan=-math.inf), 0.0)
        if best is None or place is None or knows[place] > best[1][place]:
            best = own, knows
        if place is None or knows[place] > KNOWN:
            break
    return best


def _advice(_facts: Facts, suspicion: Suspicion) -> tuple[str, str]:
    name, factor = suspicion.place, suspicion.numbers["factor"]
    return (
        f"Multiply {name} by a weight, take sums or means of all terms alike, or measure targets in units of their own "
        "size.",
        f"loss = loss - {name} + {factor:.2g} * {name}",
    )


FAULT = Fault("dominating_term", "loss", 12, suspected=_suspected, advice=_advice, early=True)
