"""Numbers near the end of float16's range, or beyond it a short step away: whatever grows a little overflows."""

import math

import xarray as xr

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.diagnosis.finding import Finding
from normscope.diagnosis.number_range import NEAR
from normscope.statistics.numbers import number, percent

END = 65504.0
"""float16's largest number."""

LONGER = 3.0
"""A wider format helps where the step that diverges is this much longer in it."""

CODE = (
    "with torch.autocast(device_type, torch.bfloat16):  # bfloat16 has float32's range\n"
    "    ...\n"
    "# or leave that layer in float32:\n"
    "with torch.autocast(device_type, enabled=False):\n"
    "    y = model.get_submodule({layer!r})(x.float())"
)


def number_range(evidence: xr.Dataset) -> Finding | None:
    """A layer's numbers are near the end of float16, and the step that diverges is longer in a wider format."""
    if "range_format" not in evidence or str(evidence["range_format"].values) != "float16":
        return None
    layer, share = _place(evidence), float(evidence["range_share"])
    over, wider = str(evidence["overflow_layer"].values), float(evidence["wider_lr"])
    lr = float(evidence["diverging_lr"])
    longer = wider > LONGER * lr
    if math.isinf(share) or not ((share >= NEAR or over) and longer):
        return None
    place = layer if share >= NEAR or not over else over
    near = f"{layer} gives numbers up to {share * END:,.0f}, {percent(share)} of float16's largest, {END:,.0f}."
    beyond = f" A step at rate {number(lr)} takes {over or 'the model'} beyond it." if math.isfinite(lr) else ""
    until = "no step makes the loss diverge" if not math.isfinite(wider) else f"it takes a rate of {number(wider)}"
    return Finding(
        "number_range",
        f"numbers near the end of float16's range, in {place}",
        f"{near}{beyond} In bfloat16 {until}.",
        "Use bfloat16, or float32 for that layer; or make its weights smaller, or put a norm in front of it.",
        numbers={"range_share": share, "diverging_lr": lr, "wider_lr": wider},
        place=place,
        code=CODE.format(layer=place),
    )


def _place(evidence: xr.Dataset | None) -> str:
    return "" if evidence is None else str(evidence["range_layer"].values) or "the model itself"


def _suspected(facts: Facts) -> Suspicion | None:
    """Numbers that are beyond it before any step, though the loss is finite."""
    if facts.evidence is None or not math.isinf(float(facts.evidence["range_share"])):
        return None
    place, kind = _place(facts.evidence), str(facts.evidence["range_format"].values)
    return Suspicion(
        f"numbers beyond {kind}'s range, in {place}",
        f"Before any step {place} gives inf or NaN in {kind}, and the loss is finite all the same: what was divided by "
        "such a number is 0.",
        {},
        True,
        place=place,
    )


def _advice(facts: Facts, _suspicion: Suspicion) -> tuple[str, str]:
    return f"Take sums, squares and norms in float32, in {_place(facts.evidence)}.", "x = x.float()  # before them"


FAULT = Fault("number_range", "numerics", 98, rule=number_range, suspected=_suspected, advice=_advice, early=True)
