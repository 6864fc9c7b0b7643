"""The loss jumps to infinity along a step without having grown before: a log of a probability that has become 0, an
exp, the end of float16's range. Curvature or an explosion make it grow first."""

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.faults.number_range import number_range
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import number

LAST_FINITE = 100.0
"""A loss that grew as far as this, relative to its start, did not jump."""


def overflow(evidence: xr.Dataset) -> Finding | None:
    """The step that diverges overflows, and no shorter one makes the loss large."""
    curve = evidence["relative_loss"].values
    finite = curve[: int((~(curve < float("inf"))).argmax())] if bool(evidence["overflows"]) else curve[:0]
    largest = float(finite.max(initial=0.0))
    if not len(finite) or largest > LAST_FINITE or number_range(evidence) is not None:
        return None
    lr = float(evidence["diverging_lr"])
    return Finding(
        "overflow",
        "the loss overflows without having grown",
        f"A single step at rate {number(lr)} makes the loss infinite or NaN, while no shorter one made it more than "
        f"{number(largest)} times its start: that is no curvature but a number out of range, such as log(0), or exp of "
        "a large number.",
        "Compute the loss from logits (cross_entropy, log_softmax, binary_cross_entropy_with_logits), and clamp what "
        "goes into log.",
        numbers={"diverging_lr": lr, "largest_relative_loss": largest},
    )


FAULT = Fault("overflow", "numerics", 99, rule=overflow, grave=True)
