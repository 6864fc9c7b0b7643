"""Where a descent diverges: the first layer whose outputs leave their size, at the step that does it."""

from contextlib import nullcontext
from itertools import islice

import torch

from normscope.descent.loop import descend
from normscope.descent.optimizers import make_optimizer
from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.descent.precision import autocast
from normscope.descent.recipe import Recipe, preparation, schedule
from normscope.model.batch import on_device
from normscope.model.layers import LayerCall, record_calls
from normscope.model.loss import readable_errors
from normscope.model.state import seeded
from normscope.rates.starting_point import Starts

OUT_OF_SIZE = 10.0
"""Where no layer's outputs grow by the factor of divergence, the first one that grows by this much."""


def diverging_layer(starts: Starts, recipe: Recipe, *, lr: float, seed: int, step: int) -> str:
    """The first layer, in the order of calls, whose outputs at this step are not finite or have grown a thousandfold
    since the start (tenfold, where none has); "" where none has grown."""
    model = starts.model(seed)
    before: dict[str, float] = {}
    sizes: dict[str, float] = {}

    def on_call(call: LayerCall) -> None:
        norm = torch.linalg.vector_norm(call.output.detach(), dtype=torch.float64)
        sizes[call.name] = float(norm) / max(call.output.numel(), 1) ** 0.5

    with seeded(model, seed), readable_errors():
        device = next(model.parameters()).device
        optimizer = make_optimizer(recipe.optimizer, model, lr, recipe.state)
        scheduler = schedule(optimizer, recipe)
        walked = (on_device(batch, device) for batch in islice(starts.batches(seed), (step + 1) * recipe.accumulate))
        walk = descend(
            model,
            optimizer,
            walked,
            loss_fn=recipe.loss_fn,
            autocast=autocast(recipe.precision, str(device)),
            before_step=preparation(optimizer, recipe),
            after_step=None if scheduler is None else lambda _: scheduler.step(),
            accumulate=recipe.accumulate,
        )
        for index in range(step + 1):
            with record_calls(model, on_call) if index in (0, step) else nullcontext():
                next(walk)
            if index == 0:
                before = dict(sizes)
    grown = {name: size / before[name] for name, size in sizes.items() if before.get(name)}
    for factor in (DIVERGENCE_FACTOR, OUT_OF_SIZE):
        for name, ratio in grown.items():
            if not ratio < factor:
                return name
    return ""
