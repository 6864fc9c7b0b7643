"""What is wrong with this model? Evidence first, then what it means: `diagnose(model, batches, optimizer="sgd")`."""

from typing import Any

import xarray as xr

from normscope.descent.optimizers import OptimizerFactory, optimizer_factory
from normscope.descent.recipe import Recipe
from normscope.diagnosis.evidence import measure_evidence
from normscope.diagnosis.finding import findings_dataset
from normscope.diagnosis.rules import findings
from normscope.errors import InvalidBatch
from normscope.model.build import eager
from normscope.model.loss import LossFn
from normscope.rates.starting_point import Starts

NUM_BATCHES = 40
"""Different mini-batches looked at, most of them in the short descents."""

TRIAL_STEPS = 40
"""Length of the short descents."""


def diagnose(
    model_or_build: Any,
    batches: Any,
    *,
    optimizer: str | OptimizerFactory,
    loss_fn: LossFn | None = None,
    steps: int = TRIAL_STEPS,
    seed: int = 0,
    lr: float | None = None,
) -> xr.DataTree:
    """What limits the rate of a network and what is wrong with it, with the evidence; the rates themselves are
    `stable_lr`'s to find.

    One step of the optimizer is walked along to where it diverges, gradients are looked at layer by layer, and a few
    short descents ask whether anything can be learned. The model comes back untouched.

    Args:
        model_or_build, batches, optimizer, loss_fn: as for `stable_lr`.
        steps: length of the short descents, in mini-batches.
        seed: of the build, of the order of batches and of dropout.
        lr: a rate known to be good for the short descents; several are tried if None.

    Returns:
        Tree of `findings` (see `finding.findings_dataset`), `evidence` and `output_gradients` (see
        `evidence.measure_evidence`).

    Raises:
        InvalidBatch: fewer than two different batches; and see `stable_lr`.
    """
    recipe = Recipe(optimizer_factory(optimizer), steps, loss_fn)
    starts = Starts(eager(model_or_build), batches, NUM_BATCHES, loss_fn=loss_fn, fine_tuning=None)
    return diagnosis(starts, recipe, seed=seed, lr=lr)


def diagnosis(starts: Starts, recipe: Recipe, *, seed: int = 0, lr: float | None = None) -> xr.DataTree:
    """`diagnose`, from where the tries of a search start."""
    refuse_one_batch(starts)
    number = starts.num_batches
    taken = starts.first_batches(seed, NUM_BATCHES if number is None else min(NUM_BATCHES, number))
    measured = measure_evidence(starts.model(seed), taken, recipe=recipe, seed=seed, lr=lr)
    found = findings(measured["evidence"].to_dataset())
    return xr.DataTree.from_dict(
        {
            "findings": findings_dataset(found),
            "evidence": measured["evidence"].to_dataset(),
            "output_gradients": measured["output_gradients"].to_dataset(),
        }
    )


def refuse_one_batch(starts: Starts) -> None:
    """InvalidBatch where all there is is one batch."""
    if starts.num_batches == 1:
        raise InvalidBatch("there is one batch only: rates on it are those of learning it by heart; give two or more")
