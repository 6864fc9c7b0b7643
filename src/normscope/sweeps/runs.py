"""The finished runs of a folder as one labelled Dataset over what varies among them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from normscope.errors import ResultError
from normscope.results import Coordinate, Variable, labelled, shared
from normscope.sweeps.grid import FIELDS, axes_of, value_of
from normscope.sweeps.record import RunRecord, read_record
from normscope.sweeps.store import Store, config_of
from normscope.training.config import PROTOCOL, RunConfig

MISSING = "missing"
"""The outcome where there is no run: not trained yet, or not asked for."""

_OF_ONE_RUN = {"key", "outcome", "config", "ended_early"}


def load_runs(out: str | Path, configs: Iterable[RunConfig] | None = None) -> xr.Dataset:
    """Read the finished runs of a sweep's folder.

    Args:
        configs: only these runs, and a place for each even if it is not finished; by default all that are there, but
            for those of another protocol (see `train.config.PROTOCOL`), whose numbers mean something else.

    Returns:
        A Dataset over the fields of RunConfig that vary (`lr`, `norm`, `seed`, ...) and `epoch`, with the variables
        that `train` describes (its `lr` is called `epoch_lr` here, since `lr` is the config's), and over the fields
        alone `outcome` and `key`. Where there is no run, `outcome` is "missing", `steps` and `evaluated` are 0
        and all else NaN.
        Attributes that differ between runs are lists of all their values.

    Raises:
        ResultError: where there are no runs, or a file is damaged: it names the file.
    """
    store = Store(Path(out))
    if configs is None:
        runs = [run for run in map(read_record, store.result_paths()) if run.attrs["protocol"] == PROTOCOL]
        return _gridded(runs, [config_of(run) for run in runs])
    wanted = list(configs)
    return _gridded([read_record(store.result_path(config)) for config in wanted if store.has(config)], wanted)


def _gridded(runs: Sequence[RunRecord], configs: Sequence[RunConfig]) -> xr.Dataset:
    """The runs side by side in the grid that the configs span; ResultError where there are no runs at all."""
    if not runs:
        raise ResultError("no finished runs here: run `normscope sweep` first")
    axes = axes_of(configs)
    shape = tuple(map(len, axes.values()))
    epochs = max(run.epochs for run in runs)
    outcomes, keys = np.full(shape, MISSING, dtype=object), np.full(shape, "", dtype=object)
    values: dict[str, np.ndarray] = {}
    labels: dict[str, tuple[str, str]] = {}
    indices = {name: {value: i for i, value in enumerate(along)} for name, along in axes.items()}
    places = [tuple(indices[name][value_of(config, name)] for name in axes) for config in map(config_of, runs)]
    ordered = sorted(zip(places, runs, strict=True), key=lambda pair: pair[0])
    for place, run in ordered:
        outcomes[place], keys[place] = run.attrs["outcome"], run.attrs["key"]
        for name, found in run.values.items():
            kept = "epoch_lr" if name == "lr" else name
            if kept not in values:
                nothing: Any = 0 if found.dtype.kind == "i" else math.nan
                values[kept] = np.full((*shape, epochs), nothing, dtype=found.dtype)
            values[kept][(*place, slice(run.epochs))] = found
            labels[kept] = run.labels[name]
    variables: dict[str, Variable] = {n: ((*axes, "epoch"), each, *labels[n]) for n, each in values.items()}
    variables["outcome"] = tuple(axes), outcomes.astype(str), "outcome", "1"
    variables["key"] = tuple(axes), keys.astype(str), "key of the run", "1"
    coords: dict[str, Coordinate] = {name: (each, name.replace("_", " "), "1") for name, each in axes.items()}
    coords["epoch"] = np.arange(1, epochs + 1), "epoch", "1"
    config = {name: value_of(configs[0], name) for name in FIELDS if name not in axes}
    attrs = shared([{n: value for n, value in run.attrs.items() if n not in _OF_ONE_RUN} for _, run in ordered])
    return labelled(variables, coords, runs=len(runs), **attrs, config=config)
