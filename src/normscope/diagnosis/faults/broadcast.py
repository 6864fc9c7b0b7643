"""Outputs of shape (N, 1) against targets of shape (N,): the loss is of N x N pairs, and the model learns the mean."""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts, judged_anew
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.model.batch import Batch, targets_of


def _suspected(facts: Facts) -> Suspicion | None:
    found = facts.first.broadcast if facts.first else None
    if found is None:
        return None
    return Suspicion(
        "outputs and targets broadcast against each other",
        f"Outputs of shape {found.output} meet targets of shape {found.target} in {found.function}: every output is "
        "compared with every target, so that the best output is the targets' mean.",
        {"examples": float(max(found.output))},
        True,
        place="the loss",
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    found = facts.first.broadcast if facts.first else None
    if found is None:
        return
    tail = found.output[1:]

    def changed(batch: Batch) -> Batch:
        targets = targets_of(batch)
        if targets is None or type(batch) not in (tuple, list):
            return batch
        return type(batch)([*batch[:-1], targets.reshape(len(targets), *tail)])

    code = "targets = targets.reshape(outputs.shape)"
    made = replace(program, batches=[changed(batch) for batch in program.batches])
    yield Repair(judged_anew(made), code, "targets in the shape of the outputs", "the loss")


FAULT = Fault("broadcast", "loss", 3, suspected=_suspected, repairs=_repairs, early=True)
