"""A rate at which the program diverges, or at which its steps are too short for their number."""

import math
from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import number

FACTORS = (0.1, 0.01, 1e-3, 10.0, 100.0, 1e3, 1e4, 1e5)
"""Of the program's rate, in the order of trying; of one that diverged only the smaller ones, and where evidence shows
the rate to be small, the larger ones first."""


def settled_rate(facts: Facts) -> float:
    """The rate at which one settled step lowers the loss most, by the evidence of the first step; NaN where unknown."""
    if facts.evidence is None:
        return math.nan
    return float(facts.evidence["lowest_lr"]) / float(facts.evidence["amplification"])


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
    small = program.lr < settled_rate(facts)
    for factor in sorted(FACTORS, key=lambda factor: (factor > 1) is not small):
        if diverged and factor > 1:
            continue
        lr = float(f"{program.lr * factor:.6g}")
        yield Repair(replace(program, lr=lr), f"lr = {lr:g}  # was {program.lr:g}", f"a rate of {lr:g}", "lr")


FAULT = Fault("learning_rate", "learning_rate", 50, suspected=_suspected, repairs=_repairs, tuning=True)
