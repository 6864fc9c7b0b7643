"""Inputs out of scale: features far larger or smaller than 1 or than each other, or far from their mean."""

from collections.abc import Iterator
from dataclasses import replace

import xarray as xr

from normscope.diagnosis.batch_tests import with_standardized_inputs
from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.finding import Finding
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import number

LARGE, SMALL, UNEQUAL, FAR = 10.0, 0.05, 30.0, 5.0
"""Sizes of a feature, largest over median size, and mean over standard deviation from which on inputs are suspected."""

SCALING_GAIN = 10.0
"""Inputs are at fault where the rate at which a step diverges changes by this factor once they are standardized, or the
spread of the outputs grows by it."""

CODE = "mean, std = inputs.mean(0), inputs.std(0)\ninputs = (inputs - mean) / std.clamp(min=1e-8)"


def _suspected(facts: Facts) -> Suspicion | None:
    large, small = facts.input_size > LARGE, facts.smallest_input < SMALL
    if not (large or small or facts.input_imbalance > UNEQUAL or facts.input_offset > FAR):
        return None
    return Suspicion(
        "the inputs are out of scale",
        f"The largest input feature has size {number(facts.input_size)}, {number(facts.input_imbalance)} times the "
        f"median one; means lie {number(facts.input_offset)} standard deviations from 0.",
        {
            "input_scale": facts.input_size,
            "feature_imbalance": facts.input_imbalance,
            "input_offset": facts.input_offset,
        },
    )


def _repairs(program: Program, _facts: Facts) -> Iterator[Repair]:
    batches = with_standardized_inputs(program.batches)
    if batches is not None:
        yield Repair(replace(program, batches=batches), CODE, "the inputs standardized", "inputs")


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


FAULT = Fault("inputs", "preprocessing", 20, rule=unscaled_inputs, suspected=_suspected, repairs=_repairs)
