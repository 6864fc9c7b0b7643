"""An optimizer that does not get there: plain SGD where directions differ in scale."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.optim.optimizer import ParamsT as Params

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import number

ADAPTIVE = ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adamax")
ADAM_LRS = (1e-3, 1e-2)


def _adam(params: Params, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=lr)


def _suspected(facts: Facts) -> Suspicion | None:
    if not facts.own or facts.run is None or not facts.optimizer or facts.optimizer in ADAPTIVE:
        return None
    return Suspicion(
        f"{facts.optimizer} does not get there",
        f"With {facts.optimizer} at rate {number(facts.program.lr)} the training ends at a loss of "
        f"{number(facts.run.end_loss)}.",
        {"lr": facts.program.lr},
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    for lr in ADAM_LRS:
        made = replace(program, optimizer=_adam, lr=lr)
        code = f"optimizer = torch.optim.Adam(model.parameters(), lr={lr:g})"
        yield Repair(made, code, f"Adam at {lr:g}", "optimizer")


FAULT = Fault("optimizer", "optimizer", 55, suspected=_suspected, repairs=_repairs, tuning=True)
