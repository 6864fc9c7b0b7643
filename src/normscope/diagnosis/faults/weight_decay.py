"""Weight decay that pulls harder than the loss."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.optim.optimizer import ParamsT as Params

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program

MUCH = 0.02


def _suspected(facts: Facts) -> Suspicion | None:
    if facts.weight_decay < MUCH:
        return None
    return Suspicion(
        "weight decay keeps it from learning",
        f"The optimizer's weight decay is {facts.weight_decay:g}.",
        {"weight_decay": facts.weight_decay},
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    def without(params: Params, lr: float) -> torch.optim.Optimizer:
        made = program.optimizer(params, lr)
        for group in made.param_groups:
            group["weight_decay"] = 0.0
        return made

    yield Repair(replace(program, optimizer=without), "weight_decay=0.0", "no weight decay", "optimizer")


FAULT = Fault("weight_decay", "regularization", 46, suspected=_suspected, repairs=_repairs)
