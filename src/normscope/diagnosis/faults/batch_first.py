"""A recurrence that runs over the batch: `batch_first` says the wrong thing of the inputs."""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.module_calls import LEAKS
from normscope.diagnosis.program import Program


def _suspected(facts: Facts) -> Suspicion | None:
    module = facts.program.build(0).get_submodule(facts.mixes_in) if facts.mixing > LEAKS and facts.mixes_in else None
    if not isinstance(module, nn.RNNBase):
        return None
    return Suspicion(
        "the recurrence runs over the batch",
        f"Layer {facts.mixes_in} has batch_first={module.batch_first}, and what an example gives depends on the "
        "examples before it.",
        {"mixing": facts.mixing},
        place=facts.mixes_in,
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    if not facts.mixes_in:
        return
    first = not getattr(program.build(0).get_submodule(facts.mixes_in), "batch_first", False)

    def turned(model: nn.Module) -> None:
        vars(model.get_submodule(facts.mixes_in))["batch_first"] = first

    kind = type(program.build(0).get_submodule(facts.mixes_in)).__name__
    made = replace(program, patches=(*program.patches, turned))
    yield Repair(made, f"nn.{kind}(..., batch_first={first})", f"batch_first={first}", facts.mixes_in)


FAULT = Fault("batch_first", "architecture", 40, suspected=_suspected, repairs=_repairs)
