"""Rules for what is wrong with the data, the loss, or what of the model is trained. No torch.

Each reads the Dataset of `evidence.measure_evidence` and nothing else, and gives a finding or None.
"""

import xarray as xr

from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import number, percent

EXTENSIVE = 1.5
"""On a batch taken twice a mean's loss is 1 times, a sum's 2 times that on the batch."""

FROZEN_SHARE = 0.5
"""Fewer of the parameters than this can move."""

SCALING_GAIN = 10.0
"""Inputs are at fault where the rate at which a step diverges changes by this factor once they are standardized, or the
spread of the outputs grows by it."""

BATCH_NOISE = 0.75
"""An example's output moves by this share of the outputs' spread with its batch. With batch norm in three layers it is
about 0.4 on 32 examples, 0.9 on 4; in ResNet-110 it is 0.5 on 128 and 0.7 on 32."""

FITS_ONE_BATCH = 0.7
"""A model that can learn brings the loss on one batch below this share in a few steps on nothing else."""

NOTHING_HOLDS, PERHAPS_NOTHING = 0.03, 0.1
"""Labels tell nothing where those of unseen batches are predicted no better than permuted ones: by less than the first
share of the loss, or by less than the second ..."""

STANDARD_ERRORS = 3.0
"""... and by less than this many standard errors."""


def is_summed(evidence: xr.Dataset) -> bool:
    """Whether the loss is a sum over the batch."""
    return float(evidence["extensivity"]) > EXTENSIVE


def summed_loss(evidence: xr.Dataset) -> Finding | None:
    """The loss grows with the number of examples."""
    extensivity = float(evidence["extensivity"])
    if not is_summed(evidence):
        return None
    return Finding(
        "summed",
        "the loss is a sum over the batch",
        f"The same batch taken twice gives {extensivity:.2g} times the loss: gradients, and with them the rates, "
        "depend on the batch size.",
        "Take the mean over examples, as with reduction='mean'; rates then grow by the batch size.",
        numbers={"extensivity": extensivity},
    )


def frozen(evidence: xr.Dataset) -> Finding | None:
    """Most parameters cannot move."""
    trainable, reached = float(evidence["trainable_share"]), float(evidence["reached_share"])
    if trainable * reached >= FROZEN_SHARE:
        return None
    why = (
        f"Only {percent(trainable)} of the parameters require a gradient."
        if trainable < FROZEN_SHARE
        else f"No gradient arrives at {percent(1 - reached)} of the parameters: the loss does not depend on them."
    )
    return Finding(
        "frozen",
        "most of the model cannot move",
        f"{why} The rates are those of the rest.",
        "Unless it is meant: unfreeze the body (requires_grad), look for detach() or no_grad() in the forward pass.",
        numbers={"trainable_share": trainable, "reached_share": reached},
    )


def unscaled_inputs(evidence: xr.Dataset) -> Finding | None:
    """Standardized inputs would change the rates."""
    gain, scale = float(evidence["scaling_gain"]), float(evidence["input_scale"])
    imbalance = float(evidence["feature_imbalance"])
    spread = float(evidence["scaled_spread"]) / max(float(evidence["output_spread"]), 1e-30)
    longer = gain >= SCALING_GAIN or gain <= 1 / SCALING_GAIN
    if not (longer or spread >= SCALING_GAIN):
        return None
    effect = (
        f"a step may be {number(gain)} times as long before it diverges"
        if longer
        else f"outputs differ {number(spread)} times as much between examples"
    )
    return Finding(
        "inputs",
        "the inputs are out of scale",
        f"The largest input feature has size {number(scale)}, {number(imbalance)} times the median one; with each at "
        f"mean 0 and standard deviation 1 {effect}.",
        "Standardize the inputs: subtract the mean of each feature or channel, divide by its standard deviation.",
        numbers={"scaling_gain": gain, "spread_gain": spread, "input_scale": scale, "feature_imbalance": imbalance},
    )


def batch_noise(evidence: xr.Dataset) -> Finding | None:
    """What an example gives depends on chance, on who shares its batch."""
    coupling = float(evidence["coupling"])
    if not coupling >= BATCH_NOISE:
        return None
    return Finding(
        "batch_noise",
        "examples depend on who shares their batch",
        f"An example's output moves by {percent(coupling)} of the outputs' spread with the rest of its batch: batches "
        "are too small for the statistics taken over them.",
        "Give larger batches, or a norm of one example in place of batch norm: group, layer or rms.",
        numbers={"coupling": coupling},
    )


def labels(evidence: xr.Dataset) -> Finding | None:
    """The model learns, but nothing that holds on other batches."""
    one, contrast = float(evidence["one_batch"]), float(evidence["contrast"])
    unsure = contrast < PERHAPS_NOTHING and contrast < STANDARD_ERRORS * float(evidence["contrast_error"])
    if not (one < FITS_ONE_BATCH and (contrast < NOTHING_HOLDS or unsure)):
        return None
    return Finding(
        "labels",
        "the labels tell nothing about the inputs",
        f"The model learns one batch by heart ({percent(one)} of the loss is left), but nothing that it learns from "
        f"many holds on others: there the right labels save {percent(max(contrast, 0.0))} of the loss against permuted "
        "ones.",
        "The rate is not the problem. Do inputs and labels belong together, or were they shuffled or shifted?",
        numbers={"one_batch": one, "contrast": contrast},
    )


def stuck(evidence: xr.Dataset) -> Finding | None:
    """It does not even learn one batch by heart."""
    one, contrast = float(evidence["one_batch"]), float(evidence["contrast"])
    if not one >= FITS_ONE_BATCH or contrast >= PERHAPS_NOTHING:
        return None
    return Finding(
        "stuck",
        "it hardly learns",
        f"After {float(evidence['trial_steps']):.0f} steps on one and the same batch, at the best of several rates, "
        f"{percent(one)} of its loss is left.",
        "Look at the loss and the targets; try more steps, another initialization, or norms.",
        numbers={"one_batch": one, "contrast": contrast},
    )
