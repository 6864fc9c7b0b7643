"""What an instrument measures, declared once: the Dataset, the test of its schema and its table in the docs follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from normscope.results.dataset import labelled
from normscope.results.origin import provenance

UNITS = ("1", "nat", "s", "examples")
"""All units there are: a pure number, the natural logarithm's, seconds, a number of examples."""

OF_LOSS = "nat or 1"
"""The unit of a loss: nat for a cross-entropy, 1 for what a loss_fn of somebody's own gives."""


@dataclass(frozen=True)
class Variable:
    """One variable or coordinate of an instrument's Dataset."""

    name: str
    dims: tuple[str, ...]
    long_name: str
    meaning: str
    """What it is, as a docs table says it: half a sentence, with its equation."""
    units: str = "1"
    is_coord: bool = False
    optional: bool = False
    """Whether it is there only if asked for."""

    def __post_init__(self) -> None:
        assert self.units in (*UNITS, OF_LOSS), f"{self.name}: no unit {self.units!r}"


def variable(
    name: str, dims: str, long_name: str, meaning: str = "", *, units: str = "1", optional: bool = False
) -> Variable:
    """A variable over the dimensions named in `dims`, with spaces between."""
    return Variable(name, tuple(dims.split()), long_name, meaning or long_name, units, optional=optional)


def coord(name: str, long_name: str, meaning: str = "", *, along: str = "") -> Variable:
    """The coordinate of the dimension of its own name, or another one `along` a dimension."""
    return Variable(name, (along or name,), long_name, meaning or long_name, is_coord=True)


LAYER = coord("layer", "layer", "path of the module; its second call is `path#2`")
DEPTH = coord("depth", "layer on the main path", "place on the main path, from 1; NaN on a shortcut", along="layer")


def arranged(
    variables: Sequence[Variable], values: Mapping[str, Any], *, loss_units: str = "nat", **attrs: Any
) -> xr.Dataset:
    """The declared variables with these values, as `labelled` writes them.

    Args:
        values: one for every variable and coordinate that is not optional.
        loss_units: what stands for `OF_LOSS`.
    """
    missing = {one.name for one in variables if not one.optional} - values.keys()
    unknown = values.keys() - {one.name for one in variables}
    assert not missing and not unknown, f"not given: {missing}, not declared: {unknown}"
    given = [one for one in variables if one.name in values]
    units = {one.name: loss_units if one.units == OF_LOSS else one.units for one in given}
    dataset = labelled(
        {v.name: (v.dims, values[v.name], v.long_name, units[v.name]) for v in given if not v.is_coord},
        {v.name: (values[v.name], v.long_name, units[v.name]) for v in given if v.is_coord and v.dims == (v.name,)},
        **attrs,
    )
    beside = [v for v in given if v.is_coord and v.dims != (v.name,)]
    labels = {v.name: {"long_name": v.long_name, "units": units[v.name]} for v in beside}
    return dataset.assign_coords({v.name: (v.dims, values[v.name], labels[v.name]) for v in beside})


def measured(
    variables: Sequence[Variable],
    values: Mapping[str, Any],
    *,
    device: Any,
    dtype: Any,
    loss_units: str = "nat",
    attrs: Mapping[str, Any] | None = None,
    **config: Any,
) -> xr.Dataset:
    """The Dataset of an instrument: its variables, `arranged`, and where it comes from.

    Args:
        device, dtype: of what was measured.
        attrs: attributes in front of the provenance.
        config: attributes behind it: how the instrument was set.
    """
    origin = provenance(device=device, dtype=dtype, **config)
    return arranged(variables, values, loss_units=loss_units, **(attrs or {}), **origin)


def table(variables: Sequence[Variable]) -> str:
    """The variables as a Markdown table."""
    rows = [
        (f"`{v.name}`", ", ".join(v.dims) or "—", v.units, v.meaning + (" (if asked for)" if v.optional else ""))
        for v in variables
    ]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [("name", "over", "unit", "what it is"), *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([lines[0], "|---|---|---|---|", *lines[1:]])
