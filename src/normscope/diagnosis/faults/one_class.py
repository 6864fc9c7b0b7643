"""Cross-entropy over one unit: the softmax of a single number is 1, and the loss is 0 whatever the model gives."""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts, judged_anew
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.faults.loss_of_classes import of_bits
from normscope.diagnosis.program import Program


def _suspected(facts: Facts) -> Suspicion | None:
    first = facts.first
    if facts.num_outputs != 1 or first is None or not first.usable:
        return None
    if any(first.losses[i] != 0 or first.gradients[i] != 0 for i in first.usable):
        return None
    return Suspicion(
        "cross-entropy over one unit is 0",
        "The model gives one number for an example, and the loss is 0 whatever it is: a softmax over one unit is 1.",
        {"outputs": 1.0},
        True,
        place="the loss",
    )


def _repairs(program: Program, _facts: Facts) -> Iterator[Repair]:
    code = "loss = nn.functional.binary_cross_entropy_with_logits(logits, targets.float().reshape(logits.shape))"
    yield Repair(judged_anew(replace(program, loss_fn=of_bits)), code, "binary cross-entropy of the logit", "the loss")


FAULT = Fault("one_class", "loss", 8, suspected=_suspected, repairs=_repairs)
