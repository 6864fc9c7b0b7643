"""What was found in a model, decided from what was measured of it: which rules there are and in which order. No torch.

Rules stand in the order in which causes hide effects: a dead layer also silences all gradients below it, and a summed
loss also makes the step that diverges shorter.
"""

import math
from collections.abc import Callable

import xarray as xr

from normscope.diagnosis.faults.network import (
    aligned,
    dead_layer,
    dead_units,
    exploding,
    oversized_layer,
    recurrent,
    saturated,
    vanishing,
)
from normscope.diagnosis.faults.set_up import batch_noise, frozen, labels, stuck, summed_loss, unscaled_inputs
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import number

Rule = Callable[[xr.Dataset], Finding | None]

RULES: tuple[Rule, ...] = (
    summed_loss,
    frozen,
    unscaled_inputs,
    oversized_layer,
    vanishing,
    dead_layer,
    recurrent,
    exploding,
    batch_noise,
    saturated,
    aligned,
    dead_units,
)
"""In the order in which what they find is told: causes before effects."""

LAST_RULES: tuple[Rule, ...] = (labels, stuck)
"""What can only be judged of a model that has nothing else wrong: one that cannot learn says nothing of its labels."""


def faults(evidence: xr.Dataset) -> list[Finding]:
    """What is wrong, the cause before its effects, but for what only short descents can show."""
    return [finding for rule in RULES if (finding := rule(evidence)) is not None]


def findings(evidence: xr.Dataset) -> list[Finding]:
    """All faults that the evidence shows, the cause before its effects; last, unless activations explode, what limits
    the rates beside them, which is no fault."""
    found = faults(evidence)
    found = found or [finding for rule in LAST_RULES if (finding := rule(evidence)) is not None]
    return found if any(f.name == "exploding" for f in found) else [*found, curvature(evidence)]


def curvature(evidence: xr.Dataset) -> Finding:
    """What ends the stable rates of a network without an explosion."""
    diverging, steepness = float(evidence["diverging_lr"]), float(evidence["steepness"])
    sharpness = float(evidence["sharpness"])
    sharp = f" The sharpest direction has curvature {number(sharpness)}." if sharpness > 0 else ""
    if not math.isfinite(diverging):
        sentence = (
            f"No single step makes the loss diverge, however long: what limits the rates builds up over steps.{sharp}"
        )
    elif bool(evidence["overflows"]):
        sentence = (
            f"A single step overflows at rate {number(diverging)}, and no shorter one makes the loss explode.{sharp}"
        )
    else:
        sentence = (
            f"Long steps overshoot: at rate {number(diverging)} a single one makes the loss a thousand times its "
            f"start, and on the way there it grows with power {steepness:.1f} of the rate only. That is curvature, "
            f"which limits every network, and no explosion.{sharp}"
        )
    numbers = {"steepness": steepness, "sharpness": sharpness}
    return Finding("curvature", "curvature limits the rates", sentence, "", False, numbers)
