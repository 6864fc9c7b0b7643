"""It does not even learn one batch by heart."""

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.faults.labels import FITS_ONE_BATCH, PERHAPS_NOTHING
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import percent


def stuck(evidence: xr.Dataset) -> Finding | None:
    """It does not even learn one batch by heart."""
    one, contrast = float(evidence["one_batch"]), float(evidence["contrast"])
    if not one >= FITS_ONE_BATCH or contrast >= PERHAPS_NOTHING:
        return None
    return Finding(
        "stuck",
        "it hardly learns",
        f"After {float(evidence['trial_steps']):.0f} steps on one and the same batch, at the best of several rates, "
        f"{percent(one)} of its loss is left.",
        "Look at the loss and the targets; try more steps, another initialization, or norms.",
        numbers={"one_batch": one, "contrast": contrast},
    )


FAULT = Fault("stuck", "architecture", 121, rule=stuck, last=True)
