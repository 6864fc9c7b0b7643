"""The signal dies on its way through the network, forwards or backwards."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import xarray as xr

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault
from normscope.diagnosis.faults.dead_layer import silent_units
from normscope.diagnosis.faults.hidden_activation import squashed
from normscope.diagnosis.faults.initialization import CODE
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import number

VANISHED_SPREAD = 1e-3
"""Outputs say the same whatever the network sees where their spread is below this share of their size."""

SMALL_GAIN = 0.5
"""Weights that multiply sizes by less are called small; torch's own linear maps do so by 0.58."""

VANISHED_GRADIENT = 1e-4
"""Gradients vanish where the first layer's is this much smaller than the last one's."""


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
        f"{' and '.join(_seen(spread, ratio))}: the lower layers cannot learn at any rate.",
        "Use an initialization that keeps sizes (kaiming_normal, orthogonal), shortcuts, or norms.",
        numbers={"output_spread": spread, "gradient_ratio": ratio},
    )


def _seen(spread: float, ratio: float) -> Iterator[str]:
    if not math.isnan(spread):
        yield f"Outputs differ between examples by {number(spread)} of their size"
    if not math.isnan(ratio):
        yield f"{'T' if math.isnan(spread) else 't'}he first layer's gradient is {number(ratio)} times the last one's"


def _cause(finding: Finding, facts: Facts) -> Finding:
    """Bounded activations between the layers, or weights that are too small."""
    places, gains = squashed(facts), [gain for _, gain in facts.weight_gains]
    if places and facts.chain is not None:
        names = ", ".join(sorted({facts.chain.between[place] for place in places}))
        return replace(
            finding,
            sentence=f"{finding.sentence} {len(places)} hidden layers end in {names}: less gets through each.",
            advice=f"Use ReLU or GELU in the place of {names}, or norms or shortcuts.",
            category="activation",
            place=facts.chain.layers[places[0]],
            code="\n".join(f"# behind {facts.chain.layers[place]}: nn.ReLU()" for place in places),
        )
    if gains and (median := float(np.median(gains))) < SMALL_GAIN:
        said = f"{finding.sentence} Half of the layers' weights multiply sizes by {number(median)} or less."
        return replace(finding, sentence=said, numbers={**finding.numbers, "median_gain": median}, code=CODE)
    return finding


FAULT = Fault("vanishing", "initialization", 103, rule=vanishing, detail=_cause, harmless=True)
