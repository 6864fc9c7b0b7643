"""Somebody's training as a value: model, batches, loss, optimizer, rate and number of steps, and one run of it.

A repair is a function from a program to a program, so that what is advised can be run in the place of what is there.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from normscope.descent.loop import descend
from normscope.descent.optimizers import OptimizerFactory, make_optimizer
from normscope.descent.outcome import has_diverged
from normscope.descent.precision import autocast, grad_scaler
from normscope.descent.recipe import Recipe, preparation
from normscope.diagnosis.loss_terms import judged
from normscope.errors import NormscopeError
from normscope.model.batch import Batch
from normscope.model.loss import LossFn, default_loss, readable_errors
from normscope.model.mini_batches import in_random_order
from normscope.model.state import seeded

Patch = Callable[[nn.Module], None]
"""Changes a model in place, by hooks, weights or modules; `untouched` takes hooks and weights back."""

FLAT = 1e-6
"""Where the best outputs lower the loss by no more than this share of it, there is nothing to learn."""

CHECKED_EVERY = 64
"""Steps between two looks at the clock."""


@dataclass(frozen=True)
class Program:
    """What a user runs."""

    build: Callable[[int], nn.Module]
    """The model of a seed; the same instance each time where the user gave an instance."""
    batches: Sequence[Batch]
    """Different mini-batches, walked in an order of each seed's own, round after round."""
    optimizer: OptimizerFactory
    lr: float
    steps: int
    loss_fn: LossFn | None = None
    warmup: int = 0
    clip_norm: float | None = None
    precision: str = "fp32"
    state: Mapping[str, Any] | None = None
    """These four as in `Recipe`."""
    patches: tuple[Patch, ...] = ()
    """What is changed in the model before it is trained."""
    constant_loss: float = math.nan
    """L_c, the loss of the best constant output; NaN where it is not known."""
    lowest_loss: float = 0.0
    """The loss of the best outputs that are free to differ between examples."""


@dataclass(frozen=True)
class Modes:
    """The loss of the same batches after a run, by the mode."""

    train_loss: float
    eval_loss: float
    recalibrated_loss: float
    """In evaluation mode, with running statistics taken anew."""
    module: str
    """The module whose running statistics hold most of their first values, ..."""
    kept: float
    """... and how much: (1 − momentum) to the power of the steps."""

    @property
    def best(self) -> float:
        """The lower loss in evaluation mode."""
        return min(self.eval_loss, self.recalibrated_loss)


@dataclass(frozen=True)
class Run:
    """What one run came to."""

    losses: np.ndarray
    """(steps taken,): each mini-batch's loss before the step on it."""
    constant_loss: float
    lowest_loss: float
    diverged: bool = False
    finished: bool = True
    """False where there was no time for all steps."""
    steps: int = field(default=0)
    modes: Modes | None = None
    """None where that was not asked for, or the model has no running statistics."""

    @property
    def end_loss(self) -> float:
        """The mean loss of the last tenth of the steps; inf where it diverged, NaN where no step was taken."""
        if self.diverged:
            return math.inf
        return float(np.mean(self.losses[-max(1, len(self.losses) // 10) :])) if len(self.losses) else math.nan

    @property
    def score(self) -> float:
        """The share of what there is to learn that was learned: 0 at the loss of the best constant output or where the
        run began, whichever is lower, 1 at the lowest loss there is. Below 0 where it ends above that; kept between -1
        and 1."""
        if self.diverged or not len(self.losses):
            return -1.0
        return self.share(self.end_loss)

    def share(self, loss: float) -> float:
        """The score of a loss; -1 of one that is not finite."""
        start = float(np.mean(self.losses[: max(1, len(self.losses) // 50)]))
        level = start if math.isnan(self.constant_loss) else self.constant_loss
        room = level - self.lowest_loss
        if not room > FLAT * max(abs(level), abs(self.lowest_loss)):
            return 0.0
        return float(min(max((level - loss) / room, -1.0), 1.0)) if math.isfinite(loss) else -1.0


MODE_BATCHES = 8
"""On which the two modes are compared."""

SURE = 0.9
"""A run on trial ends once it has learned this much."""


def run(
    program: Program,
    *,
    seed: int = 0,
    until: float | None = None,
    hopeless: bool = False,
    both_modes: bool = False,
) -> Run:
    """Train for the program's own number of steps; the model comes back untouched.

    Args:
        until: `time.process_time()` at which the run is cut; None for no limit.
        hopeless: give it up at a quarter of its steps where it lies far above the best constant output, at half of them
            where it lies above that at all; and end it early where it has learned nearly everything.
        both_modes: look at evaluation mode too, where the run comes to its end.
    """
    model = program.build(seed)
    losses: list[float] = []

    def so_far(diverged: bool = False, finished: bool = True) -> Run:
        ends = program.constant_loss, program.lowest_loss
        return Run(np.asarray(losses), *ends, diverged, finished, program.steps)

    with seeded(model, seed), readable_errors():
        for patch in program.patches:
            patch(model)
        optimizer = make_optimizer(program.optimizer, model, program.lr, program.state)
        recipe = Recipe(program.optimizer, program.steps, warmup=program.warmup, clip_norm=program.clip_norm)
        device = str(next(model.parameters()).device)
        best = math.inf
        for step in descend(
            model,
            optimizer,
            in_random_order(program.batches, seed),
            loss_fn=program.loss_fn,
            steps=program.steps,
            autocast=autocast(program.precision, device),
            before_step=preparation(optimizer, recipe),
            scaler=grad_scaler(program.precision, device),
        ):
            loss = judged(program.loss_fn, float(step.loss))
            losses.append(loss)
            best = min(best, loss) if math.isfinite(loss) else best
            if has_diverged(loss, start=losses[0], best=best, constant_loss=program.constant_loss):
                return so_far(diverged=True)
            if hopeless and step.index in (program.steps // 4, program.steps // 2):
                score = so_far().score
                if score < (-0.5 if step.index < program.steps // 2 else -0.05) or score > SURE:
                    return so_far(finished=score > SURE)
            if until is not None and step.index % CHECKED_EVERY == 0 and time.process_time() > until:
                return so_far(finished=False)
        ended = so_far()
        return replace(ended, modes=modes_of(model, program)) if both_modes else ended


def modes_of(model: nn.Module, program: Program) -> Modes | None:
    """See `Modes`; the model is not left as it was. None where it has no running statistics, or no loss in evaluation
    mode."""
    norms = {
        path: m
        for path, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None
    }
    batches = program.batches[:MODE_BATCHES]
    if not norms:
        return None

    def loss() -> float:
        loss_fn = program.loss_fn or default_loss
        return float(np.mean([judged(program.loss_fn, float(loss_fn(model, b).detach())) for b in batches]))

    def kept(norm: nn.modules.batchnorm._NormBase) -> float:
        return 0.0 if norm.momentum is None else (1 - norm.momentum) ** program.steps

    worst = max(norms, key=lambda path: kept(norms[path]))
    share = kept(norms[worst])
    try:
        model.eval()
        in_eval = loss()
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None
        model.train()
        in_train = loss()
        model.eval()
        return Modes(in_train, in_eval, loss(), worst, share)
    except Exception:  # a model that gives no losses in this mode
        return None


def tried(program: Program, **options: Any) -> Run | None:
    """`run`, or None where the program cannot be run."""
    try:
        return run(program, **options)
    except NormscopeError:
        return None
