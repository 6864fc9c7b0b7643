"""A rate at which the program diverges, or at which its steps are too short for their number."""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import number

FACTORS = (10.0, 0.1, 100.0, 0.01, 1e3, 1e-3, 1e4, 1e5)
"""Of the program's rate, in the order of trying; of one that diverged only the smaller ones."""


def _suspected(facts: Facts) -> Suspicion | None:
    if not facts.own or facts.run is None:
        return None
    lr = facts.program.lr
    if facts.run.diverged:
        title, became = "the learning rate is too large", f"diverges at step {len(facts.run.losses)}"
    else:
        title, became = "the learning rate does not suit", f"ends at a loss of {number(facts.run.end_loss)}"
    return Suspicion(title, f"At the rate {number(lr)} the training {became}.", {"lr": lr})


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    diverged = facts.run is not None and facts.run.diverged
    for factor in FACTORS:
        if diverged and factor > 1:
            continue
        lr = float(f"{program.lr * factor:.6g}")
        yield Repair(replace(program, lr=lr), f"lr = {lr:g}  # was {program.lr:g}", f"a rate of {lr:g}", "lr")


FAULT = Fault("learning_rate", "learning_rate", 50, suspected=_suspected, repairs=_repairs, tuning=True)
