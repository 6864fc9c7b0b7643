"""What an example gives depends on chance, on who shares its batch."""

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import percent

BATCH_NOISE = 0.75
"""An example's output moves by this share of the outputs' spread with its batch. With batch norm in three layers it is
about 0.4 on 32 examples, 0.9 on 4; in ResNet-110 it is 0.5 on 128 and 0.7 on 32."""


def batch_noise(evidence: xr.Dataset) -> Finding | None:
    """What an example gives depends on chance, on who shares its batch."""
    coupling = float(evidence["coupling"])
    if not coupling >= BATCH_NOISE:
        return None
    return Finding(
        "batch_noise",
        "examples depend on who shares their batch",
        f"An example's output moves by {percent(coupling)} of the outputs' spread with the rest of its batch: batches "
        "are too small for the statistics taken over them.",
        "Give larger batches, or a norm of one example in place of batch norm: group, layer or rms.",
        numbers={"coupling": coupling},
    )


FAULT = Fault("batch_noise", "batch_size", 107, rule=batch_noise)
