"""Can the model learn at all, and do its batches let anything be learned? Short descents, and what they came to.

*One batch*, over and over: whatever its labels, a model that can move at all brings its loss down. *Many batches*, and
then others that were never stepped on: what was learned shows as the loss with the targets in their places lying below
that with the targets permuted among the examples. *The same with targets that are known to be learnable*: where the
model learns those in as many steps, and the right ones no better than chance, it is not the model that fails.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from normscope.descent.loop import descend
from normscope.descent.optimizers import make_optimizer
from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.descent.recipe import Recipe, preparation
from normscope.model.batch import Batch, parts_of, targets_of, targets_permuted, with_targets
from normscope.model.layers import watched_modules
from normscope.model.loss import LossFn, default_loss, readable_errors
from normscope.model.state import seeded

T = TypeVar("T")

ENOUGH_FITTED, ENOUGH_CONTRAST = 0.5, 0.15
"""Once one batch is fitted to the first share of its loss, and the contrast lies above the second, no more rates are
tried."""

FITS_ONE_BATCH = 0.7
"""A model that can learn brings the loss on one batch below this share in a few steps on nothing else."""

PATIENCE = 4
"""One batch that is not fitted by then is stepped on so many times longer at the best rate, before it is said that the
model cannot learn."""

PERMUTATIONS = 19
"""Of the targets of unseen batches: the smallest p is one twentieth."""

LEVEL = 0.05
"""At which targets are told from permuted ones."""

POWER_STEPS = 10
"""Of the power iteration that finds a principal component, roughly."""

SEEN = 3.29
"""Standard deviations of permuted losses from which on an effect is found in 95 of 100 cases."""


@dataclass(frozen=True)
class Contrast:
    """The loss on unseen batches with the targets in their places and permuted: a permutation test."""

    saved: float = math.nan
    """1 − (loss) / (mean loss with permuted targets); 0 where nothing was learned that holds on them; NaN where there
    are none or their targets cannot be told apart."""
    p: float = math.nan
    """The share of the orders, the right one among them, whose loss is no higher than the right one's."""
    detectable: float = math.nan
    """The share of the loss that would have been found, with 95 % of certainty at the level of 5 %."""

    @property
    def is_chance(self) -> bool:
        """Whether the right targets are not told from permuted ones; also where there are none."""
        return not self.p <= LEVEL


@dataclass(frozen=True)
class Learnability:
    """What short descents at several rates came to, at the best rate for each question."""

    one_batch: float
    """The loss on one batch after steps on nothing else, over that before; NaN where every rate diverged, and where the
    loss before is not above 0."""
    contrast: Contrast
    control: float
    """`Contrast.saved` of targets that follow the inputs; NaN where that was not asked, or none could be made."""
    lr: float
    """The rate of the best contrast; of the best `one_batch` where there is none."""
    steps: int
    """Taken on one batch: more than the recipe's where those did not suffice."""


NOT_TRIED = Learnability(math.nan, Contrast(), math.nan, math.nan, 0)
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
    best_one, best, lr_one, lr_best, lrs = math.nan, Contrast(), math.nan, math.nan, list(lrs)

    def over() -> bool:
        return until is not None and time.process_time() > until

    for lr in lrs:
        if best_one < ENOUGH_FITTED and (best.saved > ENOUGH_CONTRAST or not unseen):
            break
        if over():
            return NOT_TRIED
        one = fitted_share(model, seen[0], lr, recipe, seed)
        if math.isfinite(one) and not one >= best_one:
            best_one, lr_one = one, lr
        if over():
            return NOT_TRIED
        found = contrast_after(model, seen, unseen, lr, recipe, seed)
        if math.isfinite(found.saved) and not found.saved <= best.saved:
            best, lr_best = found, lr
    steps = recipe.steps
    if not best_one < ENOUGH_FITTED and math.isfinite(lr_one):
        if over():
            return NOT_TRIED
        steps *= PATIENCE
        longer = fitted_share(model, seen[0], lr_one, replace(recipe, steps=steps), seed)
        best_one = float(np.fmin(best_one, longer))
    control = math.nan
    made = learnable([*unseen, *seen]) if unseen and best.is_chance and best_one < FITS_ONE_BATCH else []
    for lr in lrs if made else ():
        if control > ENOUGH_CONTRAST:
            break
        if over():
            return NOT_TRIED
        saved = contrast_after(model, made[len(unseen) :], made[: len(unseen)], lr, recipe, seed).saved
        control = float(np.fmax(control, saved))
    return Learnability(best_one, best, control, lr_one if math.isnan(lr_best) else lr_best, steps)


def learnable(batches: Sequence[Batch]) -> list[Batch]:
    """The batches with their own targets in another order, that of their inputs: along the first principal component of
    numbers, and of tokens by a number drawn for each, or its mean over the sequence where that has one target. Empty
    where inputs and targets have no such relation."""
    inputs = [next((part for part in parts_of(batch) if isinstance(part, Tensor)), None) for batch in batches]
    targets = [targets_of(batch) for batch in batches]
    if any(x is None or y is None or not y.ndim or len(y) % len(x) for x, y in zip(inputs, targets, strict=True)):
        return []
    sizes, y = [len(t) for t in targets if t is not None], torch.cat([t for t in targets if t is not None])
    try:
        x = torch.cat([x.detach() for x in inputs if x is not None])
    except RuntimeError:  # sequences of different lengths
        return []
    generator = torch.Generator().manual_seed(0)
    if x.is_floating_point():
        x = x.double().flatten(1)
        x = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-12)
        for_each = torch.randn(x.shape[1], 1, generator=generator, dtype=torch.float64).to(x)
        for _ in range(POWER_STEPS):
            for_each = x.T @ (x @ for_each / for_each.norm())
        along = (x @ for_each).flatten()
    else:
        for_each = torch.randn(int(x.max()) + 1, generator=generator, dtype=torch.float64).to(x.device)
        along = for_each[x.long().clamp(min=0)].flatten(1)
    if along.numel() != len(y.flatten()) and along.ndim > 1:
        along = along.mean(1)
    flat = y.flatten() if along.numel() == y.numel() else y
    if along.numel() != len(flat) or not bool(torch.isfinite(along).all()):
        return []
    key = flat if flat.ndim == 1 else flat.flatten(1).argmax(1)
    made = torch.empty_like(flat)
    made[along.flatten().argsort()] = flat[key.argsort()]
    parts = made.reshape(y.shape).split(sizes)
    return [with_targets(batch, part) for batch, part in zip(batches, parts, strict=True)]


def fitted_share(model: nn.Module, batch: Batch, lr: float, recipe: Recipe, seed: int) -> float:
    """The loss on one batch after the descent on it alone over that before; NaN from a start that is not above 0."""
    loss_fn = recipe.loss_fn or default_loss
    after = after_descent(model, [batch], lr, recipe, seed, lambda: float(loss_fn(model, batch).detach().double()))
    return math.nan if after is None or not after[0] > 0 else after[1] / after[0]


def contrast_after(
    model: nn.Module, seen: Sequence[Batch], unseen: Sequence[Batch], lr: float, recipe: Recipe, seed: int
) -> Contrast:
    """The permutation test on the unseen batches after the descent on the others; NaN where it diverged."""
    if not unseen:
        return Contrast()
    after = after_descent(model, seen, lr, recipe, seed, lambda: permutation_test(model, unseen, recipe.loss_fn))
    return Contrast() if after is None else after[1]


def after_descent(
    model: nn.Module, seen: Sequence[Batch], lr: float, recipe: Recipe, seed: int, judge: Callable[[], T]
) -> tuple[float, T] | None:
    """The loss before the descent on these batches in turn, and what is judged of the model behind it; None where it
    diverged. The model comes back untouched."""
    with seeded(model, seed), readable_errors():
        optimizer = make_optimizer(recipe.optimizer, model, lr)
        walk = descend(
            model,
            optimizer,
            islice(cycle(seen), recipe.steps),
            loss_fn=recipe.loss_fn,
            before_step=preparation(optimizer, recipe),
        )
        start = math.nan
        for step in walk:
            loss = float(step.loss)
            start = loss if math.isnan(start) else start
            if not loss <= DIVERGENCE_FACTOR * abs(start):
                return None
        return start, judge()


def permutation_test(model: nn.Module, batches: Sequence[Batch], loss_fn: LossFn | None) -> Contrast:
    """See `Contrast`; targets are permuted within their batches."""

    def mean_loss(order: int | None) -> float:
        losses = []
        for batch in batches:
            given = batch if order is None else targets_permuted(batch, order)
            losses.append(math.nan if given is None else float((loss_fn or default_loss)(model, given).detach()))
        return float(np.mean(losses))

    right, permuted = mean_loss(None), np.asarray([mean_loss(order) for order in range(PERMUTATIONS)])
    if not math.isfinite(right) or not np.isfinite(permuted).all() or not permuted.mean():
        return Contrast()
    mean, size = float(permuted.mean()), abs(float(permuted.mean()))
    p = (1 + int((permuted <= right).sum())) / (1 + PERMUTATIONS)
    return Contrast((mean - right) / size, p, SEEN * float(permuted.std(ddof=1)) / size)


@contextmanager
def exchanged(model: nn.Module) -> Iterator[None]:
    """Every layer gives each example what is another's: what comes out belongs to other inputs."""

    def other(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        known = isinstance(output, Tensor) and output.ndim > 1 and output.is_floating_point()
        return output.roll(1, 0) if known else None

    handles = [module.register_forward_hook(other) for module in watched_modules(model).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
