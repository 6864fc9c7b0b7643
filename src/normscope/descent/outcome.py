"""What became of a descent: it diverged, died, stalled or learns. Defined here and nowhere else.

Let L_c be the loss of the best constant output (`loss.constant_loss`), start the first mini-batch's loss.
"""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum

import numpy as np

from normscope.errors import InvalidBatch

DIVERGENCE_FACTOR = 1e3
"""The paper's rule: above a thousand times, a loss has diverged."""

LEARNING_FACTOR = 0.97
"""To learn is to end at least 3 % below what was there at the start and what a constant output reaches."""

STANDARD_ERRORS = 3.0
"""... and by this many standard errors of the last tenth of the steps."""

FORGOTTEN = 0.03
"""A trained model that goes on may lose this share of what it had learned, or of its loss, and no more: a loss that
scatters widely enough is within three standard errors of everything."""

DEAD_MARGIN = 0.02
"""Dead ends within 2 % of the loss of the best constant output."""

DEAD_SPREAD = 1e-3
"""... with outputs whose spread over examples is below this share of their own size."""


class Outcome(StrEnum):
    """The four ends of a descent."""

    DIVERGED = "diverged"
    DEAD = "dead"
    STALLED = "stalled"
    LEARNS = "learns"


def reference_loss(start: float, constant_loss: float) -> float:
    """min(start, L_c): what a descent must beat to have learned anything. A NaN L_c (not known) counts as absent."""
    return start if math.isnan(constant_loss) else min(start, constant_loss)


def _forgettable(start: float, constant_loss: float) -> float:
    """How far above its start a trained model may end and still have lost nothing that counts."""
    if math.isnan(constant_loss):
        return abs(start)
    return FORGOTTEN * max(constant_loss - start, abs(start))


def has_diverged(loss: float, *, start: float, best: float, constant_loss: float) -> bool:
    """Non-finite, or above 10³ · max(L_c, min(start, best so far)). Decides at once, on one mini-batch's loss.

    Where L_c is not known, the start stands in its place: to come back from a loss near 0 is not to diverge. A loss
    that is negative, as a log density can be, has no thousandfold: then only a non-finite one has diverged.
    """
    level = max(start if math.isnan(constant_loss) else constant_loss, min(start, best))
    return not math.isfinite(loss) or (level > 0 and loss > DIVERGENCE_FACTOR * level)


def outcome(
    losses: Sequence[float],
    *,
    constant_loss: float,
    output_spread: float | Callable[[], float] = math.nan,
    fine_tuning: bool = False,
) -> Outcome:
    """The outcome of a descent from its mini-batch losses, the first of them the start.

    Args:
        losses: one per step, before the step; the last may be the diverged one.
        constant_loss: L_c; NaN where it is not known.
        output_spread: how much the outputs depend on the input at the end (`loss.output_spread`); NaN if not
            measured, and then nothing is called dead. A function is called only where the losses alone do not decide.
        fine_tuning: the model came trained, so that "learns" means only that it does not end above its start by three
            standard errors, nor by more than `FORGOTTEN` of what it had learned (twice its start where L_c is not
            known).

    Raises:
        InvalidBatch: no losses, since there was no mini-batch.
    """
    values = np.asarray(losses, dtype=np.float64)
    if not len(values):
        raise InvalidBatch("no mini-batch to descend on: give one or more")
    start = float(values[0])
    best = np.minimum.accumulate(np.where(np.isfinite(values), values, np.inf))
    if any(
        has_diverged(v, start=start, best=b, constant_loss=constant_loss)
        for v, b in zip(values.tolist(), best.tolist(), strict=True)
    ):
        return Outcome.DIVERGED
    end = values[-max(1, len(values) // 10) :]
    mean = float(end.mean())
    error = float(end.std(ddof=1) / math.sqrt(len(end))) if len(end) > 1 else 0.0
    reference = reference_loss(start, constant_loss)
    if fine_tuning and mean <= start + min(STANDARD_ERRORS * error, _forgettable(start, constant_loss)):
        return Outcome.LEARNS
    if mean < LEARNING_FACTOR * reference and mean + STANDARD_ERRORS * error < reference:
        return Outcome.LEARNS
    near_constant = abs(mean - constant_loss) <= DEAD_MARGIN * abs(constant_loss)
    if not near_constant:
        return Outcome.STALLED
    spread = output_spread() if callable(output_spread) else output_spread
    return Outcome.DEAD if spread < DEAD_SPREAD else Outcome.STALLED
