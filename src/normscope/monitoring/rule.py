"""The one rule that warns: a logistic regression on the numbers of `Outlook`, fitted by `benchmarks.early_warning`.

    p = 1 / (1 + exp(−(offset + Σ weight · number)))

is the share of steps like this one after which a fitted run diverged within `AHEAD` steps. A warning is given where p
is above `THRESHOLD` at `PATIENCE` steps in a row.
"""

import math
from collections.abc import Mapping

WEIGHTS: Mapping[str, float] = {
    "loss_rise": 1.39,
    "loss_trend": 0.257,
    "gradient_rise": 0.266,
    "gradient_trend": 0.186,
    "lr_trend": 1.231,
    "lr_rise": 0.239,
    "overshoot_1": 2.786,
}
"""By the names of `outlook.FEATURES`; the others have none."""

OFFSET = -2.262

THRESHOLD = 0.94

PATIENCE = 8

AHEAD = 200

PRECISION = 0.67
"""Of the fitted runs that are healthy or diverged, the share of those warned of that did diverge within `AHEAD` steps:
4 of 6, so few that it is no more than a guess."""

TO_DO = {
    "lr_trend": "stop raising the rate",
    "lr_rise": "stop raising the rate",
    "adam_lag": "lower beta2, or clip the gradient's norm",
    "gradient_rise": "clip the gradient's norm, or lower the rate",
    "gradient_trend": "clip the gradient's norm, or lower the rate",
    "gradient_spike": "clip the gradient's norm, or lower the rate",
    "activation_rise": "lower the rate, or put a norm in front of that layer",
    "logit_rise": "lower the rate, or put a norm in front of the last layer",
}
"""What to do by what speaks most for the warning; else `LOWER`."""

LOWER = "lower the rate, or warm up longer"


def probability(features: Mapping[str, float]) -> float:
    """p, from the numbers by the names of `outlook.FEATURES`."""
    score = OFFSET + sum(weight * features[name] for name, weight in WEIGHTS.items())
    return 1 / (1 + math.exp(-min(max(score, -50.0), 50.0)))


def leading(features: Mapping[str, float], count: int = 2) -> list[str]:
    """The names of the numbers that speak most for a warning, the strongest first."""
    parts = {name: weight * features[name] for name, weight in WEIGHTS.items()}
    return [name for name in sorted(parts, key=lambda name: -parts[name])[:count] if parts[name] > 0]
