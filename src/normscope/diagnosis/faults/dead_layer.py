"""A layer lets no gradient through."""

import numpy as np
import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import percent

DEAD_LAYER = 0.95
"""A layer is dead, or dead in large part, where this share of its units has no gradient, at the start and some steps
later."""


def silent_units(evidence: xr.Dataset) -> xr.DataArray:
    """The share of units without a gradient both at the start and some steps later, (layer,), where it was measured."""
    both = xr.ufuncs.minimum(evidence["silent_share"], evidence["silent_share_later"])
    return both.dropna("layer")


def dead_layer(evidence: xr.Dataset) -> Finding | None:
    """A layer lets no gradient through."""
    silent = silent_units(evidence)
    return dead(silent, silent.values >= DEAD_LAYER)


def dead(silent: xr.DataArray, chosen: np.ndarray) -> Finding | None:
    """About the last such layer: those below it are silent because nothing comes back through it."""
    if not chosen.any():
        return None
    place = int(np.flatnonzero(chosen)[-1])
    layer, share = str(silent["layer"].values[place]), float(silent.values[place])
    silenced = int((silent.values[:place] == 1).sum())
    behind = f" No gradient gets past it: {silenced} earlier layers are silent too." if share == 1 and silenced else ""
    return Finding(
        "dead",
        "units are dead",
        f"{percent(share)} of the units of layer {layer} get no gradient from any example, at the start and some steps "
        f"later.{behind}",
        f"Look at bias and scale of layer {layer} and at what follows it; a norm behind it, or a smaller rate, keeps "
        "units alive.",
        numbers={"silent_share": share},
    )


FAULT = Fault("dead", "initialization", 104, rule=dead_layer, harmless=True, grave=True)
