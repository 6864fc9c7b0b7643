"""Inputs that are the same in every example: cast to integers, scaled away, or a wrong column."""

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion


def _suspected(facts: Facts) -> Suspicion | None:
    if not facts.constant_inputs or facts.num_examples < 2:
        return None
    return Suspicion(
        "the inputs are the same in every example",
        f"No input feature varies between {facts.num_examples} examples: nothing can be told from them.",
        {"examples": float(facts.num_examples)},
        True,
        place="inputs",
    )


def _advice(_facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    return "Look at one batch as the model gets it: was it cast to integers, divided twice, or is it a mask?", ""


FAULT = Fault("constant_inputs", "preprocessing", 4, suspected=_suspected, advice=_advice, early=True)
