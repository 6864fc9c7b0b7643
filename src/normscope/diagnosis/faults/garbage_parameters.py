"""Parameters that were never initialized, or hold numbers that are not finite."""

import math

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.statistics.numbers import number


def _suspected(facts: Facts) -> Suspicion | None:
    if facts.first is None or not facts.first.garbage:
        return None
    name, worst = max(facts.first.garbage, key=lambda one: math.inf if math.isnan(one[1]) else one[1])
    found = "NaN" if math.isnan(worst) else number(worst)
    more = f" So do {len(facts.first.garbage) - 1} more." if len(facts.first.garbage) > 1 else ""
    return Suspicion(
        "a parameter holds garbage",
        f"{name} holds {found} before any step.{more}",
        {"worst": worst, "parameters": float(len(facts.first.garbage))},
        True,
        place=name,
    )


def _advice(facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    name = facts.first.garbage[0][0] if facts.first and facts.first.garbage else ""
    line = f"nn.init.normal_(model.get_parameter({name!r}), std=0.02)"
    return "Initialize it: torch.empty and nn.Parameter(torch.Tensor(...)) leave what was in memory.", line


FAULT = Fault("garbage_parameters", "initialization", 0, suspected=_suspected, advice=_advice, early=True)
