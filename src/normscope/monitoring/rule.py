"""The one rule that warns: a logistic regression on the numbers of `Outlook`, fitted by `benchmarks.early_warning`.

    p = 1 / (1 + exp(−(offset + Σ weight · number)))

is the share of steps like this one, of the fitted runs, that came shortly before a divergence or in a loss that had
left its minimum for good. A warning is given where p is above `THRESHOLD` at `PATIENCE` steps in a row. Only what is
free at every step has a weight: the measured numbers did not make the fitted rule any better.
"""

import math
from collections.abc import Mapping

WEIGHTS: Mapping[str, float] = {
    "loss_rise": 1.76,
    "gradient_trend": 0.03,
    "gradient_spike": 0.07,
    "lr_trend": 0.7,
}
"""By the names of `outlook.FEATURES`; the others have none."""

OFFSET = -1.13

THRESHOLD = 0.905

PATIENCE = 12

AHEAD = 200

PRECISION = 0.96
"""Of the fitted runs that were warned of, the share whose loss diverged or ended above twice its minimum: 71 of 74."""

TO_DO = {
    "lr_trend": "stop raising the rate",
    "gradient_trend": "clip the gradient's norm, or lower the rate",
    "gradient_spike": "clip the gradient's norm, or lower the rate",
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
