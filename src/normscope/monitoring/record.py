"""What a watch has seen, as one labelled Dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from normscope.monitoring.alarm import Alarm
from normscope.monitoring.measurement import PER_LAYER, SCALARS, Measurement
from normscope.monitoring.signals import FreeStep
from normscope.results import Coordinate, Variable, labelled

FREE = {
    "loss": ("loss of the training", "1"),
    "gradient_norm": ("norm of the gradient as the optimizer is given it", "1"),
    "lr": ("learning rate", "1"),
}
"""What is known of every step."""


def record_of(
    steps: Sequence[FreeStep], measurements: Sequence[Measurement], alarms: Sequence[Alarm], **attrs: Any
) -> xr.Dataset:
    """The Dataset that `Watch.record` describes."""
    variables: dict[str, Variable] = {
        name: ("step", np.array([getattr(each, name) for each in steps], dtype=np.float64), *label)
        for name, label in FREE.items()
    }
    looked = np.array([each.looked_at for each in steps], dtype=bool)
    variables["gradient_seen"] = ("step", looked, "whether the gradient's norm was looked at", "1")
    layers = list(dict.fromkeys(layer for each in measurements for layer in each.layers))
    for name, label in SCALARS.items():
        if any(name in each.scalars for each in measurements):
            values = [each.scalars.get(name, np.nan) for each in measurements]
            variables[name] = ("measurement", np.array(values, dtype=np.float64), *label)
    for name, label in PER_LAYER.items():
        if any(name in each.per_layer for each in measurements):
            rows = [
                dict(zip(e.layers, e.per_layer[name], strict=True)) if name in e.per_layer else {} for e in measurements
            ]
            table = np.array([[row.get(layer, np.nan) for layer in layers] for row in rows], dtype=np.float64)
            variables[name] = (("measurement", "layer"), table.reshape(len(measurements), len(layers)), *label)
    seen = np.array([[layer in set(e.layers) for layer in layers] for e in measurements], dtype=bool)
    variables["called"] = (
        ("measurement", "layer"),
        seen.reshape(len(measurements), len(layers)),
        "whether the layer was called",
        "1",
    )
    coords: dict[str, Coordinate] = {
        "step": (np.array([each.step for each in steps], dtype=np.int64), "step", "1"),
        "measurement": (np.array([e.step for e in measurements], dtype=np.int64), "step of the measurement", "1"),
        "layer": (np.array(layers, dtype=np.str_), "layer", "1"),
    }
    return labelled(variables, coords, alarms=[vars(alarm) for alarm in alarms], **attrs)
