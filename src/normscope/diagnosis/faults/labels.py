"""The model learns, but nothing that holds on other batches."""

import time

import numpy as np
import xarray as xr

from normscope.descent.recipe import Recipe
from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding
from normscope.diagnosis.learnability import after_descent
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import percent

FITS_ONE_BATCH = 0.7
"""A model that can learn brings the loss on one batch below this share in a few steps on nothing else."""

NOTHING_HOLDS, PERHAPS_NOTHING = 0.03, 0.1
"""Labels tell nothing where those of unseen batches are predicted no better than permuted ones: by less than the first
share of the loss, or by less than the second ..."""

STANDARD_ERRORS = 3.0
"""... and by less than this many standard errors."""

FEWEST_ASIDE = 4
"""Batches kept from a training to judge it by."""

ADVICE = "Do inputs and labels belong together, or were they shuffled or shifted?"


def labels(evidence: xr.Dataset) -> Finding | None:
    """The model learns, but nothing that holds on other batches."""
    one, contrast = float(evidence["one_batch"]), float(evidence["contrast"])
    if not (one < FITS_ONE_BATCH and holds_nothing(contrast, float(evidence["contrast_error"]))):
        return None
    return Finding(
        "labels",
        "the labels tell nothing about the inputs",
        f"The model learns one batch by heart ({percent(one)} of the loss is left), but nothing that it learns from "
        f"many holds on others: there the right labels save {percent(max(contrast, 0.0))} of the loss against permuted "
        "ones.",
        ADVICE,
        numbers={"one_batch": one, "contrast": contrast},
    )


def holds_nothing(contrast: float, error: float) -> bool:
    """Whether targets of unseen batches are predicted no better than permuted ones."""
    return contrast < NOTHING_HOLDS or (contrast < PERHAPS_NOTHING and contrast < STANDARD_ERRORS * error)


def by_heart(program: Program, score: float, *, seed: int = 0, until: float | None = None) -> Finding | None:
    """Whether a program that learns when it is trained longer learns its examples by heart, and nothing that holds on
    a quarter of its batches that are kept from it; None also where there are too few, or no time.

    Args:
        score: of the program on all of its batches.
    """
    aside = len(program.batches) // 4
    if aside < FEWEST_ASIDE or program.patches or (until is not None and time.process_time() > until):
        return None
    recipe = Recipe(program.optimizer, program.steps, program.loss_fn)
    seen, unseen = program.batches[aside:], program.batches[:aside]
    contrasts = after_descent(program.build(seed), seen, unseen, program.lr, recipe, seed)[1]
    if not np.isfinite(contrasts).all():
        return None
    contrast, error = float(contrasts.mean()), float(contrasts.std(ddof=1) / np.sqrt(aside))
    if not holds_nothing(contrast, error):
        return None
    return Finding(
        "labels",
        "the labels tell nothing about the inputs",
        f"In {program.steps} steps the model learns {percent(score)} of what there is to learn, but by heart: on "
        f"{aside} batches kept from it the right labels save {percent(max(contrast, 0.0))} of the loss against "
        "permuted ones.",
        ADVICE,
        numbers={"contrast": contrast, "contrast_error": error, "score": score},
        category="labels",
    )


FAULT = Fault("labels", "labels", 120, rule=labels, last=True)
