"""A loss or a gradient that is not finite before any step: which batch, which example, which parameters, and where the
number comes from."""

import math

from normscope.diagnosis.attention import transformer
from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.diagnosis.faults.mask import CAUSAL

AHEAD = 0.99
"""Share of the visible keys that lie ahead of their query, behind a mask that is turned round."""

SHOWN = 3
"""Names of parameters."""

GUARDS = {
    "sqrt": "sqrt(x + 1e-8): the derivative of sqrt at 0 is infinite",
    "pow": "(x + 1e-8) ** p: the derivative at 0 is infinite",
    "log": "log(x.clamp(min=1e-8)), or a function of the logits such as log_softmax",
    "div": "divide by x.clamp(min=1e-8)",
    "softmax": "mask = mask & ~mask.all(-1, keepdim=True): a row of -inf only has no softmax",
    "acos": "acos(x.clamp(-1 + 1e-6, 1 - 1e-6))",
    "norm": "sqrt(x.square().sum() + 1e-8)",
}
"""What keeps an operation's derivative finite."""


def _suspected(facts: Facts) -> Suspicion | None:
    if facts.first is None or facts.first.not_finite is None:
        return None
    bad = facts.first.not_finite
    if bad.data:
        return None  # `not_finite_data` says so
    count = len(facts.first.losses)
    where = f"batch {bad.batch} of {count} (from 0)" + (f", example {bad.example}" if bad.example >= 0 else "")
    more = f" So do {bad.others} more batches." if bad.others else ""
    numbers = {"batch": float(bad.batch), "example": float(bad.example), "loss": bad.loss, "others": float(bad.others)}
    if math.isfinite(bad.loss):
        names = ", ".join(bad.parameters[:SHOWN]) + (", ..." if len(bad.parameters) > SHOWN else "")
        origin = f" It comes from {bad.operation}." if bad.operation else ""
        sentence = (
            f"Before any step {where} gives a finite loss, {bad.loss:.3g}, and a gradient that is not finite: at "
            f"{names}.{origin}{more}"
        )
        return Suspicion("the gradient is not finite before any step", sentence, numbers, True, place=where)
    if bad.module is None:
        origin = " Every module's output is finite: it comes from the loss itself, such as log(0) or 0/0."
    elif bad.module:
        origin = f" The first module that makes it of finite inputs is {bad.module} ({bad.kind})."
    else:
        origin = f" No part makes it of finite inputs: it comes from the forward of {bad.kind} itself."
    if bad.half:
        origin += f" It leaves the range of {bad.half}; in a wider format loss and gradient are finite."
    made = f" The operation is {bad.operation}." if bad.operation else ""
    if inverted := inverted_mask(facts):
        made += f" {inverted} sees only the keys ahead of each query, and the last none: the mask is turned round."
    sentence = f"Before any step {where} gives a loss of {bad.loss:g}.{origin}{made}{more}"
    return Suspicion("the loss is not finite before any step", sentence, numbers, True, place=where)


def inverted_mask(facts: Facts) -> str:
    """The module whose attention sees nothing but what lies ahead, where a softmax over hidden keys gives NaN."""
    bad = facts.first.not_finite if facts.first else None
    if bad is None or not bad.operation.endswith("softmax") or bad.batch >= len(facts.program.batches):
        return ""
    seen = transformer(facts.program.build(0), facts.program.batches[bad.batch], facts.program.loss_fn)
    turned = [one.module or "the model" for one in seen.attentions if one.ahead > AHEAD] if seen else []
    return turned[0] if turned else ""


def _advice(facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    """What to do, and the line."""
    bad = facts.first.not_finite if facts.first else None
    if bad is None:
        return "", ""
    if bad.half:
        advice = "Use bfloat16, or float32 for that layer; or make its weights smaller, or put a norm in front of it."
        return advice, "with torch.autocast(device_type, torch.bfloat16):  # bfloat16 has float32's range\n    ..."
    if inverted_mask(facts):
        return "Turn the mask round: what lies ahead of a query is hidden.", CAUSAL
    guard = next((line for name, line in GUARDS.items() if bad.operation.endswith(name)), "")
    if guard:
        return f"Guard {bad.operation}, or leave that example out.", f"# {guard}"
    return "Look at that example: empty, masked as a whole, NaN? Leave it out, or guard the operation.", ""


FAULT = Fault("not_finite", "numerics", 1, suspected=_suspected, advice=_advice, early=True)
