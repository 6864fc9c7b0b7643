"""Everything measured is a labelled array: how it is labelled, and how its attributes are kept."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

Variable = tuple[tuple[str, ...] | str, Any, str, str]
"""Dimensions, values, long name, units ("1" for a pure number)."""

Coordinate = tuple[Any, str, str]
"""Values, long name, units: a coordinate along the dimension of its own name."""


def labelled(variables: Mapping[str, Variable], coords: Mapping[str, Coordinate], **attrs: Any) -> xr.Dataset:
    """A Dataset in which every dimension has a coordinate and everything has `long_name` and `units`.

    Attributes that netCDF cannot hold (mappings, lists, None, bools) are kept as JSON text; `attribute` reads them.
    """
    dataset = xr.Dataset(
        {
            name: (dims, _writable_array(values), {"long_name": long_name, "units": units})
            for name, (dims, values, long_name, units) in variables.items()
        },
        {
            name: (name, _writable_array(values), {"long_name": long_name, "units": units})
            for name, (values, long_name, units) in coords.items()
        },
    )
    bare = set(map(str, dataset.dims)) - set(map(str, dataset.coords))
    assert not bare, f"dimensions without a coordinate: {bare}"
    return with_attributes(dataset, **attrs)


def with_attributes(dataset: xr.Dataset, **attrs: Any) -> xr.Dataset:
    """The Dataset with these attributes in place of its own; what netCDF cannot hold becomes JSON text."""
    return dataset.drop_attrs(deep=False).assign_attrs({name: _plain(value) for name, value in attrs.items()})


def writable(text: str) -> str:
    """A text as UTF-8 and netCDF can hold it: what they cannot (lone surrogates, the zero byte) is escaped."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _writable_array(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "UO" or all(writable(each) == each for each in array.flat if isinstance(each, str)):
        return array
    return np.array([writable(each) for each in array.flat]).reshape(array.shape)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return writable(value)
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return value if not isinstance(value, int) or -(2**63) <= value < 2**64 else str(value)
    return json.dumps(value, default=lambda item: item.tolist() if hasattr(item, "tolist") else str(item))


def attribute(dataset: xr.Dataset, name: str) -> Any:
    """An attribute as it was given: JSON text is turned back."""
    return decoded(dataset.attrs[name])


def decoded(value: Any) -> Any:
    """An attribute's value as it was given, from what a file holds of it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def shared(attributes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Those of several results together: what all share as it is, what differs as the list of all values."""
    together: dict[str, Any] = {}
    for name in attributes[0]:
        found = [decoded(value) for value in dict.fromkeys(each.get(name) for each in attributes)]
        together[name] = found[0] if len(found) == 1 else found
    return together
