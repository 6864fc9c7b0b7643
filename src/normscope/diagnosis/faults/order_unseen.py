"""Attention without positions: the model sees a set where it is given a sequence."""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.positions import with_positions
from normscope.diagnosis.program import Program


def _suspected(facts: Facts) -> Suspicion | None:
    if not facts.blind_to_order:
        return None
    return Suspicion(
        "the model does not see the order of its inputs",
        "With the positions of every sequence in another order the outputs stay the same: nothing tells positions "
        "apart.",
        {},
        place=facts.blind_to_order,
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    path = facts.blind_to_order
    made = replace(program, patches=(with_positions(path), *program.patches))
    code = f"x = self.{path}(x) + self.positions[: x.shape[1]]  # positions = nn.Parameter(torch.randn(length, width))"
    yield Repair(made, code, "an encoding of the positions added to the inputs", path)


FAULT = Fault("order_unseen", "architecture", 45, suspected=_suspected, repairs=_repairs)
