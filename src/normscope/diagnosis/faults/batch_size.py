"""All data in one batch: few steps, each of the whole."""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.model.batch import Batch, num_examples, take

PARTS, USUAL = 8, 32
"""Into which the one batch is cut, where it is large enough, or into more, of this many examples; its steps are as many
times more, as an epoch's are."""

MOST_STEPS = 5000


def _suspected(facts: Facts) -> Suspicion | None:
    if not facts.own or facts.run is None or not facts.full_batch or facts.batch_size < 4:
        return None
    return Suspicion(
        "one batch holds all data",
        f"The {facts.batch_size} examples are one batch, so that an epoch is one step.",
        {"batch_size": float(facts.batch_size)},
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    batch = program.batches[0]
    examples = num_examples(batch)
    if examples is None or examples < 4:
        return
    size = max(min(examples // PARTS, USUAL), 2)
    parts: list[Batch] = [take(batch, range(at, min(at + size, examples))) for at in range(0, examples, size)]
    if len(parts) > 1:
        steps = min(program.steps * len(parts), MOST_STEPS)
        made = replace(program, batches=parts, steps=steps)
        yield Repair(made, f"DataLoader(data, batch_size={size}, shuffle=True)", f"batches of {size}", "batches")


FAULT = Fault("batch_size", "batch_size", 54, suspected=_suspected, repairs=_repairs, tuning=True)
