"""The changes that a step makes in many layers multiply, or sizes have multiplied before any step."""

import math

import numpy as np
import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import number

STEEP = 7.5
"""Changes of this many layers multiply: with norms the loss rises with power 1 to 2 of the rate, in an unnormalized
network of three layers with power 3, in ResNet-8 without norm with 5 to 7, in ResNet-20 with 8 to 11, in ResNet-56 with
9 to 15."""

STARTS_EXPLODED = 30.0
"""Before any step, the last quarter of the layers has outputs this much larger than the first, ..."""

EXPLODED_LAYERS = 8
"""... in a network of this many layers or more."""

ORIGIN_NATS = 1.0
"""An explosion starts at the layer from which on sizes have grown by this much along the step."""


def exploding(evidence: xr.Dataset) -> Finding | None:
    """The changes that a step makes in many layers multiply, or sizes have multiplied before any step."""
    steepness, start = float(evidence["steepness"]), start_growth(evidence)
    if not (steepness >= STEEP or start >= STARTS_EXPLODED):
        return None
    origin, last, per_layer, growth = explosion(evidence)
    diverging = float(evidence["diverging_lr"]) / float(evidence["amplification"])
    multiply = f": the changes of about {steepness:.0f} layers multiply" if steepness >= STEEP else ""
    before = (
        f" Before any step the last layers are {number(start)} times the first." if start >= STARTS_EXPLODED else ""
    )
    return Finding(
        "exploding",
        "activations explode along the step",
        f"A step at rate {number(diverging)} makes activations grow from layer {origin} on, {per_layer:.3g} times a "
        f"layer, to {number(growth)} times at layer {last}{multiply}.{before}",
        "Norms (everywhere, or at least before the last layer) or a zero-residual initialization stop the product.",
        numbers={"steepness": steepness, "start_growth": start, "growth": growth, "growth_per_layer": per_layer},
    )


def start_growth(evidence: xr.Dataset) -> float:
    """How much larger outputs are in the last quarter of the main path than in the first before any step, by their
    medians; 1 where there are too few layers."""
    sizes = evidence["size"].where(evidence["depth"].notnull(), drop=True).values
    if len(sizes) < EXPLODED_LAYERS:
        return 1.0
    quarter = len(sizes) // 4
    first, last = np.median(sizes[:quarter]), np.median(sizes[-quarter:])
    return float(last / first) if first > 0 else math.nan


def explosion(evidence: xr.Dataset) -> tuple[str, str, float, float]:
    """From which layer on sizes grow along the diverging step, the last layer, the factor a layer between them, and the
    factor in all."""
    main = evidence.sel(layer=evidence["depth"].notnull())
    along = main["size_along_step"]
    with np.errstate(divide="ignore", invalid="ignore"):
        nats = np.log(along.isel(fraction=-1).values / along.isel(fraction=0).values)
    names, nats = main["layer"].values, np.where(np.isfinite(nats), nats, 0.0)
    below = np.flatnonzero(nats < ORIGIN_NATS)
    first = min(int(below[-1]) + 1 if len(below) else 0, len(nats) - 1)
    at_origin = nats[first - 1] if first else 0.0
    per_layer = np.exp((nats[-1] - at_origin) / (len(nats) - first))
    return str(names[first]), str(names[-1]), float(per_layer), float(np.exp(nats[-1]))


FAULT = Fault("exploding", "architecture", 106, rule=exploding)
