"""What was found in a model, decided from what was measured of it, in the order of the faults. No torch.

Faults stand in the order in which causes hide effects: a dead layer also silences all gradients below it, and a summed
loss also makes the step that diverges shorter.
"""

import math
from dataclasses import replace

import xarray as xr

from normscope.diagnosis.fault import faults
from normscope.diagnosis.faults.exploding import STEEP
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import number


def symptoms(evidence: xr.Dataset, *, last: bool = False) -> list[Finding]:
    """What the evidence alone shows, the cause before its effects.

    Args:
        last: what is judged only of a model that has nothing else wrong: one that cannot learn says nothing of its
            labels.
    """
    asked = [fault for fault in faults() if fault.rule is not None and fault.last is last]
    found = [(fault, fault.rule(evidence)) for fault in asked if fault.rule is not None]
    return [replace(finding, category=fault.category) for fault, finding in found if finding is not None]


def findings(evidence: xr.Dataset) -> list[Finding]:
    """All that the evidence shows; last, unless activations explode, what limits the rates beside it, which is no
    fault."""
    found = symptoms(evidence) or symptoms(evidence, last=True)
    return found if any(f.name == "exploding" for f in found) else [*found, curvature(evidence)]


def curvature(evidence: xr.Dataset) -> Finding:
    """What ends the stable rates of a network without an explosion."""
    diverging, steepness = float(evidence["diverging_lr"]), float(evidence["steepness"])
    sharpness, title = float(evidence["sharpness"]), "curvature limits the rates"
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
        steep = steepness >= STEEP
        how = (
            ", steeper than by curvature alone: layers or an exponential multiply along the step."
            if steep
            else " only. That is curvature, which limits every network, and no explosion."
        )
        title = "growth along the step limits the rates" if steep else title
        sentence = (
            f"Long steps overshoot: at rate {number(diverging)} a single one makes the loss a thousand times its "
            f"start, and on the way there it grows with power {steepness:.1f} of the rate{how}{sharp}"
        )
    return Finding("curvature", title, sentence, "", False, {"steepness": steepness, "sharpness": sharpness})
