"""Nothing between the layers: a product of linear maps is one linear map."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion, named
from normscope.diagnosis.patches import activation_behind
from normscope.diagnosis.program import Program

SHARE = 0.3
"""Of the hidden layers, those without an activation: a bottleneck or a projection in a deep network has none on
purpose."""


def bare_layers(facts: Facts) -> tuple[str, ...]:
    """The layers, but for the last, whose output reaches the next as it is."""
    if facts.chain is None:
        return ()
    pairs = zip(facts.chain.layers[:-1], facts.chain.between[:-1], strict=True)
    return tuple(layer for layer, between in pairs if between == "identity")


def _suspected(facts: Facts) -> Suspicion | None:
    bare = bare_layers(facts)
    hidden = len(facts.chain.layers) - 1 if facts.chain else 0
    if not bare or len(bare) < SHARE * hidden:
        return None
    return Suspicion(
        "no nonlinearity between the layers",
        f"What {named(bare)} give{'s' * (len(bare) == 1)} reaches the next layer as it is: {len(bare)} of {hidden} "
        "hidden layers have no activation.",
        {"bare_layers": float(len(bare)), "hidden_layers": float(hidden)},
        place=bare[0],
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    bare = bare_layers(facts)
    if bare:
        patches = (*program.patches, activation_behind(bare, torch.relu))
        code = "\n".join(f"# behind {layer}: nn.ReLU()" for layer in bare)
        yield Repair(replace(program, patches=patches), code, f"ReLU behind {named(bare)}", bare[0])


FAULT = Fault("no_nonlinearity", "activation", 45, suspected=_suspected, repairs=_repairs)
