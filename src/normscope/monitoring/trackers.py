"""What a watch saw as scalars with names with slashes, for any tracker.

`normscope/loss`, `normscope/critical_multiple`, `normscope/activation_size/layer1.0.conv1`, ...
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from normscope.errors import InvalidConfig
from normscope.monitoring.measurement import Measurement

PREFIX = "normscope"


@runtime_checkable
class SummaryWriter(Protocol):
    """TensorBoard's."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Add one number."""
        ...


@runtime_checkable
class GeneralTracker(Protocol):
    """Of the shape of accelerate's: W&B, MLflow, Aim, trackio and others come so."""

    def log(self, values: dict[str, float], step: int) -> Any:
        """Log some numbers."""
        ...


Tracker = SummaryWriter | GeneralTracker


def scalars_of(measurement: Measurement) -> dict[str, float]:
    """The numbers of a measurement by name; what is not finite too."""
    found = {f"{PREFIX}/{name}": float(value) for name, value in measurement.scalars.items()}
    for name, values in measurement.per_layer.items():
        found |= {f"{PREFIX}/{name}/{layer}": v for layer, v in zip(measurement.layers, values.tolist(), strict=True)}
        if len(values) and not np.isnan(values).all():
            found[f"{PREFIX}/{name}/largest"] = float(np.nanmax(values))
    return found


def check_tracker(tracker: Any) -> None:
    """Refuse what is no tracker.

    Raises:
        InvalidConfig: neither `add_scalar` nor `log`.
    """
    if not isinstance(tracker, SummaryWriter | GeneralTracker):
        raise InvalidConfig(
            f"a tracker has add_scalar(tag, value, step) or log(values, step); a {type(tracker).__name__} has neither"
        )


def track(tracker: Tracker, values: Mapping[str, float], step: int) -> None:
    """Give a tracker these numbers."""
    if isinstance(tracker, SummaryWriter):
        for name, value in values.items():
            tracker.add_scalar(name, value, step)
    else:
        tracker.log(dict(values), step=step)


def alarm_value(confidence: float) -> dict[str, float]:
    """An alarm as a number: its confidence."""
    return {f"{PREFIX}/alarm": confidence if math.isfinite(confidence) else 1.0}
