"""Most parameters cannot move."""

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding
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


FAULT = Fault("frozen", "architecture", 101, rule=frozen)
