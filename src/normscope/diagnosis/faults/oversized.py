"""One layer multiplies its input by far more than the others."""

import numpy as np
import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import number

RESIZING_GAIN = 10.0
"""A layer of outsized gain is at fault where the rate at which a step diverges grows by this factor once its weights
are scaled down."""


def oversized_layer(evidence: xr.Dataset) -> Finding | None:
    """One layer multiplies its input by far more than the others, and that shortens the steps."""
    gain, layer = float(evidence["resizing_gain"]), str(evidence["resized_layer"].values)
    if not gain >= RESIZING_GAIN:
        return None
    gains = evidence["gain"].where(np.isfinite(evidence["gain"]) & (evidence["gain"] > 0))
    ratio = float(gains.sel(layer=layer) / gains.median())
    return Finding(
        "oversized",
        "one layer is far too large",
        f"Layer {layer} makes its input {number(ratio)} times larger than the other layers do; scaled down to them, a "
        f"step may be {number(gain)} times as long before it diverges.",
        f"Look at how layer {layer} is initialized, or put a norm behind it.",
        numbers={"resizing_gain": gain, "gain_over_median": ratio},
    )


FAULT = Fault("oversized", "initialization", 102, rule=oversized_layer)
