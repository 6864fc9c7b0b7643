"""A parameter of a module's own, such as a table of positions, a token or a scale, that starts far too large."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import number

LARGE, USUAL = 10.0, 0.02
"""A root mean square from which on such a parameter is suspected, and what it is usually drawn with."""


def _suspected(facts: Facts) -> Suspicion | None:
    large = [(name, size) for name, size in facts.bare_sizes if size > LARGE]
    if not large:
        return None
    name, size = max(large, key=lambda one: one[1])
    return Suspicion(
        f"{name} starts too large",
        f"The numbers of {name} have size {number(size)}: what is added to them, or multiplied by them, drowns.",
        {"size": size, "parameters": float(len(large))},
        place=name,
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    names = tuple(name for name, size in facts.bare_sizes if size > LARGE)

    def drawn_anew(model: nn.Module) -> None:
        with torch.no_grad():
            for name in names:
                parameter = model.get_parameter(name)
                parameter.fill_(1.0) if parameter.ndim < 2 else parameter.normal_(0.0, USUAL)

    if names:
        code = "\n".join(
            f"nn.init.ones_(model.get_parameter({name!r}))"
            if program.build(0).get_parameter(name).ndim < 2
            else f"nn.init.normal_(model.get_parameter({name!r}), std={USUAL:g})"
            for name in names
        )
        made = replace(program, patches=(drawn_anew, *program.patches))
        yield Repair(made, code, f"{', '.join(names)} of usual size", names[0])


FAULT = Fault("bare_parameters", "initialization", 47, suspected=_suspected, repairs=_repairs)
