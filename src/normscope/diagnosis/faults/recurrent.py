"""Sizes multiply from step to step of a sequence."""

import math

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import number

SEQUENCE_NATS = math.log(1e3)
"""A recurrence explodes where sizes grow a thousandfold along the sequence."""


def recurrent(evidence: xr.Dataset) -> Finding | None:
    """Sizes multiply from step to step of a sequence."""
    forward, backward = float(evidence["forward_growth"]), float(evidence["backward_growth"])
    if max(forward, backward) < SEQUENCE_NATS:
        return None
    layer = str(evidence["sequence_layer"].values)
    growth = number(math.exp(max(forward, backward)))
    what = (
        f"outputs of layer {layer} grow {growth} times from its first step to its last"
        if forward >= backward
        else f"gradients at layer {layer} grow {growth} times from its last step back to its first"
    )
    return Finding(
        "recurrent",
        "the recurrence explodes",
        f"Along the sequence, {what}: a product of as many equal factors as there are steps.",
        "Scale the map from state to state (orthogonal, gain 1), use gates (LSTM, GRU), clip, or shorten the sequence.",
        numbers={"forward_growth": forward, "backward_growth": backward},
    )


FAULT = Fault("recurrent", "initialization", 105, rule=recurrent, harmless=True)
