"""Targets of a sequence that are not those of the next position: not moved at all, or moved twice."""

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.diagnosis.module_calls import LEAKS


def _suspected(facts: Facts) -> Suspicion | None:
    order = facts.order
    if order is None or order.ahead == 1 or order.leak > LEAKS or not order.context > LEAKS:
        return None
    if order.ahead == 0:
        title, said = "the targets are not shifted", "the input at its own position: there is nothing to foretell"
    else:
        title, said = "the targets are shifted twice", f"the input {order.ahead} positions ahead, not the next one"
    return Suspicion(
        title,
        f"The model sees no position ahead, and what each output is compared with is {said}.",
        {"ahead": float(order.ahead)},
        True,
        place="targets",
    )


def _advice(facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    if facts.order is not None and facts.order.ahead == 0:
        return "Let the targets be the inputs of the next position.", "inputs, targets = ids[:, :-1], ids[:, 1:]"
    return "The loss moves the labels itself: give it the inputs as labels.", "labels = input_ids"


FAULT = Fault("shifted_targets", "labels", 5, suspected=_suspected, advice=_advice, early=True)
