"""The alarm that divergence lies ahead, in words."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from normscope.monitoring.alarm import Alarm
from normscope.monitoring.measurement import Measurement
from normscope.monitoring.outlook import FEATURES
from normscope.monitoring.rule import LOWER, PATIENCE, PRECISION, TO_DO, leading
from normscope.statistics.numbers import number

GROWN = 2.0
"""The layer whose activations grew most is named where they are this many times as large as at first."""


def warning(step: int, features: Mapping[str, float], measurements: Sequence[Measurement]) -> Alarm:
    """What speaks for it most by the rule, and what the measurements so far add to that."""
    names = leading(features)
    layer, seen = "", "; ".join(f"{FEATURES[name]} is {number(math.exp(features[name]))}" for name in names)
    if measurements:
        layer, grown = most_grown(measurements[0], measurements[-1])
        if layer:
            seen += f"; the activations of {layer} grew most, {number(grown)} times until the last measurement"
        critical = measurements[-1].scalars["critical_multiple"]
        if math.isfinite(critical):
            longer = f"could have been {number(critical)} times longer" if critical else "raised the loss at once"
            seen += f"; at the last measurement the next step {longer}"
    to_do = TO_DO.get(names[0], LOWER) if names else LOWER
    since = max(0, step - PATIENCE + 1)
    told = "divergence ahead, or a loss that does not come back"
    return Alarm(
        step, "divergence ahead", layer, f"step {step}: {told}, since step {since}: {seen}. To do: {to_do}.", PRECISION
    )


def most_grown(first: Measurement, last: Measurement) -> tuple[str, float]:
    """The layer whose activations grew most, and how many times; no layer where none grew to `GROWN` times its size."""
    if first.layers != last.layers or not last.layers:
        return "", math.nan
    with np.errstate(all="ignore"):
        grown = np.nan_to_num(last.per_layer["activation_size"] / first.per_layer["activation_size"], nan=0.0)
    most = int(grown.argmax())
    return (last.layers[most], float(grown[most])) if grown[most] >= GROWN else ("", math.nan)
