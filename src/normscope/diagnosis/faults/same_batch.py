"""Every batch is the same one: the loop, or the loader, starts anew each time."""

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.model.batch import Batch

FEWEST = 4
"""Batches from which on that is no chance."""


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same numbers, and any at all: a loss that sees no data is the same for all."""
    numbers = [[part for part in pytree.tree_leaves(batch) if isinstance(part, Tensor)] for batch in (one, other)]
    return bool(numbers[0]) and len(numbers[0]) == len(numbers[1]) and all(map(torch.equal, *numbers))


def _suspected(facts: Facts) -> Suspicion | None:
    first = facts.first
    if first is None or len(first.losses) < FEWEST or first.refused or not first.gradients[0] > 0:
        return None
    seen = set(zip(first.losses, first.gradients, first.examples, strict=True))
    if len(seen) > 1 or not all(same(facts.program.batches[0], batch) for batch in facts.program.batches[1:]):
        return None
    count = len(first.losses)
    return Suspicion(
        "every batch is the same",
        f"All {count} batches have the same loss, {first.losses[0]:.6g}, and the same gradient: {first.examples[0]} "
        "examples are all that is trained on.",
        {"batches": float(count), "examples": float(first.examples[0])},
        True,
        place="the batches",
    )


def _advice(_facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    return (
        "Walk through the loader: next(iter(loader)) begins anew. To fit one batch on purpose, give that one.",
        "for batch in loader:  # not: batch = next(iter(loader))",
    )


FAULT = Fault("same_batch", "epochs", 5, suspected=_suspected, advice=_advice, early=True)
