"""Dropout of so much, or of so few units, that little gets through."""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.patches import without_dropout
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import percent

MUCH = 0.3


def _suspected(facts: Facts) -> Suspicion | None:
    if facts.dropout < MUCH:
        return None
    return Suspicion(
        "dropout keeps it from learning",
        f"Dropout zeroes {percent(facts.dropout)} of the units.",
        {"dropout": facts.dropout},
    )


def _repairs(program: Program, _facts: Facts) -> Iterator[Repair]:
    patches = (*program.patches, without_dropout)
    code = (
        "for module in model.modules():  # and 0.0 in every nn.functional.dropout\n"
        "    if isinstance(module, nn.Dropout):\n        module.p = 0.0"
    )
    yield Repair(replace(program, patches=patches), code, "no dropout")


FAULT = Fault("dropout", "regularization", 48, suspected=_suspected, repairs=_repairs, tuning=True)
