"""How near do numbers come to the end of float16 before any step and along one, and would a wider format help?"""

import math
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from normscope.descent.first_update import first_update_line
from normscope.descent.precision import autocast
from normscope.descent.recipe import Recipe
from normscope.diagnosis.first_pass import gradients_by_name
from normscope.diagnosis.half_precision import NOWHERE, Range, in_float32, watching, wider
from normscope.diagnosis.profile import diverging_lr
from normscope.errors import NormscopeError
from normscope.model.batch import Batch
from normscope.model.loss import default_loss
from normscope.model.state import seeded

NEAR = 0.1
"""From this share of the range on it is asked what a wider format changes: outputs grow tenfold in training."""

LOST = 1e-3
"""A gradient's entry counts as lost where it is zero in float16 and larger than this share of the median elsewhere."""


@dataclass(frozen=True)
class RangeEvidence:
    """The range before any step, where the step that diverges leaves it, and what a wider format changes."""

    start: Range
    overflow: Range = NOWHERE
    """The first module whose numbers are not finite at the step that overflows."""
    wider_lr: float = math.nan
    """The rate at which the same step diverges in a wider format."""
    lost_layer: str = ""
    """The parameter of which most entries of the gradient are lost."""
    lost_share: float = math.nan


def range_evidence(
    model: nn.Module, batch: Batch, recipe: Recipe, *, diverging: float, overflows: bool, seed: int = 0
) -> RangeEvidence:
    """See above, in training mode; the model comes back untouched."""
    device = str(next(model.parameters()).device)
    cast = autocast(recipe.precision, device) if recipe.precision != "fp32" else nullcontext
    with seeded(model, seed), watching(model) as watch, cast():
        (recipe.loss_fn or default_loss)(model, batch)
    start = watch.largest
    if not start.format or recipe.precision != "fp32":
        return RangeEvidence(start)
    overflow, wider_lr, lost = NOWHERE, math.nan, ("", math.nan)
    try:
        if overflows:
            with first_update_line(model, batch, recipe, seed=seed) as (line, _), watching(model) as watch:
                line.loss_at(diverging)
            overflow = watch.first_overflow
        if start.format == "float16":
            lost = lost_gradients(model, batch, recipe, seed)
            if start.share >= NEAR or overflow.format:
                with wider(), first_update_line(*in_float32(model, batch), recipe, seed=seed) as (line, _):
                    wider_lr = diverging_lr(line)
    except NormscopeError:
        pass
    return RangeEvidence(start, overflow, wider_lr, *lost)


def lost_gradients(model: nn.Module, batch: Batch, recipe: Recipe, seed: int) -> tuple[str, float]:
    """The parameter of which the largest share of the gradient's entries is zero in float16 and not in bfloat16, and
    that share. Entries that are tiny beside the others do not count."""

    def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with seeded(model, seed):
            return gradients_by_name(model, (recipe.loss_fn or default_loss)(model, batch))

    narrow = gradients(model, batch)
    with wider():
        wide = gradients(*in_float32(model, batch))
    worst = "", 0.0
    for name, gradient in wide.items():
        size = gradient.abs()
        counted = size > LOST * size.median()
        if bool(counted.any()):
            share = float((narrow[name][counted] == 0).double().mean())
            worst = max(worst, (name, share), key=lambda one: one[1])
    return worst
