"""Where every descent of a seed starts: its model, what it is compared with, and what a trained model's loss was."""

import math
from collections.abc import Callable, Collection, Iterator
from functools import cache
from itertools import islice

import torch
from torch import nn

from normscope.descent.outcome import LEARNING_FACTOR
from normscope.descent.recipe import Recipe
from normscope.errors import InvalidModel
from normscope.model.batch import Batch, on_device
from normscope.model.build import ModelOrBuild, instance_of
from normscope.model.loss import (
    LossFn,
    constant_loss,
    labels_tell_constant_loss,
    loss_units,
    loss_value,
    readable_errors,
)
from normscope.model.mini_batches import Batches, mini_batches, one_round
from normscope.model.state import seeded
from normscope.rates.trial import Descent, Trial

BATCHES_FOR_CONSTANT = 10
"""Mini-batches over which the loss of the best constant output is taken. Over N labels of K classes it comes out
too low by about (K - 1)/2N nats: many classes ask for large mini-batches."""


class Starts:
    """What the tries of each seed start from: the model (one instance serves all, a build is called once a seed), the
    mini-batches, and the losses that outcomes are judged by."""

    def __init__(
        self,
        model_or_build: ModelOrBuild,
        batches: Batches,
        steps: int,
        *,
        loss_fn: LossFn | None,
        fine_tuning: bool | None,
        accumulate: int = 1,
        longest: int = 0,
    ) -> None:
        """`longest`: steps of the longest trial, for which batches are kept, where some go on beyond `steps`."""
        self.from_instance = isinstance(model_or_build, nn.Module)
        if not self.from_instance and not callable(model_or_build):
            what = type(model_or_build).__name__
            raise InvalidModel(f"model_or_build is a {what}: give an nn.Module or a function build(seed) -> nn.Module")
        self._source = model_or_build
        self._accumulate = accumulate
        self.model: Callable[[int], nn.Module] = cache(self._model)
        self.batches, self.num_batches = mini_batches(batches, max(steps, longest) * accumulate)
        self._given = batches
        self.constant_loss: Callable[[int], float] = cache(self._constant_loss)
        self._loss_at_horizon: Callable[[int], float] = cache(self._loss_at_horizon_of)
        self._steps, self._loss_fn, self._fine_tuning = steps, loss_fn, fine_tuning
        self.forward_passes = 0

    def one_round(self, seed: int | None) -> Iterator[Batch]:
        """The mini-batches of a seed, none of them twice; with None in the order in which they came."""
        if callable(self._given) and self.num_batches is None:
            return one_round(self._given, seed or 0)
        return islice(self.batches(seed), self.num_batches)

    def without(self, left_out: Callable[[int], Collection[int]]) -> "Starts":
        """The same without some of the mini-batches.

        Args:
            left_out: gives their places, by the seed where batches come from a function; else for any.
        """

        def some(seed: int | None) -> Iterator[Batch]:
            places = left_out(seed or 0)
            return (batch for i, batch in enumerate(self.one_round(seed)) if i not in places)

        return Starts(
            self._source,
            some if self.num_batches is None else list(some(None)),
            self._steps,
            loss_fn=self._loss_fn,
            fine_tuning=self._fine_tuning,
            accumulate=self._accumulate,
        )

    @property
    def loss_units(self) -> str:
        """The unit of the loss."""
        return loss_units(self.first_batches(0, 1)[0], self._loss_fn)

    @property
    def fine_tuning(self) -> bool:
        """Whether to learn means not to end above the start: as the caller said, or else if the model given has learned
        already, its loss lying 3 % below that of the best constant output."""
        if self._fine_tuning is not None or not self.from_instance:
            return bool(self._fine_tuning)
        constant = self.constant_loss(0)
        return math.isnan(constant) or self._loss_at_horizon(0) < LEARNING_FACTOR * constant

    def trained_loss(self, seed: int) -> float | None:
        """The loss that fine-tuning must not end above; None where this is no fine-tuning."""
        return self._loss_at_horizon(seed) if self.fine_tuning else None

    def descent(self, lr: float, seed: int, recipe: Recipe, *, may_go_on: bool = False) -> Descent:
        """One trial of a rate from where this seed starts, not begun yet; it may go on beyond the recipe's steps."""
        return Descent(
            self.model(seed),
            lambda: self.batches(seed),
            lr,
            seed=seed,
            recipe=recipe,
            constant_loss=self.constant_loss(seed),
            start=self.trained_loss(seed),
            may_go_on=may_go_on,
        )

    def try_at(self, lr: float, seed: int, recipe: Recipe) -> Trial:
        """The same to its end."""
        return self.descent(lr, seed, recipe).go_on()

    def first_batches(self, seed: int, stop: int, start: int = 0) -> list[Batch]:
        """Mini-batches of this seed, from `start` to before `stop`, on the model's device."""
        parameter = next(self.model(seed).parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        return [on_device(batch, device) for batch in islice(self.batches(seed), start, stop)]

    def _model(self, seed: int) -> nn.Module:
        return instance_of(self._source, seed)

    def _constant_loss(self, seed: int) -> float:
        """L_c over the first mini-batches."""
        taken = self.first_batches(seed, min(BATCHES_FOR_CONSTANT, self._steps))
        model = self.model(seed)
        if not labels_tell_constant_loss(taken, self._loss_fn):
            self.forward_passes += len(taken)
        with seeded(model, seed):
            return constant_loss(model, taken, self._loss_fn)

    def _loss_at_horizon_of(self, seed: int) -> float:
        """The mean loss before any step over the mini-batches of the last tenth of the steps: the same batches that a
        trained model's loss is taken on after fine-tuning."""
        taken = self.first_batches(seed, self._steps, self._steps - max(1, self._steps // 10))
        model = self.model(seed)
        self.forward_passes += len(taken)
        with seeded(model, seed), readable_errors():
            losses = [loss_value(model, batch, self._loss_fn) for batch in taken]
        return float(torch.stack(losses).mean())
