"""Many units of a layer never learn, but not all."""

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.faults.dead_layer import DEAD_LAYER, dead, silent_units
from normscope.diagnosis.finding import Finding

DEAD_UNITS = 0.6
"""A layer is dead, or dead in large part, where this share of its units has no gradient, at the start and some steps
later."""


def dead_units(evidence: xr.Dataset) -> Finding | None:
    """Many units of a layer never learn, but not all."""
    silent = silent_units(evidence)
    if (silent.values >= DEAD_LAYER).any():
        return None
    return dead(silent, silent.values >= DEAD_UNITS)


FAULT = Fault("dead", "initialization", 110, rule=dead_units)
