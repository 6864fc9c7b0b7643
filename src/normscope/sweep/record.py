"""A finished run as its result file holds it, read without building a Dataset: a folder may hold thousands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from normscope.errors import ResultError, one_line

_HIDDEN = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_NCProperties", "_FillValue")


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
    for name, value in attrs.items():
        if name not in _HIDDEN:
            if isinstance(value, np.ndarray) and value.size == 1:
                value = value.reshape(())[()]
            plain[name] = value.item() if isinstance(value, np.generic) else value
    return plain
