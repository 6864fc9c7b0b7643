"""What an example gives depends on the others in its batch, also in evaluation mode: a dim taken for another, a
recurrence or a mean that runs over the batch."""

from torch import nn

from normscope.diagnosis.experiments import LEARNED
from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion, module
from normscope.diagnosis.module_calls import LEAKS
from normscope.statistics.numbers import percent


def _suspected(facts: Facts) -> Suspicion | None:
    if not facts.mixing > LEAKS or facts.score >= LEARNED:
        return None
    where = module(facts.mixes_in)
    return Suspicion(
        "examples of a batch are mixed",
        f"In evaluation mode an example's output changes by {percent(facts.mixing)} of the outputs' spread with the "
        f"other examples of its batch. The first part in which they meet is {where}.",
        {"mixing": facts.mixing},
        True,
        place=facts.mixes_in,
    )


def _advice(facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    met_in = facts.program.build(0).get_submodule(facts.mixes_in) if facts.mixes_in else None
    if isinstance(met_in, nn.RNNBase | nn.MultiheadAttention):
        kind = type(met_in).__name__
        first = not met_in.batch_first
        return "Say which dim runs over the batch.", f"nn.{kind}(..., batch_first={first})"
    return "Look for a mean, softmax, view or recurrence over dim 0.", ""


FAULT = Fault("mixed_examples", "architecture", 6, suspected=_suspected, advice=_advice, early=True)
