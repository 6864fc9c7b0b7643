"""The last activation does not fit the loss, though its range reaches the targets: no softmax or sigmoid in front of a
loss that takes the logarithm of probabilities, sigmoids where one of several classes is right."""

from collections.abc import Iterator

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.faults.output_range import out_of_reach, output_repair, wanted_activation
from normscope.diagnosis.program import Program

LOGARITHMIC = ("bce", "log_of_probabilities")
FITTING = {"identity": ("identity", "log_softmax"), "sigmoid": ("sigmoid",), "softmax": ("softmax",)}


def _suspected(facts: Facts) -> Suspicion | None:
    wanted = wanted_activation(facts)
    if not facts.last or facts.last in FITTING.get(wanted, ()) or facts.family == "" or out_of_reach(facts):
        return None
    if wanted == "identity" and facts.kind == "number" and facts.family in ("mse", "mae"):
        return None  # a range that reaches all targets
    if facts.family in LOGARITHMIC:
        why = "the loss takes the logarithm of probabilities"
    elif facts.kind == "one_hot":
        why = "one of several classes is right"
    else:
        why = f"the targets are {'zeros and ones' if facts.kind in ('binary', 'multi_hot') else facts.kind}"
    last = "no activation" if facts.last == "identity" else facts.last
    return Suspicion(
        f"{last} at the output does not fit the loss",
        f"The model ends in {last}, while {why}: that asks for {wanted}.",
        {},
        place=facts.chain.layers[-1] if facts.chain else "",
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    if facts.chain is not None:
        yield output_repair(program, facts, wanted_activation(facts))


FAULT = Fault("output_activation", "activation", 30, suspected=_suspected, repairs=_repairs)
