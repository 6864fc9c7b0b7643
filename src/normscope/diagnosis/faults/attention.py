"""Attention that has made up its mind before it has learned anything: logits so large that each query looks at one key,
as where they are not divided by the root of a head's width. Behind a saturated softmax gradients vanish."""

from collections.abc import Iterator
from dataclasses import replace

from normscope.diagnosis.attention import Attention, logits_scaled
from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion, module
from normscope.diagnosis.program import Program
from normscope.statistics.numbers import number

SPREAD, LARGEST = 4.0, 0.5
"""Attention is suspected where the logits of a query spread this much and its largest weight is this large, on average.
Fresh weights and logits divided by √d give a spread of 1 or less."""

CODE = "scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])  # or normalize q and k"


def saturated_attention(facts: Facts) -> list[Attention]:
    """The softmaxes over keys that are."""
    seen = facts.transformer.attentions if facts.transformer else ()
    return [one for one in seen if one.spread >= SPREAD and one.largest >= LARGEST]


def _suspected(facts: Facts) -> Suspicion | None:
    sharp = saturated_attention(facts)
    if not sharp or facts.transformer is None:
        return None
    worst = max(sharp, key=lambda one: one.spread)
    return Suspicion(
        "attention is saturated from the start",
        f"The logits of a query in {module(worst.module)} spread by {number(worst.spread)} over {worst.keys} "
        f"keys, and its largest weight is {worst.largest:.2f} on average before any step; so it is in {len(sharp)} of "
        f"{len(facts.transformer.attentions)} layers of attention.",
        {"logit_spread": worst.spread, "largest_weight": worst.largest, "saturated": float(len(sharp))},
        place=worst.module,
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    sharp = saturated_attention(facts)
    if sharp:
        patch = logits_scaled({one.module: 1 / one.spread for one in sharp})
        made = replace(program, patches=(*program.patches, patch))
        yield Repair(made, CODE, "attention's logits scaled down", sharp[0].module)


FAULT = Fault("attention", "architecture", 41, suspected=_suspected, repairs=_repairs)
