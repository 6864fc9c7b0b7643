"""Can the model learn at all, and do its batches let anything be learned? Two kinds of short descents.

*One batch*, over and over: whatever its labels, a model that can move at all brings its loss down. *Many batches*, and
then others that were never stepped on: what was learned shows as the loss with the targets in their places lying below
that with the targets permuted among the examples.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np
import torch
from torch import nn

from normscope.descent.loop import descend
from normscope.descent.optimizers import make_optimizer
from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.descent.recipe import Recipe, preparation
from normscope.model.batch import Batch, targets_permuted
from normscope.model.loss import default_loss, readable_errors
from normscope.model.state import seeded

ENOUGH_FITTED, ENOUGH_CONTRAST = 0.5, 0.15
"""Once one batch is fitted to the first share of its loss, and the contrast lies above the second, no more rates are
tried."""

PATIENCE = 4
"""One batch that is not fitted by then is stepped on so many times longer at the best rate, before it is said that the
model cannot learn."""


@dataclass(frozen=True)
class Learnability:
    """What short descents at several rates came to, at the best rate for each question."""

    one_batch: float
    """The loss on one batch after steps on nothing else, over that before; NaN where every rate diverged, and where the
    loss before is not above 0."""
    contrast: float
    """1 − (loss on unseen batches) / (the same with their targets permuted); 0 where nothing was learned that holds on
    them; NaN where there are none or their targets cannot be told apart."""
    contrast_error: float
    """Standard error of the contrast over the unseen batches."""
    lr: float
    """The rate of the best contrast; of the best `one_batch` where there is none."""
    steps: int
    """Taken on one batch: more than the recipe's where those did not suffice."""


NOT_TRIED = Learnability(float("nan"), float("nan"), float("nan"), float("nan"), 0)
"""Where no descent was made."""


def learnability(
    model: nn.Module,
    seen: Sequence[Batch],
    unseen: Sequence[Batch],
    lrs: Iterable[float],
    *,
    recipe: Recipe,
    seed: int = 0,
    until: float | None = None,
) -> Learnability:
    """Descend at every rate for `recipe.steps` steps, on the first batch alone and on all of `seen`, until both have
    shown that something is learned.

    Args:
        until: `time.process_time()` by which it ends; then `NOT_TRIED`, for what was not tried may learn.
    """
    best_one, best_contrast, error, lr_one, lr_contrast = float("nan"), float("nan"), float("nan"), float("nan"), None
    for lr in lrs:
        if best_one < ENOUGH_FITTED and (best_contrast > ENOUGH_CONTRAST or not unseen):
            break
        if until is not None and time.process_time() > until:
            return NOT_TRIED
        one = after_descent(model, seen[:1], seen[:1], lr, recipe, seed)[0]
        if np.isfinite(one) and not one >= best_one:
            best_one, lr_one = one, lr
        if not unseen:
            continue
        contrasts = after_descent(model, seen, unseen, lr, recipe, seed)[1]
        finite = contrasts[np.isfinite(contrasts)]
        if len(finite) and not finite.mean() <= best_contrast:
            best_contrast, lr_contrast = float(finite.mean()), lr
            error = float(finite.std(ddof=1) / np.sqrt(len(finite))) if len(finite) > 1 else float("nan")
    steps = recipe.steps
    if not best_one < ENOUGH_FITTED and np.isfinite(lr_one):
        if until is not None and time.process_time() > until:
            return NOT_TRIED
        steps *= PATIENCE
        best_one = np.fmin(
            best_one, after_descent(model, seen[:1], seen[:1], lr_one, replace(recipe, steps=steps), seed)[0]
        )
    return Learnability(float(best_one), best_contrast, error, lr_one if lr_contrast is None else lr_contrast, steps)


def after_descent(
    model: nn.Module, seen: Sequence[Batch], judged: Sequence[Batch], lr: float, recipe: Recipe, seed: int
) -> tuple[float, np.ndarray]:
    """Relative loss on the judged batches after the descent (NaN from a start that is not above 0), and the contrast on
    each of them."""
    loss_fn = recipe.loss_fn or default_loss
    with seeded(model, seed), readable_errors():
        optimizer = make_optimizer(recipe.optimizer, model, lr)
        walk = descend(
            model,
            optimizer,
            islice(cycle(seen), recipe.steps),
            loss_fn=recipe.loss_fn,
            before_step=preparation(optimizer, recipe),
        )
        start = None
        for step in walk:
            loss = float(step.loss)
            start = loss if start is None else start
            if not loss <= DIVERGENCE_FACTOR * abs(start):
                return float("nan"), np.full(len(judged), np.nan)
        losses, permuted = [], []
        with torch.enable_grad():  # a loss may differentiate inside itself
            for batch in judged:
                losses.append(float(loss_fn(model, batch).detach().double()))
                other = targets_permuted(batch)
                permuted.append(math.nan if other is None else float(loss_fn(model, other).detach().double()))
    with np.errstate(divide="ignore", invalid="ignore"):
        contrasts = 1 - np.asarray(losses) / np.asarray(permuted)
    return float(np.mean(losses)) / start if start and start > 0 else float("nan"), contrasts
