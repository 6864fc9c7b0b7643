"""Many units of a layer never learn, but not all."""

from dataclasses import replace

import numpy as np
import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.faults.dead_layer import DEAD_LAYER, dead, silent_units
from normscope.diagnosis.finding import Finding

DEAD_UNITS = 0.6
"""A layer is dead, or dead in large part, where this share of its units has no gradient, at the start and some steps
later."""


FEW = 16
"""Fewer units than this are a gate beside the path, such as of squeeze and excitation: there chance alone silences
most."""


def dead_units(evidence: xr.Dataset) -> Finding | None:
    """Many units of a layer never learn, but not all."""
    silent = silent_units(evidence)
    if (silent.values >= DEAD_LAYER).any():
        return None
    few = evidence["units"].sel(layer=silent["layer"]).values < FEW if "units" in evidence else False
    found = dead(silent, (silent.values >= DEAD_UNITS) & ~np.asarray(few))
    return None if found is None else replace(found, name="dead_units")


FAULT = Fault("dead_units", "initialization", 110, rule=dead_units, harmless=True)
