"""What would be if one thing were otherwise: the step that diverges, measured again with scaled inputs or without the
layer that stands out."""

import numpy as np
import torch
from torch import nn

from normscope.descent.first_update import first_update_line
from normscope.descent.recipe import Recipe
from normscope.diagnosis.batch_tests import standardized
from normscope.diagnosis.profile import CURVE_LRS, diverging_lr
from normscope.diagnosis.signal import Signal
from normscope.errors import NormscopeError
from normscope.model.batch import Batch
from normscope.model.state import untouched

OUT_OF_SCALE = 10.0
"""Inputs this much larger or smaller than 1, or larger than each other, and layers with this many times the median
gain are suspected."""


def diverging_with_scaled_inputs(model: nn.Module, batch: Batch, recipe: Recipe, diverging: float, seed: int) -> float:
    """The rate at which one step diverges with every input feature standardized, over that with them as they are."""
    try:
        with first_update_line(model, standardized(batch), recipe, seed=seed) as (line, _):
            return diverging_lr(line) / min(diverging, float(CURVE_LRS[-1]))
    except NormscopeError:
        return float("nan")


def diverging_without_outsized_layer(
    model: nn.Module, batch: Batch, seen: Signal, recipe: Recipe, diverging: float, seed: int
) -> tuple[str, float]:
    """The layer whose gain stands out most, and how the diverging rate changes with its weights scaled to the median
    gain; ("", NaN) where none stands out."""
    gains = seen.values("gain")
    usable = np.isfinite(gains) & (gains > 0)
    if not usable.any() or not np.isfinite(diverging):
        return "", float("nan")
    median = float(np.median(gains[usable]))
    place = int(np.argmax(np.where(usable, gains, 0)))
    name, ratio = list(seen.calls)[place], float(gains[place]) / median
    if ratio < OUT_OF_SCALE:
        return "", float("nan")
    with untouched(model), torch.no_grad():
        for parameter in seen.modules[name].parameters(recurse=False):
            if parameter.ndim >= 2:
                parameter.div_(ratio)
        try:
            with first_update_line(model, batch, recipe, seed=seed) as (line, _):
                return name, diverging_lr(line) / diverging
        except NormscopeError:
            return name, float("nan")
