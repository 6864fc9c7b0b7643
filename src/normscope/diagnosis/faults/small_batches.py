"""Batches of so few examples that every step is mostly noise."""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.model.batch import joined

FEW = 4
"""Examples."""

TIMES = 16
"""As many in one batch."""


def _suspected(facts: Facts) -> Suspicion | None:
    if not facts.own or not 1 <= facts.batch_size <= FEW or len(facts.program.batches) < 2 * TIMES:
        return None
    examples = "one example" if facts.batch_size == 1 else f"{facts.batch_size} examples"
    return Suspicion(
        "batches are too small",
        f"Every step is taken on {examples}: its gradient is mostly noise.",
        {"batch_size": float(facts.batch_size)},
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    rows = [joined(program.batches[i : i + TIMES]) for i in range(0, len(program.batches) - TIMES + 1, TIMES)]
    batches = [batch for batch in rows if batch is not None]
    if batches:
        size = TIMES * facts.batch_size
        code = f"DataLoader(data, batch_size={size}, shuffle=True)"
        yield Repair(replace(program, batches=batches), code, f"batches of {size}", "batches")


FAULT = Fault("small_batches", "batch_size", 47, suspected=_suspected, repairs=_repairs, tuning=True)
