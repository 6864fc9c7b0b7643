"""Rules for what is wrong with the network itself: how signals and changes go through its layers. No torch.

Each reads the Dataset of `evidence.measure_evidence` and nothing else, never a module's type, and gives a finding or
None.
"""

import math

import numpy as np
import xarray as xr

from normscope.diagnosis.faults.set_up import is_summed
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import number, percent

RESIZING_GAIN = 10.0
"""A layer of outsized gain is at fault where the rate at which a step diverges grows by this factor once its weights
are scaled down."""

DEAD_LAYER, DEAD_UNITS = 0.95, 0.6
"""A layer is dead, or dead in large part, where this share of its units has no gradient, at the start and some steps
later."""

SEQUENCE_NATS = math.log(1e3)
"""A recurrence explodes where sizes grow a thousandfold along the sequence."""

VANISHED_SPREAD = 1e-3
"""Outputs say the same whatever the network sees where their spread is below this share of their size."""

VANISHED_GRADIENT = 1e-4
"""Gradients vanish where the first layer's is this much smaller than the last one's."""

STEEP = 7.5
"""Changes of this many layers multiply: with norms the loss rises with power 1 to 2 of the rate, in an unnormalized
network of three layers with power 3, in ResNet-8 without norm with 5 to 7, in ResNet-20 with 8 to 11, in ResNet-56 with
9 to 15."""

STARTS_EXPLODED = 30.0
"""Before any step, the last quarter of the layers has outputs this much larger than the first, ..."""

EXPLODED_LAYERS = 8
"""... in a network of this many layers or more."""

ORIGIN_NATS = 1.0
"""An explosion starts at the layer from which on sizes have grown by this much along the step."""

SATURATED = 0.99
"""A softmax is saturated where half the examples' gradients have an entry this near to 1, ..."""

SATURATED_LOSS = 3.0
"""... and the loss starts at this many times ln K, that of K equal logits."""

ALIGNED_SHARE, ALIGNED_COSINE, ALIGNED_EXCESS = 0.9, 0.3, 1.0
"""Output gradients are aligned where this share of the examples gets one class, two examples' gradients have this
cosine on average, and the loss starts this many nats above that of the best constant output."""


def oversized_layer(evidence: xr.Dataset) -> Finding | None:
    """One layer multiplies its input by far more than the others, and that shortens the steps."""
    gain, layer = float(evidence["resizing_gain"]), str(evidence["resized_layer"].values)
    if not gain >= RESIZING_GAIN:
        return None
    gains = evidence["gain"].where(np.isfinite(evidence["gain"]) & (evidence["gain"] > 0))
    ratio = float(gains.sel(layer=layer) / gains.median())
    return Finding(
        "oversized",
        "one layer is far too large",
        f"{layer} makes its input {number(ratio)} times larger than the other layers do; scaled down to them, a step "
        f"may be {number(gain)} times as long before it diverges.",
        f"Look at how {layer} is initialized, or put a norm behind it.",
        numbers={"resizing_gain": gain, "gain_over_median": ratio},
    )


def silent_units(evidence: xr.Dataset) -> xr.DataArray:
    """The share of units without a gradient both at the start and some steps later, (layer,), where it was measured."""
    both = xr.ufuncs.minimum(evidence["silent_share"], evidence["silent_share_later"])
    return both.dropna("layer")


def gradient_ratio(sizes: xr.DataArray) -> float:
    """The first layer's gradient over the last one's; NaN where there are no two, or the last one has none."""
    known = sizes.dropna("layer").values
    return float(known[0] / known[-1]) if len(known) > 1 and known[-1] > 0 else math.nan


def vanishing(evidence: xr.Dataset) -> Finding | None:
    """Neither inputs get to the output nor gradients to the first layer, though no layer cuts them off. Looked at again
    some steps later, when a last layer that starts at zero has woken up."""
    ratio = float(np.fmax(gradient_ratio(evidence["gradient_size"]), gradient_ratio(evidence["gradient_size_later"])))
    spread = float(np.fmax(evidence["output_spread"], evidence["output_spread_later"]))
    cut = bool((silent_units(evidence) == 1).any())
    if cut or not (ratio < VANISHED_GRADIENT or spread < VANISHED_SPREAD):
        return None
    return Finding(
        "vanishing",
        "the signal dies on its way through the network",
        f"Outputs differ between examples by {number(spread)} of their size, and the first layer's gradient is "
        f"{number(ratio)} times the last one's: the lower layers cannot learn at any rate.",
        "Use an initialization that keeps sizes (kaiming_normal, orthogonal), shortcuts, or norms.",
        numbers={"output_spread": spread, "gradient_ratio": ratio},
    )


def dead_layer(evidence: xr.Dataset) -> Finding | None:
    """A layer lets no gradient through."""
    silent = silent_units(evidence)
    return _dead(silent, silent.values >= DEAD_LAYER)


def dead_units(evidence: xr.Dataset) -> Finding | None:
    """Many units of a layer never learn, but not all."""
    silent = silent_units(evidence)
    if (silent.values >= DEAD_LAYER).any():
        return None
    return _dead(silent, silent.values >= DEAD_UNITS)


def _dead(silent: xr.DataArray, chosen: np.ndarray) -> Finding | None:
    """About the last such layer: those below it are silent because nothing comes back through it."""
    if not chosen.any():
        return None
    place = int(np.flatnonzero(chosen)[-1])
    layer, share = str(silent["layer"].values[place]), float(silent.values[place])
    silenced = int((silent.values[:place] == 1).sum())
    behind = f" No gradient gets past it: {silenced} earlier layers are silent too." if share == 1 and silenced else ""
    return Finding(
        "dead",
        "units are dead",
        f"{percent(share)} of the units of {layer} get no gradient from any example, at the start and some steps "
        f"later.{behind}",
        f"Look at bias and scale of {layer} and at what follows it; a norm behind it, or a smaller rate, keeps units "
        "alive.",
        numbers={"silent_share": share},
    )


def recurrent(evidence: xr.Dataset) -> Finding | None:
    """Sizes multiply from step to step of a sequence."""
    forward, backward = float(evidence["forward_growth"]), float(evidence["backward_growth"])
    if max(forward, backward) < SEQUENCE_NATS:
        return None
    layer = str(evidence["sequence_layer"].values)
    growth = number(math.exp(max(forward, backward)))
    what = (
        f"outputs of {layer} grow {growth} times from its first step to its last"
        if forward >= backward
        else f"gradients at {layer} grow {growth} times from its last step back to its first"
    )
    return Finding(
        "recurrent",
        "the recurrence explodes",
        f"Along the sequence, {what}: a product of as many equal factors as there are steps.",
        "Scale the map from state to state (orthogonal, gain 1), use gates (LSTM, GRU), clip, or shorten the sequence.",
        numbers={"forward_growth": forward, "backward_growth": backward},
    )


def exploding(evidence: xr.Dataset) -> Finding | None:
    """The changes that a step makes in many layers multiply, or sizes have multiplied before any step."""
    steepness, start = float(evidence["steepness"]), start_growth(evidence)
    if not (steepness >= STEEP or start >= STARTS_EXPLODED):
        return None
    origin, last, per_layer, growth = explosion(evidence)
    diverging = float(evidence["diverging_lr"]) / float(evidence["amplification"])
    multiply = f": the changes of about {steepness:.0f} layers multiply" if steepness >= STEEP else ""
    before = (
        f" Before any step the last layers are {number(start)} times the first." if start >= STARTS_EXPLODED else ""
    )
    return Finding(
        "exploding",
        "activations explode along the step",
        f"A step at rate {number(diverging)} makes activations grow from {origin} on, {per_layer:.3g} times a layer, "
        f"to {number(growth)} times at {last}{multiply}.{before}",
        "Norms (everywhere, or at least before the last layer) or a zero-residual initialization stop the product.",
        numbers={"steepness": steepness, "start_growth": start, "growth": growth, "growth_per_layer": per_layer},
    )


def start_growth(evidence: xr.Dataset) -> float:
    """How much larger outputs are in the last quarter of the main path than in the first before any step, by their
    medians; 1 where there are too few layers."""
    sizes = evidence["size"].where(evidence["depth"].notnull(), drop=True).values
    if len(sizes) < EXPLODED_LAYERS:
        return 1.0
    quarter = len(sizes) // 4
    first, last = np.median(sizes[:quarter]), np.median(sizes[-quarter:])
    return float(last / first) if first > 0 else math.nan


def explosion(evidence: xr.Dataset) -> tuple[str, str, float, float]:
    """From which layer on sizes grow along the diverging step, the last layer, the factor a layer between them, and the
    factor in all."""
    main = evidence.sel(layer=evidence["depth"].notnull())
    along = main["size_along_step"]
    with np.errstate(divide="ignore", invalid="ignore"):
        nats = np.log(along.isel(fraction=-1).values / along.isel(fraction=0).values)
    names, nats = main["layer"].values, np.where(np.isfinite(nats), nats, 0.0)
    below = np.flatnonzero(nats < ORIGIN_NATS)
    first = min(int(below[-1]) + 1 if len(below) else 0, len(nats) - 1)
    at_origin = nats[first - 1] if first else 0.0
    per_layer = np.exp((nats[-1] - at_origin) / (len(nats) - first))
    return str(names[first]), str(names[-1]), float(per_layer), float(np.exp(nats[-1]))


def saturated(evidence: xr.Dataset) -> Finding | None:
    """The model is certain before it has learned anything."""
    confidence, start = float(evidence["confidence"]), float(evidence["start_loss"])
    uniform = math.log(max(float(evidence["num_outputs"]), 2))
    if is_summed(evidence):  # and neither number is that of one example
        return None
    if not (bool(evidence["softmax"]) and confidence >= SATURATED and start >= SATURATED_LOSS * uniform):
        return None
    return Finding(
        "saturated",
        "the softmax is saturated from the start",
        f"The loss starts at {number(start)}, {number(start / uniform)} times that of equal logits: logits are so "
        "large that the model is certain of classes before it has learned any.",
        "Make the logits smaller: scale down the last layer or a temperature, or put a norm in front of it.",
        numbers={"confidence": confidence, "start_loss": start},
    )


def aligned(evidence: xr.Dataset) -> Finding | None:
    """All examples push the output the same way."""
    share, cosine = float(evidence["commonest_share"]), float(evidence["mean_cosine"])
    excess = float(evidence["start_loss"]) - float(evidence["constant_loss"])
    if not (share >= ALIGNED_SHARE and cosine >= ALIGNED_COSINE and excess >= ALIGNED_EXCESS):
        return None
    return Finding(
        "aligned",
        "output gradients are aligned on one class",
        f"{percent(share)} of a batch gets the same class, and two examples' gradients at the output have cosine "
        f"{cosine:.2f} on average: they add up instead of cancelling.",
        "A norm in front of the last layer spreads the outputs.",
        numbers={"commonest_share": share, "mean_cosine": cosine},
    )
