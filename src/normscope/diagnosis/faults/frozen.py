"""Most parameters cannot move."""

from collections.abc import Iterator
from dataclasses import replace

import xarray as xr
from torch import nn

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.finding import Finding
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import percent

FROZEN_SHARE = 0.5
"""Fewer of the parameters than this can move."""


def frozen(evidence: xr.Dataset) -> Finding | None:
    """Most parameters cannot move."""
    trainable, reached = float(evidence["trainable_share"]), float(evidence["reached_share"])
    if trainable * reached >= FROZEN_SHARE:
        return None
    why = (
        f"Only {percent(trainable)} of the parameters require a gradient."
        if trainable < FROZEN_SHARE
        else f"No gradient arrives at {percent(1 - reached)} of the parameters: the loss does not depend on them."
    )
    return Finding(
        "frozen",
        "most of the model cannot move",
        f"{why} The rates are those of the rest.",
        "Unless it is meant: unfreeze the body (requires_grad), look for detach() or no_grad() in the forward pass.",
        numbers={"trainable_share": trainable, "reached_share": reached},
    )


def _suspected(facts: Facts) -> Suspicion | None:
    found = None if facts.evidence is None else frozen(facts.evidence)
    if found is None or found.numbers["trainable_share"] >= FROZEN_SHARE:
        return None
    return Suspicion(found.title, found.sentence, found.numbers)


def unfrozen(model: nn.Module) -> None:
    """Every parameter may move."""
    model.requires_grad_(True)


def _repairs(program: Program, _facts: Facts) -> Iterator[Repair]:
    made = replace(program, patches=(*program.patches, unfrozen))
    yield Repair(made, "model.requires_grad_(True)", "all parameters free to move")


FAULT = Fault("frozen", "architecture", 44, rule=frozen, suspected=_suspected, repairs=_repairs, grave=True)
