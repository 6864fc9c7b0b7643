"""The loss is a sum over the batch."""

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding

EXTENSIVE = 1.5
"""On a batch taken twice a mean's loss is 1 times, a sum's 2 times that on the batch."""


def is_summed(evidence: xr.Dataset) -> bool:
    """Whether the loss is a sum over the batch."""
    return float(evidence["extensivity"]) > EXTENSIVE


def summed_loss(evidence: xr.Dataset) -> Finding | None:
    """The loss grows with the number of examples."""
    extensivity = float(evidence["extensivity"])
    if not is_summed(evidence):
        return None
    return Finding(
        "summed",
        "the loss is a sum over the batch",
        f"The same batch taken twice gives {extensivity:.2g} times the loss: gradients, and with them the rates, "
        "depend on the batch size.",
        "Take the mean over examples, as with reduction='mean'; rates then grow by the batch size.",
        numbers={"extensivity": extensivity},
    )


FAULT = Fault("summed", "loss", 100, rule=summed_loss)
