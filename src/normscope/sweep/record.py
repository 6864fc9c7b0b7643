"""A finished run as its result file holds it, written and read by h5py itself: a sweep may have thousands.

The file is netCDF-4 like any other result. xarray takes 30 ms to write one, by h5netcdf, and h5py 5 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from normscope.errors import ResultError, one_line

_HIDDEN = (
    "CLASS",
    "NAME",
    "DIMENSION_LIST",
    "REFERENCE_LIST",
    "_Netcdf4Dimid",
    "_NCProperties",
    "_FillValue",
    "_Netcdf4Coordinates",
)


@dataclass(frozen=True)
class RunRecord:
    """What `results.load` reads of a run's file, in plain values."""

    attrs: dict[str, Any]
    """As the file has them: text, ints, floats."""
    values: dict[str, np.ndarray]
    """The variables, each over the epochs."""
    labels: dict[str, tuple[str, str]]
    """Long name and units of each variable."""

    @property
    def epochs(self) -> int:
        """Epochs that the config asks for, trained or not."""
        return len(self.values["steps"])


def encoded_record(result: xr.Dataset) -> bytes:
    """`results.encoded` for the result of `train`: numbers over `epoch`, with text and numbers for attributes."""
    # What follows is the format's: netCDF-4 keeps the order of its parts (`track_order`), and a dimension is an HDF5
    # scale with a number.
    with h5py.File("result", "w", driver="core", backing_store=False, track_order=True) as file:
        file.attrs["_NCProperties"] = np.bytes_(f"version=2,hdf5={h5py.version.hdf5_version},h5py={h5py.__version__}")
        for name, value in result.attrs.items():
            file.attrs[str(name)] = _attribute(value)
        for name in ("epoch", *map(str, result.data_vars)):
            array = result[name]
            assert array.dims == ("epoch",) and array.dtype.kind in "if", f"{name} holds no numbers over epochs"
            fill = np.array([np.nan], array.dtype) if array.dtype.kind == "f" else None
            variable = file.create_dataset(
                name, data=array.values, fillvalue=None if fill is None else fill[0], track_order=True
            )
            if name == "epoch":
                variable.make_scale(name)
            else:
                variable.dims[0].attach_scale(file["epoch"])
            variable.attrs["_Netcdf4Coordinates"] = np.array([0], np.int32)
            variable.attrs["_Netcdf4Dimid"] = np.int32(0)
            if fill is not None:
                variable.attrs["_FillValue"] = fill
            for label, value in array.attrs.items():
                variable.attrs[label] = _attribute(value)
        file.flush()
        return file.id.get_file_image()


def _attribute(value: Any) -> Any:
    return value if isinstance(value, str) else np.atleast_1d(value)


def read_record(path: Path) -> RunRecord:
    """Read a run's file; ResultError where it is damaged or does not hold the run that it is named by."""
    try:
        with h5py.File(path, "r") as file:
            attrs = _plain(file.attrs)
            values: dict[str, np.ndarray] = {}
            labels: dict[str, tuple[str, str]] = {}
            for name, variable in file.items():
                if name != "epoch":
                    about = _plain(variable.attrs)
                    values[name] = variable[()]
                    labels[name] = about["long_name"], about["units"]
            record = RunRecord(attrs, values, labels)
            if any(each.shape != (record.epochs,) for each in values.values()):
                raise ValueError("its variables differ in length")
    except Exception as error:
        raise ResultError(f"{path} is damaged ({one_line(error)}): delete it and measure again") from error
    if attrs.get("key") != path.stem:
        raise ResultError(f"{path} does not hold the run of its name: delete it and run the sweep again")
    return record


def _plain(attrs: Any) -> dict[str, Any]:
    plain = {}
    for name in attrs:
        if name not in _HIDDEN:  # not read either: it takes most of the time
            value = attrs[name]
            if isinstance(value, np.ndarray) and value.size == 1:
                value = value.reshape(())[()]
            plain[name] = value.item() if isinstance(value, np.generic) else value
    return plain
