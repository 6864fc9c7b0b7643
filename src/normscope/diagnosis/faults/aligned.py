"""All examples push the output the same way."""

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import percent

ALIGNED_SHARE, ALIGNED_COSINE, ALIGNED_EXCESS = 0.9, 0.3, 1.0
"""Output gradients are aligned where this share of the examples gets one class, two examples' gradients have this
cosine on average, and the loss starts this many nats above that of the best constant output."""


def aligned(evidence: xr.Dataset) -> Finding | None:
    """All examples push the output the same way."""
    share, cosine = float(evidence["commonest_share"]), float(evidence["mean_cosine"])
    excess = float(evidence["start_loss"]) - float(evidence["constant_loss"])
    if not (share >= ALIGNED_SHARE and cosine >= ALIGNED_COSINE and excess >= ALIGNED_EXCESS):
        return None
    return Finding(
        "aligned",
        "output gradients are aligned on one class",
        f"{percent(share)} of a batch gets the same class, and two examples' gradients at the output have cosine "
        f"{cosine:.2f} on average: they add up instead of cancelling.",
        "A norm in front of the last layer spreads the outputs.",
        numbers={"commonest_share": share, "mean_cosine": cosine},
    )


FAULT = Fault("aligned", "architecture", 109, rule=aligned, harmless=True)
