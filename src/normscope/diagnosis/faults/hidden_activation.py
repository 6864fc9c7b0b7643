"""Sigmoids or tanhs between the layers, behind which gradients shrink layer by layer."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion, named
from normscope.diagnosis.patches import activation_in_place
from normscope.diagnosis.program import Program

SQUASHING = ("sigmoid", "tanh", "softmax", "exp", "relu6", "hardtanh", "softsign")


def squashed(facts: Facts) -> list[int]:
    """The places of hidden layers whose activation is bounded."""
    between = facts.chain.between[:-1] if facts.chain else ()
    return [place for place, name in enumerate(between) if name in SQUASHING]


def _suspected(facts: Facts) -> Suspicion | None:
    places = squashed(facts)
    if not places or facts.chain is None:
        return None
    names = ", ".join(sorted({facts.chain.between[place] for place in places}))
    return Suspicion(
        f"{names} between the layers lets little through",
        f"{len(places)} hidden layers end in {names}.",
        {"squashed_layers": float(len(places))},
        place=facts.chain.layers[places[0]],
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    places = squashed(facts)
    if not places or facts.chain is None:
        return
    layers = tuple(facts.chain.layers[place] for place in places)
    following = tuple(facts.chain.layers[place + 1] for place in places)
    patches = (*program.patches, activation_in_place(layers, following, torch.relu))
    code = "\n".join(f"# behind {layer}: nn.ReLU()" for layer in layers)
    yield Repair(replace(program, patches=patches), code, f"ReLU behind {named(layers)}", layers[0])


FAULT = Fault("hidden_activation", "activation", 49, suspected=_suspected, repairs=_repairs, tuning=True)
