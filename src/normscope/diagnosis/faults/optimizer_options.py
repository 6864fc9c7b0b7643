"""Options of the optimizer that hardly anybody trains with: steps uphill, a momentum that sums up hundreds of
gradients, an eps that outweighs them."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.optim.optimizer import ParamsT as Params

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import number

MUCH_MOMENTUM = 0.97
"""From here on a step is the sum of more than thirty."""

LARGE_EPS = 1e-3
"""Of gradients that are often smaller."""

USUAL = {"momentum": 0.9, "eps": 1e-8, "maximize": False}


def unusual(facts: Facts) -> str:
    """The option, by torch's name; "" where there is none."""
    if facts.uphill:
        return "maximize"
    if facts.momentum >= MUCH_MOMENTUM:
        return "momentum"
    return "eps" if facts.eps >= LARGE_EPS else ""


def _suspected(facts: Facts) -> Suspicion | None:
    option = unusual(facts)
    if not option:
        return None
    title, sentence, value = {
        "maximize": ("the optimizer goes uphill", "It maximizes the loss.", 1.0),
        "momentum": (
            "the momentum is too large",
            f"{facts.optimizer} has momentum {facts.momentum:g}: a step is the sum of "
            f"{number(1 / max(1 - facts.momentum, 1e-9))}.",
            facts.momentum,
        ),
        "eps": (
            "eps outweighs the gradients",
            f"{facts.optimizer} divides by the root of the second moment plus {number(facts.eps)}: smaller gradients "
            "are not scaled up, as it is made for.",
            facts.eps,
        ),
    }[option]
    return Suspicion(title, sentence, {option: value}, place="optimizer")


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    option = unusual(facts)

    def usual(params: Params, lr: float) -> torch.optim.Optimizer:
        made = program.optimizer(params, lr)
        for group in made.param_groups:
            if option == "momentum" and "betas" in group:
                group["betas"] = (USUAL["momentum"], group["betas"][1])
            elif option in group:
                group[option] = USUAL[option]
        return made

    if option:
        name = "betas[0]" if option == "momentum" and "SGD" not in facts.optimizer else option
        made = replace(program, optimizer=usual)
        yield Repair(made, f"{name} = {USUAL[option]}", f"{option} {USUAL[option]}", "optimizer")


FAULT = Fault("optimizer_options", "optimizer", 43, suspected=_suspected, repairs=_repairs)
