"""Too few steps: the loss is still falling where the training ends."""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.diagnosis.words import many
from normscope.statistics.numbers import number

LONGER = 10
"""Times as many steps."""

MOST_STEPS = 5000
"""No run is made longer than that."""


def _suspected(facts: Facts) -> Suspicion | None:
    if not facts.own or facts.run is None or facts.run.diverged or facts.program.steps >= MOST_STEPS // 2:
        return None
    return Suspicion(
        "the training ends too early",
        f"After {many(facts.program.steps)} the loss is {number(facts.run.end_loss)}.",
        {"steps": float(facts.program.steps)},
    )


def _repairs(program: Program, _facts: Facts) -> Iterator[Repair]:
    steps = min(LONGER * program.steps, MOST_STEPS)
    code = f"steps = {steps}  # was {program.steps}"
    yield Repair(replace(program, steps=steps), code, f"{number(steps / program.steps)} times the steps", "steps")


FAULT = Fault("epochs", "epochs", 60, suspected=_suspected, repairs=_repairs, tuning=True)
