"""Weights far too large, or so small that nothing gets through."""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.patches import sizes_kept
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import number

LARGE, SMALL = 5.0, 0.05
"""Of a layer's gain: about 1 keeps sizes."""

CODE = (
    "for layer in model.modules():\n"
    "    if isinstance(layer, nn.Linear | nn.Conv2d):\n"
    "        nn.init.kaiming_normal_(layer.weight)\n"
    "        nn.init.zeros_(layer.bias)"
)


def _suspected(facts: Facts) -> Suspicion | None:
    if not facts.own:  # a layer that stands out is measured by the step that it allows
        return None
    if facts.equal_units:
        layer = facts.equal_units[0]
        return Suspicion(
            "all units of a layer start equal",
            f"The units of layer {layer} have the same weights: they get the same gradient, and stay one unit.",
            {"equal_layers": float(len(facts.equal_units))},
            place=layer,
        )
    outside = [(layer, gain) for layer, gain in facts.weight_gains if not SMALL <= gain <= LARGE]
    if not outside:
        return None
    layer, gain = max(outside, key=lambda one: max(one[1], 1 / max(one[1], 1e-30)))
    size = "large" if gain > 1 else "small"
    return Suspicion(
        f"the weights start too {size}",
        f"The weights of layer {layer} multiply sizes by about {number(gain)}, where 1 to 2 keeps them.",
        {"weight_gain": gain},
        place=layer,
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    worst = _suspected(facts)
    where = worst.place if worst else ""
    made = replace(program, patches=(sizes_kept, *program.patches))
    yield Repair(made, CODE, "weights that keep sizes (kaiming_normal)", where)


FAULT = Fault("initialization", "initialization", 48, suspected=_suspected, repairs=_repairs)
