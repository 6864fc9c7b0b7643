"""Data that are not finite: NaN or inf in the inputs or the targets themselves."""

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion

KEEP = (
    "keep = torch.isfinite(inputs.flatten(1)).all(1) & torch.isfinite(targets.flatten(1).float()).all(1)\n"
    "inputs, targets = inputs[keep], targets[keep]"
)


def _suspected(facts: Facts) -> Suspicion | None:
    bad = facts.first.not_finite if facts.first else None
    if facts.first is None or bad is None or not bad.data:
        return None
    where = f"batch {bad.batch} of {len(facts.first.losses)} (from 0)"
    where += f", example {bad.example}" if bad.example >= 0 else ""
    more = f" So do {bad.others} more batches." if bad.others else ""
    return Suspicion(
        "the data are not finite",
        f"In {where} {bad.data} hold NaN or inf: the loss is {bad.loss:g} before any step.{more}",
        {"batch": float(bad.batch), "example": float(bad.example), "others": float(bad.others)},
        True,
        place=where,
    )


def _advice(_facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    return "Leave those examples out, or fill in what is missing before they are batched.", KEEP


FAULT = Fault("not_finite_data", "numerics", 1, suspected=_suspected, advice=_advice, early=True)
