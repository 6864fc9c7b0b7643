"""The output cannot take the values that the loss asks for: a softmax or sigmoid that the loss applies again, a softmax
over one unit, a ReLU, sigmoid or tanh in front of targets beyond its range.

Measured: which activation stands last, and what the loss gives for the best outputs within its range, for the best free
ones and for the best constant one. Certain, since no weights can do better.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.patches import output_through
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import number

OUT_OF_REACH = 0.15
"""The share of what there is to learn that the range keeps from the outputs."""

MODULES = {"sigmoid": "nn.Sigmoid()", "softmax": "nn.Softmax(-1)", "relu": "nn.ReLU()", "tanh": "nn.Tanh()"}

FUNCTIONS = {"sigmoid": torch.sigmoid, "softmax": lambda z: torch.softmax(z, -1), "identity": lambda z: z}


def wanted_activation(facts: Facts) -> str:
    """The activation that the loss and the targets ask for behind the last layer."""
    if facts.family in ("cross_entropy", "bce_logits", "nll"):
        return "identity" if facts.family != "nll" else "log_softmax"
    if facts.family == "log_of_probabilities" or facts.kind == "one_hot":
        return "softmax" if facts.num_outputs > 1 else "sigmoid"
    return "sigmoid" if facts.family == "bce" or facts.kind in ("binary", "multi_hot") else "identity"


def out_of_reach(facts: Facts) -> bool:
    """Whether the activation at the output keeps a part of what there is to learn from it."""
    known = facts.reach is not None and facts.last not in ("", "identity", wanted_activation(facts))
    return known and facts.reach is not None and facts.reach.missed > OUT_OF_REACH


def _suspected(facts: Facts) -> Suspicion | None:
    could = facts.reach
    if could is None or not out_of_reach(facts):
        return None
    numbers = {"out_of_reach": could.missed, "best_in_range": could.in_range, "constant_loss": could.constant}
    best = f"no weights bring the loss below {number(could.in_range)}"
    constant = f"the best constant gives {number(could.constant)}, free outputs {number(could.lowest)}"
    if facts.last == "softmax" and facts.num_outputs == 1:
        title = "a softmax over one unit is the constant 1"
        sentence = f"The output is 1 for every example, whatever the weights: {best}, where {constant}."
    elif facts.family in ("cross_entropy", "bce_logits"):
        title = "the output already is a distribution: the loss applies its softmax again"
        if facts.last not in ("softmax", "sigmoid"):
            title = f"{facts.last} confines the logits"
        sentence = f"The model ends in {facts.last}, and the loss takes logits: {best}, where {constant}."
    else:
        title = "the output cannot reach the targets"
        sentence = f"The model ends in {facts.last}: {best}, where {constant}."
    return Suspicion(title, sentence, numbers, certain=True, place=facts.chain.layers[-1] if facts.chain else "")


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    if facts.chain is not None:
        yield output_repair(program, facts, wanted_activation(facts))


def output_repair(program: Program, facts: Facts, activation: str) -> Repair:
    """The program with this activation behind its last layer, in place of the one there."""
    assert facts.chain is not None
    layer = facts.chain.layers[-1]
    function = FUNCTIONS.get(activation, torch.log_softmax)
    if activation == "log_softmax":

        def function(z: Tensor) -> Tensor:
            return torch.log_softmax(z, -1)

    said = MODULES.get(facts.last, f"the {facts.last}")
    there = "" if facts.last in ("", "identity") else said
    if activation == "identity":
        code = f"# {layer} is the last layer: drop {there} behind it\noutput = z  # what {layer} gives"
        done = f"no {facts.last} behind layer {layer}"
    else:
        new = "torch.log_softmax(z, -1)" if activation == "log_softmax" else f"{MODULES[activation]}(z)"
        code = f"# behind {layer}, the last layer" + (f", in place of {there}" if there else "")
        code += f"\noutput = {new}  # z: what {layer} gives"
        done = f"{activation} behind layer {layer}"
    return Repair(replace(program, patches=(*program.patches, output_through(layer, function))), code, done, layer)


FAULT = Fault("output_range", "activation", 10, suspected=_suspected, repairs=_repairs)
