"""A penalty on the parameters that outweighs what the data ask for: the loss falls, and nothing is learned.

A run is then judged by the other terms of the loss, see `facts.judged_by_data`.
"""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.loss_terms import Split, penalty_share
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import percent

MUCH, MOST = 0.1, 0.5
"""Shares of the loss: of a penalty that is suspected, and of one that is blamed where ..."""

UNLEARNED = 0.5
"""... less than this share of what the data have to teach was learned."""


def _suspected(facts: Facts) -> Suspicion | None:
    share = penalty_share(facts.terms)
    if share < MUCH:
        return None
    names = sorted({term.name for term in facts.terms if term.penalty})
    return Suspicion(
        "a penalty on the parameters outweighs the data",
        f"Before any step {percent(share)} of the loss is the same whatever the batch ({', '.join(names)}): a penalty "
        "on the parameters.",
        {"penalty_share": share},
        certain=share >= MOST and facts.score < UNLEARNED,
        place="the loss",
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    kept = tuple(not term.penalty for term in facts.terms)
    whole = program.loss_fn.loss_fn if isinstance(program.loss_fn, Split) else program.loss_fn

    def scale(_name: str, place: int) -> float:
        return float(kept[place]) if place < len(kept) else 1.0

    def chosen(_name: str, place: int) -> bool:
        return place >= len(kept) or kept[place]

    code = "penalty_weight = 0.0  # then a thousandth of what it was"
    made = replace(program, loss_fn=Split(whole, chosen, scale))
    yield Repair(made, code, "no penalty on the parameters", "the loss")


FAULT = Fault("penalty", "regularization", 45, suspected=_suspected, repairs=_repairs)
