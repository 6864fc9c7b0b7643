"""It does not even learn one batch by heart."""

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.faults.labels import NOTHING, contrast_of, numbers, tested
from normscope.diagnosis.finding import Finding
from normscope.diagnosis.learnability import FITS_ONE_BATCH
from normscope.statistics.numbers import percent


def stuck(evidence: xr.Dataset) -> Finding | None:
    """It does not even learn one batch by heart."""
    one, contrast = float(evidence["one_batch"]), contrast_of(evidence)
    if not one >= FITS_ONE_BATCH or contrast.saved >= NOTHING or not contrast.is_chance:
        return None
    test = f" Nor does it learn from many batches what holds on others: {tested(contrast)}."
    return Finding(
        "stuck",
        "it hardly learns",
        f"After {float(evidence['trial_steps']):.0f} steps on one and the same batch, at the best of several rates, "
        f"{percent(one)} of its loss is left.{test if numbers(contrast) else ''}",
        "Look at the loss and the targets; try more steps, another initialization, or norms.",
        numbers={"one_batch": one, **numbers(contrast)},
    )


FAULT = Fault("stuck", "architecture", 121, rule=stuck, last=True)
