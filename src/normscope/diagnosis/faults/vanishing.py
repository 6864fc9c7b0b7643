"""The signal dies on its way through the network, forwards or backwards."""

import math

import numpy as np
import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.faults.dead_layer import silent_units
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import number

VANISHED_SPREAD = 1e-3
"""Outputs say the same whatever the network sees where their spread is below this share of their size."""

VANISHED_GRADIENT = 1e-4
"""Gradients vanish where the first layer's is this much smaller than the last one's."""


def gradient_ratio(sizes: xr.DataArray) -> float:
    """The first layer's gradient over the last one's; NaN where there are no two, or the last one has none."""
    known = sizes.dropna("layer").values
    return float(known[0] / known[-1]) if len(known) > 1 and known[-1] > 0 else math.nan


def vanishing(evidence: xr.Dataset) -> Finding | None:
    """Neither inputs get to the output nor gradients to the first layer, though no layer cuts them off. Looked at again
    some steps later, when a last layer that starts at zero has woken up."""
    ratio = float(np.fmax(gradient_ratio(evidence["gradient_size"]), gradient_ratio(evidence["gradient_size_later"])))
    spread = float(np.fmax(evidence["output_spread"], evidence["output_spread_later"]))
    cut = bool((silent_units(evidence) == 1).any())
    if cut or not (ratio < VANISHED_GRADIENT or spread < VANISHED_SPREAD):
        return None
    return Finding(
        "vanishing",
        "the signal dies on its way through the network",
        f"Outputs differ between examples by {number(spread)} of their size, and the first layer's gradient is "
        f"{number(ratio)} times the last one's: the lower layers cannot learn at any rate.",
        "Use an initialization that keeps sizes (kaiming_normal, orthogonal), shortcuts, or norms.",
        numbers={"output_spread": spread, "gradient_ratio": ratio},
    )


FAULT = Fault("vanishing", "initialization", 103, rule=vanishing, harmless=True)
