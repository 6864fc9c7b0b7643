"""One trial of one learning rate: a short descent from the start, stopped at once when it diverges, which may be left
after any step and gone on with."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.descent.loop import check_start, descend
from normscope.descent.optimizers import make_optimizer
from normscope.descent.outcome import Outcome, has_diverged, outcome
from normscope.descent.precision import autocast, grad_scaler
from normscope.descent.recipe import Recipe, preparation, schedule
from normscope.model.batch import Batch, on_device
from normscope.model.loss import output_spread, readable_errors
from normscope.model.state import untouched


@dataclass(frozen=True)
class Trial:
    """What became of one rate on one seed so far."""

    lr: float
    seed: int
    outcome: Outcome | None
    """None for one that was left before its end, and may go on."""
    losses: np.ndarray
    """(steps_taken,): each mini-batch's loss before the step on it; the last may be the diverged one."""
    skipped: int = 0
    """Steps that were not taken, since a gradient overflowed in float16."""

    @property
    def horizon(self) -> np.ndarray:
        """The losses of the last tenth of the steps; empty where it diverged before."""
        return self.losses[:0] if self.outcome is Outcome.DIVERGED else self.losses[-max(1, len(self.losses) // 10) :]

    @property
    def horizon_loss(self) -> float:
        """The mean loss over the last tenth of the steps; NaN where it diverged before."""
        return float(self.horizon.mean()) if len(self.horizon) else float("nan")


class Descent:
    """One rate on one seed, from where the model stands, in training mode; the model is untouched between its parts.

    Left after any step, it goes on with the same bits as if it had never been left.

    Args:
        batches: gives the mini-batches of this seed from the first on.
        constant_loss: L_c, the loss of the best constant output; NaN where it is not known.
        start: the loss of a trained model before the first step, where this is fine-tuning: to learn then means not to
            end above it. None for a fresh model.
        may_go_on: whether it may go on beyond the recipe's steps, and what that takes is kept at their end.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[], Iterator[Any]],
        lr: float,
        *,
        seed: int,
        recipe: Recipe,
        constant_loss: float,
        start: float | None = None,
        may_go_on: bool = False,
    ) -> None:
        self._model, self._batches, self._lr, self._seed, self._recipe = model, batches, lr, seed, recipe
        self._constant_loss, self._start, self._may_go_on = constant_loss, start, may_go_on
        self.losses: list[float] = []
        self.skipped = 0
        self._walked: Iterator[Batch] | None = None
        self._state: _State | None = None
        self._best = math.inf

    @property
    def nbytes(self) -> int:
        """What is kept for going on."""
        return 0 if self._state is None else self._state.nbytes

    def forget(self) -> None:
        """Keep nothing: it would begin again."""
        self._state, self._walked, self.losses, self.skipped, self._best = None, None, [], 0, math.inf

    def go_on(self, until: int | None = None, deadline: float = math.inf, room: float = math.inf) -> Trial:
        """Walk to this many steps in all, by default to the recipe's; or until `time.monotonic()` is past the deadline.
        What takes more bytes than there is room for is not kept: it would begin again.

        Torch's generators are set to the seed before the first step: dropout draws the same numbers at every rate.
        """
        recipe, model = self._recipe, self._model
        until = recipe.steps if until is None else until
        with untouched(model), readable_errors():
            model.train()
            device = next(model.parameters()).device
            torch.manual_seed(self._seed)
            optimizer = make_optimizer(recipe.optimizer, model, self._lr, recipe.state)
            scheduler = schedule(optimizer, recipe)
            scaler = grad_scaler(recipe.precision, str(device))
            before_step = preparation(optimizer, recipe)
            if self._state is not None:
                self._state.restore(model, optimizer, scheduler, scaler)
            if self._walked is None:
                self._walked = (on_device(batch, device) for batch in self._batches())
            scales: list[float] = []

            def after_step(_index: int) -> None:
                if scaler is not None:
                    scales.append(float(scaler.get_scale()))
                    self.skipped += len(scales) > 1 and scales[-1] < scales[-2]
                if scheduler is not None:
                    scheduler.step()

            last = None
            for step in descend(
                model,
                optimizer,
                self._walked,
                loss_fn=recipe.loss_fn,
                steps=until - len(self.losses),
                autocast=autocast(recipe.precision, str(device)),
                before_step=before_step,
                after_step=after_step,
                accumulate=recipe.accumulate,
                scaler=scaler,
                first=len(self.losses),
            ):
                self.losses.append(float(step.loss))
                if step.index == 0:
                    check_start(self.losses[0])
                first = self.losses[0] if self._start is None else self._start
                self._best = min(self._best, self.losses[-1])
                last = step.batch
                if has_diverged(self.losses[-1], start=first, best=self._best, constant_loss=self._constant_loss):
                    self._state = self._walked = None
                    return self._told(Outcome.DIVERGED)
                if time.monotonic() >= deadline:
                    break
            at_end = len(self.losses) >= max(until, recipe.steps)
            self._state = None
            # One that was stopped by the clock stands before a step: it is not gone on with.
            if (not at_end or self._may_go_on) and _nbytes(model, optimizer) <= room:
                self._state = _State.of(model, optimizer, scheduler, scaler)
            else:
                self._walked = None
            if not at_end:
                return self._told(None)
            judged = self.losses if self._start is None else [self._start, *self.losses[1:]]
            found = outcome(
                judged,
                constant_loss=self._constant_loss,
                output_spread=lambda: _spread_or_nan(model, last),
                fine_tuning=self._start is not None,
            )
        return self._told(found)

    def cooled_down(self, steps: int, deadline: float = math.inf) -> Trial:
        """What becomes of it where the rate falls linearly to 0 over so many more steps; it may itself go on from where
        it stands. Needs `may_go_on`."""
        begun = len(self.losses)
        branch = copy.copy(self)
        branch.losses, branch._may_go_on = [*self.losses], False
        branch._recipe = replace(self._recipe, steps=begun + steps, cooldown=range(begun, begun + steps))
        device = next(self._model.parameters()).device
        taken = islice(self._batches(), begun * self._recipe.accumulate, None)
        branch._walked = (on_device(batch, device) for batch in taken)
        return branch.go_on(deadline=deadline)

    def _told(self, found: Outcome | None) -> Trial:
        return Trial(self._lr, self._seed, found, np.asarray(self.losses), self.skipped)


@dataclass(frozen=True)
class _State:
    """All that a descent goes on from."""

    tensors: list[tuple[dict[str, Any], str, Tensor]]
    """Each parameter and buffer: the dict it lies in, its name there, and its value."""
    others: list[Any]
    """Of optimizer, scheduler and scaler, where there are."""
    random: list[Tensor]
    nbytes: int

    @classmethod
    def of(cls, model: nn.Module, *others: Any) -> "_State":
        slots = [slot for module in model.modules() for slot in (module._parameters, module._buffers)]
        kept = [(slot, name, t.detach().clone()) for slot in slots for name, t in slot.items() if t is not None]
        states = [None if one is None else copy.deepcopy(one.state_dict()) for one in others]
        return cls(kept, states, [torch.get_rng_state(), *_gpu_states(model)], _nbytes(model, others[0]))

    def restore(self, model: nn.Module, *others: Any) -> None:
        """Put everything back, as it was when this was made."""
        with torch.no_grad():
            for slot, name, value in self.tensors:
                there = slot[name]
                if there.shape == value.shape and there.dtype == value.dtype:
                    there.copy_(value)
                else:
                    slot[name] = value.clone()
        for one, state in zip(others, self.others, strict=True):
            if one is not None:
                one.load_state_dict(copy.deepcopy(state))
        torch.set_rng_state(self.random[0])
        for device, state in zip(_gpus(model), self.random[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


def _nbytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Of the tensors that a descent goes on from, and of each moment that an optimizer keeps."""
    moments = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *moments))


def _gpus(model: nn.Module) -> list[int]:
    return sorted({p.device.index for p in model.parameters() if p.is_cuda})


def _gpu_states(model: nn.Module) -> list[Tensor]:
    return [torch.cuda.get_rng_state(device) for device in _gpus(model)]


def _spread_or_nan(model: nn.Module, batch: Batch) -> float:
    """How much the outputs depend on the input; NaN for a model whose call only the caller's loss_fn knows."""
    try:
        return output_spread(model, batch)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException:
        return float("nan")
