"""What `check --quick` says: the rates predicted from ten passes, in words."""

import math
import textwrap
from collections.abc import Sequence

import xarray as xr

from normscope.statistics.numbers import number

HELD = "about 2 of 3 of these intervals hold"
"""Measured by `benchmarks.predicted_rates`: 64 % of the stable rates, 72 % of those to train at."""


def quick_answer(predicted: xr.Dataset, *, model: str, data: str, width: int = 79) -> str:
    """The Dataset of `predict_lr` in a few sentences, each from a line of its own."""
    attrs = predicted.attrs
    lines = [f"{model} on {data}: {int(attrs['parameters']):,} parameters, {attrs['optimizer']}"]
    tried = f"Predicted from one mini-batch; on other kinds of networks than those fitted, {HELD}."
    if not bool(predicted["known"]):
        lines.append(f"The rates cannot be told from initialization: {predicted['reason'].item()}.")
        return _wrapped(lines, width)
    lines += [
        f"Train at about {about(predicted, 'lr_recommended')}.",
        f"Training is stable up to about {about(predicted, 'lr_stable')}.",
    ]
    if not math.isnan(probability := float(predicted["diverges"])):
        lines.append(f"Your rate {attrs['lr']} diverges with a probability of {100 * probability:.0f} %.")
    return _wrapped([*lines, tried], width)


def _wrapped(lines: Sequence[str], width: int) -> str:
    return "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in lines)


def about(predicted: xr.Dataset, name: str) -> str:
    """A rate with its interval."""
    low, high = (number(float(predicted[f"{name}_{end}"])) for end in ("low", "high"))
    return f"{number(float(predicted[name]))} ({low} to {high})"
