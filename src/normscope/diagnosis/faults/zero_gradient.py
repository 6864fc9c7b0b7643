"""The gradient is zero everywhere: no rate moves the model."""

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion


def _suspected(facts: Facts) -> Suspicion | None:
    first = facts.first
    if first is None or not first.usable or any(first.gradients[i] > 0 for i in first.usable):
        return None
    return Suspicion(
        "the gradient is zero everywhere",
        f"On none of {len(first.usable)} batches does any parameter get a gradient: no rate moves this model.",
        {"batches": float(len(first.usable))},
        True,
    )


def _advice(_facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    return (
        "Look for a dead activation at the output, a softmax over one unit, detach(), argmax or round in front of the "
        "loss.",
        "",
    )


FAULT = Fault("zero_gradient", "activation", 15, suspected=_suspected, advice=_advice, early=True)
