"""What the signals so far say about the steps to come, as a few numbers that mean the same in every training.

All are logarithms of ratios: to the run's own past, to the step's own length. The rule of `alarm` weighs them.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

SHORT, LONG = 5, 50
"""Steps that a short mean and a trend look back."""

FEATURES = {
    "loss_rise": "mean loss of the last steps over its running minimum",
    "loss_trend": "growth of the loss over the last fifty steps",
    "gradient_rise": "mean gradient norm of the last steps over its running median",
    "gradient_trend": "growth of the gradient norm over the last fifty steps",
    "gradient_spike": "largest of the last gradient norms over their median",
    "lr_trend": "growth of the rate over the last fifty steps",
    "lr_rise": "the rate over that of the first measurement",
    "overshoot_1": "loss after the next step over the loss before",
    "overshoot_4": "loss after four times the next step over the loss before",
    "closeness": "one over the critical multiple",
    "closeness_trend": "its growth from measurement to measurement, in fifty steps",
    "activation_rise": "largest activation size of a layer over that at the first measurement",
    "logit_rise": "largest output over that at the first measurement",
    "update_to_weight": "largest update of a layer over its weights",
    "adam_lag": "gradient over Adam's second moment, in the layer where it lags most",
}
"""Each number's name and what it is the natural logarithm of."""

LIMIT = 7.0
"""No number is larger in size: e⁷ is about a thousand."""

SMALLEST_MULTIPLE = 1 / 16
"""A critical multiple below this counts as this."""


class Outlook:
    """Takes the signals in the order of the steps."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=SHORT)
        """The last losses."""
        self.losses: deque[float] = deque(maxlen=LONG)
        self.norms: deque[float] = deque(maxlen=LONG)
        self.rates: deque[float] = deque(maxlen=LONG)
        """Logarithms."""
        self.first_loss = self.lowest = math.nan
        self.measured: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=3)
        self.first: Mapping[str, float] | None = None
        self.step = -1

    def see(self, step: int, loss: float, gradient_norm: float, lr: float) -> None:
        """One step's free signals."""
        self.step = step
        self.recent.append(loss)
        self.losses.append(_log(loss))
        self.rates.append(_log(lr))
        if not math.isnan(gradient_norm):
            self.norms.append(_log(gradient_norm))
        if math.isnan(self.first_loss):
            self.first_loss = loss
        if len(self.recent) == SHORT:
            recent = sum(self.recent) / SHORT
            if not recent >= self.lowest and math.isfinite(recent):
                self.lowest = recent

    def measure(self, step: int, scalars: Mapping[str, float], per_layer: Mapping[str, Sequence[float] | Any]) -> None:
        """What was measured at a step."""
        found = {
            "overshoot_1": _log(scalars["relative_loss_1"]),
            "overshoot_4": _log(scalars["relative_loss_4"]),
            "closeness": -_log(max(scalars["critical_multiple"], SMALLEST_MULTIPLE)),
            "activation": _largest(per_layer["activation_size"]),
            "logit": _log(scalars.get("output_logit", 1.0)),
            "update_to_weight": _largest(per_layer["update_to_weight"]),
            "adam_lag": _largest(per_layer.get("adam_lag", ())),
            "lr": self.rates[-1] if self.rates else 0.0,
        }
        self.first = self.first or found
        self.measured.append((step, found))

    def features(self) -> dict[str, float]:
        """The numbers by the names of `FEATURES`; what is not known is 0, the value that says nothing."""
        losses, norms = list(self.losses), list(self.norms)
        values = dict.fromkeys(FEATURES, 0.0)
        if len(losses) >= SHORT:
            level = max(self.lowest, 0.02 * self.first_loss)  # below that a loss is noise
            values["loss_rise"] = max(0.0, fmean(losses[-SHORT:]) - _log(level))
            values["loss_trend"] = _growth(losses)
        if len(norms) >= 2 * SHORT:
            middle = median(norms)
            values["gradient_rise"] = fmean(norms[-SHORT:]) - middle
            values["gradient_spike"] = max(norms[-SHORT:]) - middle
            values["gradient_trend"] = _growth(norms)
        if len(self.rates) > 1 and self.rates[0] > -3 * LIMIT:
            values["lr_trend"] = self.rates[-1] - self.rates[0]
        if self.first is not None:
            step, last = self.measured[-1]
            for name in ("overshoot_1", "overshoot_4", "closeness"):
                values[name] = median(found[name] for _, found in self.measured)
            for name in ("update_to_weight", "adam_lag"):
                values[name] = last[name]
            values["activation_rise"] = last["activation"] - self.first["activation"]
            values["logit_rise"] = last["logit"] - self.first["logit"]
            values["lr_rise"] = (self.rates[-1] if self.rates else 0.0) - self.first["lr"]
            earlier, before = self.measured[0]
            if step > earlier:
                values["closeness_trend"] = (last["closeness"] - before["closeness"]) * LONG / (step - earlier)
        return {name: min(max(value, -LIMIT), LIMIT) for name, value in values.items()}


def _log(value: float) -> float:
    """The natural logarithm within ±`LIMIT` · 3; what is not finite is the largest, what is not positive the smallest,
    and what was not measured 0."""
    if math.isnan(value):
        return 3 * LIMIT
    return min(max(math.log(value) if value > 0 else -3 * LIMIT, -3 * LIMIT), 3 * LIMIT)


def _largest(values: Any) -> float:
    """The logarithm of the largest; 0 where nothing was measured."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or np.isnan(array).all():
        return 0.0
    return _log(float(np.where(np.isnan(array), 0, array).max()))


def _growth(values: Sequence[float]) -> float:
    """How much the later half's mean is above the earlier half's, doubled: of a straight line its growth."""
    half = len(values) // 2
    return 2 * (fmean(values[half:]) - fmean(values[:half])) if half >= SHORT else 0.0
