"""Carry out a set of runs into a folder, and never lose or repeat one: `normscope.sweep("spec.toml", "out")`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import xarray as xr

from normscope.data import load_data
from normscope.errors import DataError, DeviceError, InvalidConfig, NormscopeError, OutputError, RunFailed
from normscope.runtime.device import usable_device
from normscope.runtime.progress import Bar, progress
from normscope.sweeps.engines.engine import Advanced, Engine, Finished
from normscope.sweeps.engines.local import local_engine
from normscope.sweeps.grid import axes_of, label
from normscope.sweeps.locks import Claims
from normscope.sweeps.runs import load_runs
from normscope.sweeps.spec import Spec, configs_of
from normscope.sweeps.store import Store
from normscope.training.config import RunConfig, key

WAIT_SECONDS = 0.5
"""How often a driver that has nothing left looks whether others, who still work on something, are done or gone."""


def sweep(
    spec: Spec,
    out: str | Path,
    *,
    workers: int | None = None,
    threads: int = 1,
    data_dir: str | Path | None = None,
    ray: str | None = None,
    engine: Engine | None = None,
) -> xr.Dataset:
    """Train every run of a spec that the folder does not hold yet, and return all of them.

    May be interrupted or killed at any moment: the same call goes on, each run from its last checkpoint, and gives
    the same bits as `train` with the same threads. Several calls on one folder, in processes of their own, share the
    work.

    Args:
        spec: a TOML file or mapping with `base` and `axes` (see `sweeps.spec`), or RunConfigs, one or more.
        out: the folder; see `sweeps.store` for what it holds.
        workers: processes of this machine; by default as many as it has processors, or 1 on a GPU. With `ray`, runs
            at once; by default as many as the cluster has room for.
        threads: of each process. One is the fastest use of a processor where there are runs enough.
        data_dir: where CIFAR-10 lies, as for `load_data`; with `ray`, on each node.
        ray: the address of a Ray cluster to carry out the runs, HOST:PORT of its head or "auto" (see
            `sweeps.engines.cluster`).
        engine: what carries out the runs, in place of this machine's processes (see `sweeps.engines.engine`).

    Returns:
        The runs of the spec, as `load_runs` gives them.

    Raises:
        InvalidConfig: for a spec or a number that cannot be, before anything runs.
        ResultError: where a finished run's result or weights are damaged, before anything runs.
        DataError, DeviceError: where data or device are not there.
        ClusterError: where there is no Ray, or no cluster of it at the address.
        OutputError: where the folder cannot be written.
        RunFailed: where single runs could not be carried out; all others are done then.
    """
    configs = configs_of(spec)
    for name, number in (("workers", workers), ("threads", threads)):
        if number is not None and number < 1:
            raise InvalidConfig(f"{name} is {number}: it must be at least 1")
    if ray is not None and engine is not None:
        raise InvalidConfig("both ray and engine are given: only one can carry out the runs")
    store = Store(Path(out))
    missing = [config for config in configs if not store.has(config)]
    for config in set(configs).difference(missing):
        store.refuse_damaged(config)
    if not missing:
        return load_runs(out, configs)
    if engine is None and ray is None:
        devices = {usable_device(config.device) for config in missing}
        workers = workers or (1 if any(d.startswith("cuda") for d in devices) else _processors())
        engine = local_engine(store, workers=workers, threads=threads, data_dir=data_dir)
    if len(missing) < len(configs):
        load_runs(out, configs)  # names a damaged file before anything runs
    if ray is not None:
        from normscope.sweeps.engines.cluster import ray_engine

        engine = ray_engine(ray, workers=workers, threads=threads, gpu=_want_gpu(configs), data_dir=data_dir)
    store.prepare()
    if ray is None:  # the nodes of a cluster have data of their own
        for name in {config.data for config in missing}:
            # downloaded once, or found damaged, before anything runs
            load_data(name, data_dir=data_dir, train_size=10)
    assert engine is not None
    _carry_out(configs, store, engine)
    return load_runs(out, configs)


def _want_gpu(configs: Sequence[RunConfig]) -> bool | None:
    """Whether the runs of a cluster want one: None where that is left to what the cluster has."""
    devices = {config.device for config in configs}
    for device in devices:
        if device.startswith("cuda:"):
            raise InvalidConfig(f"device is {device}: on a cluster say cuda, since Ray chooses the GPU")
    return True if "cuda" in devices else None if "auto" in devices else False


def _carry_out(configs: Sequence[RunConfig], store: Store, engine: Engine) -> None:
    todo = [config for config in configs if not store.has(config)]
    failed: dict[RunConfig, str] = {}
    with (
        Claims(store.folder / "claims") as claims,
        progress("sweep", sum(config.epochs for config in todo)) as bar,
    ):
        tally = _Tally(bar, total=len(configs), done=len(configs) - len(todo))

        def claimed() -> Iterator[RunConfig]:
            for config in todo:
                if claims.take(key(config)):
                    store.tidy(config)
                    if not store.has(config):  # another driver may have finished it a moment ago
                        yield config
                    else:
                        claims.drop(key(config))

        while todo:
            with closing(engine(claimed())) as events:  # pyright: ignore[reportArgumentType]
                for event in events:
                    if isinstance(event, Advanced):
                        tally.advanced(event)
                        continue
                    if isinstance(event, Finished):
                        store.put(event.config, event.files)
                        tally.over(event.config, event.files.outcome)
                    elif _would_fail_all(event.error):
                        raise event.error
                    else:
                        failed[event.config] = str(event.error)
                        tally.over(event.config, "failed")
                    claims.drop(key(event.config))
            left = [config for config in todo if config not in failed and not store.has(config)]
            for config in todo:
                if config not in left and config not in failed:
                    tally.over(config, "")
            todo = left
            if todo:
                time.sleep(WAIT_SECONDS)
    if failed:
        config, error = next(iter(failed.items()))
        which = label(config, list(axes_of(configs)))
        raise RunFailed(f"{len(failed)} of {len(configs)} runs failed, the others are kept; {which}: {error}")


class _Tally:
    """Progress over the whole sweep, in epochs; diverged and failed runs counted apart."""

    def __init__(self, bar: Bar, *, total: int, done: int) -> None:
        self._bar, self._total, self._done = bar, total, done
        self._counts = {"diverged": 0, "failed": 0}
        self._reached: dict[RunConfig, int] = {}
        self._over: set[RunConfig] = set()

    def advanced(self, event: Advanced) -> None:
        """An epoch of a run is over, or the run begins: perhaps not at its first epoch."""
        config, epochs = event.config, event.epochs
        if config not in self._reached:
            self._bar.skip(epochs)
            self._reached[config] = epochs
        self._show(by=max(0, epochs - self._reached[config]))
        self._reached[config] = max(epochs, self._reached[config])

    def over(self, config: RunConfig, outcome: str) -> None:
        """A run is over, here or, without an outcome, elsewhere; once for each."""
        if config in self._over:
            return
        self._over.add(config)
        self._done += 1
        if outcome in self._counts:
            self._counts[outcome] += 1
        if outcome and config not in self._reached:  # its engine leaves out how far it got
            self._show(by=config.epochs)
        else:
            self._bar.skip(config.epochs - self._reached.get(config, 0))
            self._show(by=0)

    def _show(self, by: int) -> None:
        apart = "".join(f", {count} {name}" for name, count in self._counts.items() if count)
        self._bar.advance(f"{self._done} of {self._total} runs{apart}", by=by)


def _would_fail_all(error: NormscopeError) -> bool:
    """No data, no place to write, no device: no other run would do better. (Another one may do with less memory.)"""
    return isinstance(error, DataError | OutputError | DeviceError) and "out of memory" not in str(error)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
