"""A loss that right outputs do not lower: its sign is turned round, or it does not see which output is whose.

Measured: the loss of the best outputs for the targets, and of the same ones exchanged among the examples.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from normscope.diagnosis.facts import Facts, judged_anew
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.faults.loss_of_classes import of_classes
from normscope.diagnosis.faults.overflow import overflow
from normscope.diagnosis.outputs import MINUS
from normscope.diagnosis.program import Program
from normscope.model.batch import Batch, targets_of
from normscope.model.loss import default_loss
from normscope.statistics.numbers import number

SAME = 1e-4
"""Losses that differ by this share are the same."""


def _suspected(facts: Facts) -> Suspicion | None:
    if facts.family.startswith(MINUS):
        return Suspicion(
            "the loss has the wrong sign",
            f"The loss is the {facts.family.removeprefix(MINUS)} times a negative number: the worse the outputs, the "
            "lower it is.",
            {},
            certain=True,
            place="the loss",
        )
    if facts.evidence is not None and overflow(facts.evidence) is not None:
        return None  # numbers out of range come first
    could = facts.reach
    if could is None or facts.family or facts.batch_size < 2 or facts.kind not in ("labels", "number"):
        return None
    size = SAME * max(map(abs, (could.exchanged, could.lowest, could.constant, could.elsewhere)))
    if not (could.exchanged <= could.lowest + size and could.elsewhere > could.lowest + 2 * size):
        return None
    return Suspicion(
        "the loss does not see which output is whose",
        f"The best outputs give a loss of {number(could.lowest)}, and {number(could.exchanged)} where each example is "
        "given those of another.",
        {"lowest_loss": could.lowest, "exchanged_loss": could.exchanged},
        certain=True,
        place="the loss",
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    if facts.family.startswith(MINUS):

        def turned(model: nn.Module, batch: Batch) -> Tensor:
            return -(program.loss_fn or default_loss)(model, batch)

        yield Repair(judged_anew(replace(program, loss_fn=turned)), "loss = -loss", "the sign turned", "the loss")
        return
    if not all(type(batch) in (tuple, list) and len(batch) == 2 for batch in program.batches):
        return
    labels = facts.kind == "labels"
    code = f"loss = nn.functional.{'cross_entropy' if labels else 'mse_loss'}(outputs, targets)"
    made = replace(program, loss_fn=of_classes if labels else of_numbers)
    yield Repair(judged_anew(made), code, "a loss of each example", "the loss")


def of_numbers(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of a pair."""
    outputs, targets = model(batch[0]), targets_of(batch)
    assert targets is not None
    return F.mse_loss(outputs, targets.to(outputs.dtype).reshape(outputs.shape))


FAULT = Fault("blind_loss", "loss", 39, suspected=_suspected, repairs=_repairs)
