"""The optimizer holds only some of the parameters: the others stay as they are."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from normscope.descent.optimizers import make_optimizer
from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import percent


def _suspected(facts: Facts) -> Suspicion | None:
    if not facts.left_out or facts.foreign:
        return None
    return Suspicion(
        "the optimizer does not hold all parameters",
        f"{len(facts.left_out)} parameters that require a gradient, {percent(facts.left_out_share)} of all numbers, "
        f"are not the optimizer's: {facts.left_out[0]}, for one.",
        {"left_out_share": facts.left_out_share},
        place=facts.left_out[0],
    )


def _repairs(program: Program, _facts: Facts) -> Iterator[Repair]:
    def of_all(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        made: Any = make_optimizer(program.optimizer, model, lr)
        held = {id(p) for group in made.param_groups for p in group["params"]}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in held]
        if rest:
            made.add_param_group({"params": rest})
        return made

    code = "optimizer.add_param_group({'params': rest})  # those it does not hold, or all from the start"
    yield Repair(replace(program, optimizer=of_all), code, "all parameters in the optimizer", "optimizer")


FAULT = Fault("parameters_left_out", "optimizer", 42, suspected=_suspected, repairs=_repairs)
