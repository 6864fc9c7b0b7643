"""The model learns, but nothing that holds on other batches: a permutation test of the targets, with its power."""

import math
import time

import xarray as xr

from normscope.descent.recipe import Recipe
from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding
from normscope.diagnosis.learnability import ENOUGH_CONTRAST, FITS_ONE_BATCH, Contrast, contrast_after
from normscope.diagnosis.program import Program
from normscope.diagnosis.words import many
from normscope.statistics.numbers import percent

NOTHING = 0.1
"""Labels tell nothing where those of unseen batches save less than this share of the loss against permuted ones, and
are not told from them, ..."""

POWERFUL = 0.25
"""... in a test that would have found this share."""

FEWEST_ASIDE = 4
"""Batches kept from a training to judge it by."""

ADVICE = "Do inputs and labels belong together, or were they shuffled or shifted?"


def labels(evidence: xr.Dataset) -> Finding | None:
    """The model learns, but nothing that holds on other batches, though it would learn other targets of these
    inputs."""
    one, control, contrast = float(evidence["one_batch"]), float(evidence["control"]), contrast_of(evidence)
    if not (one < FITS_ONE_BATCH and control > ENOUGH_CONTRAST and holds_nothing(contrast)):
        return None
    return Finding(
        "labels",
        "the labels tell nothing about the inputs",
        f"The model learns one batch by heart ({percent(one)} of the loss is left), but nothing that it learns from "
        f"many holds on others: {tested(contrast)}. The same labels, put in the order of the inputs, save "
        f"{percent(control)}.",
        ADVICE,
        numbers={"one_batch": one, "control": control, **numbers(contrast)},
    )


def contrast_of(evidence: xr.Dataset) -> Contrast:
    """As the second stage measured it."""
    return Contrast(*(float(evidence[name]) for name in ("contrast", "contrast_p", "contrast_detectable")))


def holds_nothing(contrast: Contrast) -> bool:
    """Whether targets of unseen batches are predicted no better than permuted ones, by a test with power."""
    return contrast.is_chance and contrast.saved < NOTHING and contrast.detectable < POWERFUL


def tested(contrast: Contrast) -> str:
    """The permutation test in words."""
    return (
        f"there the right labels save {percent(max(contrast.saved, 0.0))} of the loss against permuted ones (p = "
        f"{contrast.p:.2g}; {percent(contrast.detectable)} would have been found)"
    )


def numbers(contrast: Contrast) -> dict[str, float]:
    """Those of the test; none where there was none."""
    found = {"contrast": contrast.saved, "contrast_p": contrast.p, "contrast_detectable": contrast.detectable}
    return {} if math.isnan(contrast.p) else found


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
    contrast = contrast_after(program.build(seed), seen, unseen, program.lr, recipe, seed)
    if not holds_nothing(contrast):
        return None
    return Finding(
        "labels",
        "the labels tell nothing about the inputs",
        f"In {many(program.steps)} the model learns {percent(score)} of what there is to learn, but by heart: on "
        f"{aside} batches kept from it, {tested(contrast)}.",
        ADVICE,
        numbers={"score": score, **numbers(contrast)},
        category="labels",
    )


FAULT = Fault("labels", "labels", 120, rule=labels, last=True)
