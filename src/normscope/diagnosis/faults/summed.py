"""The loss is a sum over the batch."""

from collections.abc import Iterator
from dataclasses import replace

import xarray as xr
from torch import Tensor, nn

from normscope.diagnosis.facts import Facts, judged_anew
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.finding import Finding
from normscope.diagnosis.program import Program
from normscope.model.batch import Batch
from normscope.model.loss import default_loss

EXTENSIVE = 1.5
"""On a batch taken twice a mean's loss is 1 times, a sum's 2 times that on the batch."""


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
        _sentence(extensivity),
        "Take the mean over examples, as with reduction='mean'; rates then grow by the batch size.",
        numbers={"extensivity": extensivity},
    )


def _sentence(extensivity: float) -> str:
    return (
        f"The same batch taken twice gives {extensivity:.2g} times the loss: gradients, and with them the rates, "
        "depend on the batch size."
    )


def _suspected(facts: Facts) -> Suspicion | None:
    if facts.evidence is None or not is_summed(facts.evidence) or facts.batch_size < 2:
        return None
    extensivity = float(facts.evidence["extensivity"])
    return Suspicion("the loss is a sum over the batch", _sentence(extensivity), {"extensivity": extensivity})


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    def mean(model: nn.Module, batch: Batch) -> Tensor:
        return (program.loss_fn or default_loss)(model, batch) / facts.batch_size

    made = judged_anew(replace(program, loss_fn=mean))
    yield Repair(made, "loss = loss / len(targets)  # or reduction='mean'", "the mean over the batch", "the loss")


FAULT = Fault("summed", "loss", 41, rule=summed_loss, suspected=_suspected, repairs=_repairs)
