"""Targets out of scale: numbers far larger or smaller than 1, or far from 0."""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.facts import Facts, judged_anew
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.model.batch import Batch
from normscope.statistics.numbers import number

LARGE, SMALL, FAR = 10.0, 0.05, 5.0
"""Standard deviations of the targets, and their mean over it, from which on they are suspected."""

CODE = (
    "mean, std = targets.mean(), targets.std()\ntargets = (targets - mean) / std\n"
    "# and of the model's outputs: prediction = mean + std * output"
)


def of_bits(facts: Facts) -> bool:
    """Whether the loss takes targets between 0 and 1, and is given others."""
    return facts.family in ("bce", "bce_logits") and (facts.target_low < 0 or facts.target_high > 1)


def _suspected(facts: Facts) -> Suspicion | None:
    mean, std = facts.target_mean, facts.target_std
    if of_bits(facts):
        return Suspicion(
            "the targets are not between 0 and 1",
            f"The loss is binary cross-entropy, and the targets run from {number(facts.target_low)} to "
            f"{number(facts.target_high)}.",
            {"target_low": facts.target_low, "target_high": facts.target_high},
            True,
            place="targets",
        )
    if facts.kind != "number" or not std > 0 or not (std > LARGE or std < SMALL or abs(mean) > FAR * std):
        return None
    return Suspicion(
        "the targets are out of scale",
        f"Targets have mean {number(mean)} and standard deviation {number(std)}, while a fresh network's outputs have "
        "size 1.",
        {"target_mean": mean, "target_std": std},
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    mean, std, code, done = facts.target_mean, facts.target_std, CODE, "the targets standardized"
    if not std > 0:
        return
    if of_bits(facts):
        mean, std = facts.target_low, facts.target_high - facts.target_low
        code, done = f"targets = (targets - {mean:g}) / {std:g}", "the targets between 0 and 1"

    def changed(batch: Batch) -> Batch:
        return type(batch)([batch[0], (batch[1] - mean) / std])

    if all(type(batch) in (tuple, list) and len(batch) == 2 for batch in program.batches):
        batches = [changed(batch) for batch in program.batches]
        yield Repair(judged_anew(replace(program, batches=batches)), code, done, "targets")


FAULT = Fault("targets", "preprocessing", 21, suspected=_suspected, repairs=_repairs)
