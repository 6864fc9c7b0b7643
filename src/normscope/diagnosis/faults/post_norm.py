"""Many norms behind their branches: gradients of the last layers are large at the start, and a full first step spoils
them. Norms in front of the branches, or a warmup, keep that from happening."""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.surgery.residual import has_post_norm, with_pre_norm

MANY = 8
"""Norms behind branches: two a layer."""

GAIN = 0.06
"""Deep transformers learn slowly: less is asked for than of other repairs."""

WARMUP_SHARE = 0.25


def _suspected(facts: Facts) -> Suspicion | None:
    count = facts.transformer.post_norms if facts.transformer else 0
    if count < MANY:
        return None
    return Suspicion(
        "post-norm, too deep for a start without warmup",
        f"{count} norms stand behind the sum of a branch and what it leads around.",
        {"post_norms": float(count)},
    )


def _repairs(program: Program, _facts: Facts) -> Iterator[Repair]:
    def pre_norm(seed: int) -> nn.Module:
        return with_pre_norm(program.build(seed))

    if has_post_norm(program.build(0)):
        code = "layer = nn.TransformerEncoderLayer(..., norm_first=True)"
        yield Repair(replace(program, build=pre_norm), code, "norms in front of the branches (norm_first=True)")
    steps = max(round(WARMUP_SHARE * program.steps), 1)
    code = (
        f"warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / {steps}, total_iters={steps})\n"
        "warmup.step()  # after every optimizer.step()"
    )
    if not program.warmup:
        yield Repair(replace(program, warmup=steps), code, f"a warmup over {steps} steps", "lr")


FAULT = Fault("post_norm", "architecture", 47, suspected=_suspected, repairs=_repairs, gain=GAIN)
