"""Batches that each hold examples of one kind: data that were not shuffled."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.model.batch import joined, num_examples, take, targets_of
from normscope.statistics.numbers import percent

WITHIN = 0.5
"""Of the targets' variance, or of the chance that two labels differ, what is left within a batch of unshuffled data."""

FEWEST = 4
"""Examples of a batch, and batches."""


def share_within(targets: Sequence[Tensor], kind: str) -> float:
    """How much targets vary within a batch, over all; 1 where they do not vary at all."""

    def varied(t: Tensor) -> float:
        if kind == "labels":
            shares = t.unique(return_counts=True)[1].double() / t.numel()  # some may be negative, as ignored ones are
            return float(1 - shares.square().sum())
        return float(t.double().var(0, correction=0).sum())

    whole = varied(torch.cat(list(targets)))
    return sum(map(varied, targets)) / len(targets) / whole if whole > 0 else 1.0


def _suspected(facts: Facts) -> Suspicion | None:
    batches = facts.program.batches
    targets = [t for batch in batches if (t := targets_of(batch)) is not None]
    if facts.kind not in ("labels", "number", "binary", "one_hot") or len(targets) < max(FEWEST, len(batches)):
        return None
    if min(len(t) for t in targets) < FEWEST or not (within := share_within(targets, facts.kind)) < WITHIN:
        return None
    return Suspicion(
        "the data are not shuffled",
        f"Targets vary within a batch by {percent(within)} of what they vary in all: every step is taken on examples "
        "of one kind.",
        {"within_batches": within},
        place="batches",
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    size, together = num_examples(program.batches[0]), joined(program.batches)
    total = None if together is None else num_examples(together)
    if size is None or together is None or total is None:
        return
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    batches = [take(together, part) for part in order.split(size)]
    code = f"DataLoader(data, batch_size={facts.batch_size}, shuffle=True)"
    yield Repair(replace(program, batches=batches), code, "the examples shuffled", "batches")


FAULT = Fault("sorted_batches", "batch_size", 38, suspected=_suspected, repairs=_repairs)
