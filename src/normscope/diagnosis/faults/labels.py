"""The model learns, but nothing that holds on other batches."""

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import percent

FITS_ONE_BATCH = 0.7
"""A model that can learn brings the loss on one batch below this share in a few steps on nothing else."""

NOTHING_HOLDS, PERHAPS_NOTHING = 0.03, 0.1
"""Labels tell nothing where those of unseen batches are predicted no better than permuted ones: by less than the first
share of the loss, or by less than the second ..."""

STANDARD_ERRORS = 3.0
"""... and by less than this many standard errors."""


def labels(evidence: xr.Dataset) -> Finding | None:
    """The model learns, but nothing that holds on other batches."""
    one, contrast = float(evidence["one_batch"]), float(evidence["contrast"])
    unsure = contrast < PERHAPS_NOTHING and contrast < STANDARD_ERRORS * float(evidence["contrast_error"])
    if not (one < FITS_ONE_BATCH and (contrast < NOTHING_HOLDS or unsure)):
        return None
    return Finding(
        "labels",
        "the labels tell nothing about the inputs",
        f"The model learns one batch by heart ({percent(one)} of the loss is left), but nothing that it learns from "
        f"many holds on others: there the right labels save {percent(max(contrast, 0.0))} of the loss against permuted "
        "ones.",
        "Do inputs and labels belong together, or were they shuffled or shifted?",
        numbers={"one_batch": one, "contrast": contrast},
    )


FAULT = Fault("labels", "labels", 120, rule=labels, last=True)
