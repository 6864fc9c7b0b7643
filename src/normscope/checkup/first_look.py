"""Before any rate is tried: one pass over every mini-batch that will be used, and what cannot be trained on goes."""

from collections.abc import Iterator
from functools import cache
from itertools import islice

import torch

from normscope.descent.recipe import Recipe, loss_in_precision
from normscope.diagnosis.diagnose import refuse_hopeless
from normscope.diagnosis.first_pass import SECONDS, FirstPass, first_pass
from normscope.model.batch import Batch, on_device
from normscope.rates.starting_point import Starts

BUDGET_SHARE = 0.1
"""Of a budget, the pass gets at most this share."""


def first_look(starts: Starts, recipe: Recipe, budget_seconds: float | None = None) -> tuple[FirstPass, Starts]:
    """What every batch gave before any step, and the starts with the batches that can be trained on.

    Batches from a function of the seed are looked at for the first seed; for the others only where something was wrong.

    Raises:
        InvalidModel, InvalidBatch: the model takes no batch at all.
    """
    seconds = SECONDS if budget_seconds is None else min(SECONDS, BUDGET_SHARE * budget_seconds)
    count = recipe.steps * recipe.accumulate

    def batches(seed: int | None) -> Iterator[Batch]:
        model = starts.model(seed or 0)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        return (on_device(batch, device) for batch in islice(starts.one_round(seed), count))

    @cache
    def of_seed(seed: int) -> FirstPass:
        order = None if starts.num_batches is not None else seed
        model = starts.model(seed)
        loss_fn = loss_in_precision(recipe, str(next((p.device for p in model.parameters()), "cpu")))
        return first_pass(model, batches(order), loss_fn, seed=seed, seconds=seconds)

    first = of_seed(0)
    refuse_hopeless(starts.model(0), next(batches(None)), first, recipe)
    if first.hopeless or not first.left_out:
        return first, starts
    return first, starts.without(lambda seed: of_seed(seed).left_out)
