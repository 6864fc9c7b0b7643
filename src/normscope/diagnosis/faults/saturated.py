"""The model is certain before it has learned anything."""

import math

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.faults.summed import is_summed
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import number

SATURATED = 0.99
"""A softmax is saturated where half the examples' gradients have an entry this near to 1, ..."""

SATURATED_LOSS = 3.0
"""... and the loss starts at this many times ln K, that of K equal logits."""


def saturated(evidence: xr.Dataset) -> Finding | None:
    """The model is certain before it has learned anything."""
    confidence, start = float(evidence["confidence"]), float(evidence["start_loss"])
    uniform = math.log(max(float(evidence["num_outputs"]), 2))
    if is_summed(evidence):  # and neither number is that of one example
        return None
    if not (bool(evidence["softmax"]) and confidence >= SATURATED and start >= SATURATED_LOSS * uniform):
        return None
    return Finding(
        "saturated",
        "the softmax is saturated from the start",
        f"The loss starts at {number(start)}, {number(start / uniform)} times that of equal logits: logits are so "
        "large that the model is certain of classes before it has learned any.",
        "Make the logits smaller: scale down the last layer or a temperature, or put a norm in front of it.",
        numbers={"confidence": confidence, "start_loss": start},
    )


FAULT = Fault("saturated", "initialization", 108, rule=saturated, harmless=True)
