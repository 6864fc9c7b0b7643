"""Gradients too small for float16: they come out as zero where bfloat16 keeps them."""

import xarray as xr

from normscope.diagnosis.fault import Fault
from normscope.diagnosis.finding import Finding
from normscope.statistics.numbers import percent

MOST_LOST = 0.5
"""Share of a parameter's gradient that is lost."""

CODE = (
    "scaler = torch.amp.GradScaler(device_type)\n"
    "scaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()\n"
    "# or torch.bfloat16 in the place of torch.float16"
)


def underflow(evidence: xr.Dataset) -> Finding | None:
    """Most of a parameter's gradient is zero in float16, and not in bfloat16."""
    if "lost_share" not in evidence or not float(evidence["lost_share"]) >= MOST_LOST:
        return None
    name, share = str(evidence["lost_layer"].values), float(evidence["lost_share"])
    return Finding(
        "underflow",
        "gradients are too small for float16",
        f"{percent(share)} of the gradient of {name} are zero in float16 and not in bfloat16: below 6e-8 float16 has "
        "no numbers.",
        "Scale the loss (GradScaler), or use bfloat16.",
        numbers={"lost_share": share},
        place=name,
        code=CODE,
    )


FAULT = Fault("underflow", "numerics", 97, rule=underflow)
