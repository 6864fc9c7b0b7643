"""One term of the loss is so much larger than the others that these are not learned.

Measured: the others' loss after the same steps, with the terms as they are and with the large one scaled to their size.
"""

from dataclasses import replace

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.diagnosis.loss_terms import Split, Term
from normscope.diagnosis.program import tried
from normscope.statistics.numbers import number, percent

DOMINATES = 0.95
"""Share of the loss, of a term that is not weighted."""

UNLEARNED, LEARNED = 0.1, 0.5
"""Of the others' loss at the start, what is gone after the run: less than the first with the terms as they are, more
than the second with that one scaled."""

MOST_STEPS = 60


def largest_term(facts: Facts) -> tuple[int, Term] | None:
    """The place of the term that dominates others of the data, and itself; a penalty on the parameters is small by
    design."""
    of_data = [(i, term) for i, term in enumerate(facts.terms) if not term.penalty]
    largest = next(((i, term) for i, term in of_data if term.share >= DOMINATES and not term.weighted), None)
    return largest if len(of_data) > 1 else None


def _suspected(facts: Facts) -> Suspicion | None:
    if (found := largest_term(facts)) is None or facts.run is None:
        return None
    at, term = found
    ratio = (1 - term.share) / term.share
    drowned = [i for i, one in enumerate(facts.terms) if i != at and not one.penalty]
    whole = facts.program.loss_fn.loss_fn if isinstance(facts.program.loss_fn, Split) else facts.program.loss_fn

    def others(_name: str, place: int) -> bool:
        return place in drowned

    def scaled(_name: str, place: int) -> float:
        return ratio if place == at else 1.0

    steps = min(facts.program.steps, MOST_STEPS)
    short = replace(facts.program, steps=steps, constant_loss=float("nan"), lowest_loss=0.0)
    runs = [tried(replace(short, loss_fn=loss)) for loss in (Split(whole, others), Split(whole, others, scaled))]
    before, after = runs
    if before is None or after is None or not before.score < UNLEARNED or not after.score > LEARNED:
        return None
    names = ", ".join(facts.terms[i].name for i in drowned)
    return Suspicion(
        f"{term.name} drowns the other terms of the loss",
        f"{term.name} is {percent(term.share)} of the loss before any step. After {short.steps} steps the others "
        f"({names}) are at {number(before.end_loss)}, and at {number(after.end_loss)} where it is multiplied by "
        f"{number(ratio)}.",
        {"share": term.share, "others": before.end_loss, "others_scaled": after.end_loss, "factor": ratio},
        True,
        place=term.name,
    )


def _advice(facts: Facts) -> tuple[str, str]:
    found = largest_term(facts)
    name = found[1].name if found else ""
    factor = (1 - found[1].share) / found[1].share if found else 1.0
    return (
        f"Multiply {name} by a weight, or measure its targets in units of their own size.",
        f"loss = loss - {name} + {factor:.2g} * {name}",
    )


FAULT = Fault("dominating_term", "loss", 12, suspected=_suspected, advice=_advice, early=True)
