"""Does what was gained in training mode hold in evaluation mode? Batch norm's running averages may say otherwise."""

from itertools import islice

import torch
from torch import nn

from normscope.descent.loop import descend
from normscope.descent.optimizers import make_optimizer
from normscope.descent.precision import autocast, grad_scaler
from normscope.descent.recipe import Recipe, preparation, schedule
from normscope.model.batch import on_device
from normscope.model.loss import loss_value, readable_errors
from normscope.model.state import seeded
from normscope.rates.starting_point import Starts

BATCHES = 10
"""Mini-batches after the last step, on which both modes are compared: unseen ones where they come from a function."""


def has_running_averages(model: nn.Module) -> bool:
    """Whether some module keeps statistics of its batches for evaluation mode, as batch norm does."""
    return any(getattr(module, "running_mean", None) is not None for module in model.modules())


def losses_by_mode(starts: Starts, recipe: Recipe, lr: float, *, seed: int = 0) -> tuple[float, float]:
    """The mean loss in evaluation mode and in training mode, on the mini-batches that follow a descent at this rate."""
    model = starts.model(seed)
    with seeded(model, seed), readable_errors():
        device = next(model.parameters()).device
        optimizer = make_optimizer(recipe.optimizer, model, lr, recipe.state)
        scheduler, forward = schedule(optimizer, recipe), autocast(recipe.precision, str(device))
        walked = (on_device(batch, device) for batch in starts.batches(seed))
        for _ in descend(
            model,
            optimizer,
            walked,
            loss_fn=recipe.loss_fn,
            steps=recipe.steps,
            autocast=forward,
            before_step=preparation(optimizer, recipe),
            after_step=None if scheduler is None else lambda _: scheduler.step(),
            accumulate=recipe.accumulate,
            scaler=grad_scaler(recipe.precision, str(device)),
        ):
            pass
        following = list(islice(walked, BATCHES))
        means = []
        for mode in (False, True):  # in training mode the averages move
            model.train(mode)
            with forward():
                means.append(
                    float(torch.stack([loss_value(model, batch, recipe.loss_fn) for batch in following]).mean())
                )
    return means[0], means[1]
