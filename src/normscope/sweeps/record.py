"""A finished run as its file holds it: one JSON file, which says of itself whether it is whole.

{"format": "normscope run", "version": 1, "sha256": "...", "run": {"attrs": {...}, "variables": {...}}}

`sha256` is that of the bytes between `"run": ` and the last brace. A variable is {"long_name", "units",
"integer", "values"}, its values one for each epoch; NaN is null, infinities are text. Stores from before this format
hold netCDF files, which are still read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from normscope.errors import ResultError, one_line
from normscope.results import Variable, labelled, load, read_bytes, with_attributes

FORMAT = "normscope run"

VERSION = 1

MOST_BYTES = 2**28
"""Of a run's file: a million epochs."""

_BEFORE_RUN, _AFTER_RUN = b', "run": ', b"}\n"

SUFFIXES: tuple[str, ...] = (".json", ".nc")
"""Of a run's file: today's, and that of older stores."""


@dataclass(frozen=True)
class RunRecord:
    """What a run's file says, in plain values."""

    attrs: dict[str, Any]
    """Text and numbers."""
    values: dict[str, np.ndarray]
    """The variables, each over the epochs."""
    labels: dict[str, tuple[str, str]]
    """Long name and units of each variable."""

    @property
    def epochs(self) -> int:
        """Epochs that the config asks for, trained or not."""
        return len(self.values["steps"])


def record_of(result: xr.Dataset) -> RunRecord:
    """The result of `train` in plain values."""
    attrs = {str(n): v.item() if isinstance(v, np.generic) else v for n, v in result.attrs.items()}
    variables = {str(name): result[name] for name in result.data_vars}
    for name, variable in variables.items():
        assert variable.dims == ("epoch",) and variable.dtype.kind in "if", f"{name} holds no numbers over epochs"
    labels = {name: (each.attrs["long_name"], each.attrs["units"]) for name, each in variables.items()}
    return RunRecord(attrs, {name: each.values for name, each in variables.items()}, labels)


def dataset_of(record: RunRecord) -> xr.Dataset:
    """The result of `train` that the record was made of."""
    variables: dict[str, Variable] = {
        name: ("epoch", values, *record.labels[name]) for name, values in record.values.items()
    }
    epochs = {"epoch": (np.arange(1, record.epochs + 1), "epoch", "1")}
    return with_attributes(labelled(variables, epochs), **record.attrs)


def encoded_record(result: xr.Dataset) -> bytes:
    """The file of the result of `train`."""
    record = record_of(result)
    variables = {
        name: {
            "long_name": record.labels[name][0],
            "units": record.labels[name][1],
            "integer": values.dtype.kind == "i",
            "values": [_plain(value) for value in values.tolist()],
        }
        for name, values in record.values.items()
    }
    run = json.dumps({"attrs": record.attrs, "variables": variables}, allow_nan=False).encode()
    about = json.dumps({"format": FORMAT, "version": VERSION, "sha256": hashlib.sha256(run).hexdigest()})
    return about.removesuffix("}").encode() + _BEFORE_RUN + run + _AFTER_RUN


def read_record(path: Path, names: Collection[str] | None = None) -> RunRecord:
    """Read a run's file; ResultError where it is damaged or does not hold the run that it is named by.

    Args:
        names: only these variables, which is quicker.
    """
    try:
        record = record_of(load(path)) if path.suffix == ".nc" else _read(path, names)
        if any(each.shape != (record.epochs,) for each in record.values.values()):
            raise ValueError("its variables differ in length")
    except ResultError:
        raise
    except Exception as error:
        raise ResultError(f"{path} is damaged ({one_line(error)}): delete it and measure again") from error
    if record.attrs.get("key") != path.stem:
        raise ResultError(f"{path} does not hold the run of its name: delete it and run the sweep again")
    return record


def _read(path: Path, names: Collection[str] | None) -> RunRecord:
    head, _, rest = read_bytes(path, most=MOST_BYTES).partition(_BEFORE_RUN)
    about = json.loads(head + b"}")
    if about["format"] != FORMAT or about["version"] != VERSION:
        raise ValueError(f"it is {about['format']} {about['version']}, not {FORMAT} {VERSION}")
    run = rest.removesuffix(_AFTER_RUN)
    if len(run) == len(rest) or about["sha256"] != hashlib.sha256(run).hexdigest():
        raise ValueError("its checksum differs")
    attrs, variables = _parts(run.decode(), names)
    values = {
        name: np.array(each["values"], np.int64 if each["integer"] else np.float64) for name, each in variables.items()
    }
    return RunRecord(attrs, values, {n: (each["long_name"], each["units"]) for n, each in variables.items()})


def _parts(run: str, names: Collection[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes and variables. Of a run with a right checksum the text is as `encoded_record` writes it: so those that
    are wanted are found by their names, since most of the time goes into the digits of the others."""
    if names is None:
        whole = json.loads(run)
        return whole["attrs"], whole["variables"]
    decode = json.JSONDecoder().raw_decode
    attrs, end = decode(run, len('{"attrs": '))
    places = {name: run.index(f'"{name}": {{', end) + len(name) + len('"": ') for name in names}
    return attrs, {name: decode(run, place)[0] for name, place in places.items()}


def _plain(value: float) -> float | str | None:
    return value if math.isfinite(value) else None if math.isnan(value) else str(value)
