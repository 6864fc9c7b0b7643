"""What `check --quick` says: the rates foretold from ten passes, in words."""

import math

import xarray as xr

from normscope.statistics.numbers import number

HELD = "about 2 of 3 of these intervals hold"
"""Measured by `benchmarks.predicted_rates`: 64 % of the stable rates, 72 % of those to train at."""


def quick_answer(foretold: xr.Dataset, *, model: str, data: str) -> str:
    """The Dataset of `predict_lr` in a few sentences, a paragraph a line."""
    attrs = foretold.attrs
    lines = [f"{model} on {data}: {int(attrs['parameters']):,} parameters, {attrs['optimizer']}"]
    tried = f"Foretold from one mini-batch; on other kinds of networks than those fitted, {HELD}."
    if not bool(foretold["known"]):
        lines.append(f"The rates cannot be told from initialization: {foretold['reason'].item()}.")
        return "\n".join(lines)
    lines += [
        f"Train at about {about(foretold, 'lr_recommended')}.",
        f"Training is stable up to about {about(foretold, 'lr_stable')}.",
    ]
    if not math.isnan(probability := float(foretold["diverges"])):
        lines.append(f"Your rate {attrs['lr']} diverges with a probability of {100 * probability:.0f} %.")
    return "\n".join([*lines, tried])


def about(foretold: xr.Dataset, name: str) -> str:
    """A rate with its interval."""
    low, high = (number(float(foretold[f"{name}_{end}"])) for end in ("low", "high"))
    return f"{number(float(foretold[name]))} ({low} to {high})"
