"""Sweeps: the same bits as training each run by hand, nothing lost and nothing done twice, whatever is killed."""

import errno
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import normscope as ns
from normscope.errors import DataError, DeviceError, OutputError, ResultError, RunFailed
from normscope.results import attribute
from normscope.runtime.progress import Bar
from normscope.sweeps.engines.engine import Advanced, Engine, Failed, Finished
from normscope.sweeps.listing import listing
from normscope.sweeps.record import dataset_of, read_record
from normscope.sweeps.run import run
from normscope.training.config import PROTOCOL, RunConfig, key

QUICK = RunConfig(net="mlp2", data="digits", train_size=100, batch_size=50, epochs=2, precision="fp32", device="cpu")
SPEC = {"base": QUICK.to_mapping(), "axes": {"norm": ["batch", "none"], "lr": [0.1, 1e4], "seed": [0, 1]}}
for axis in SPEC["axes"]:
    del SPEC["base"][axis]


pytestmark = pytest.mark.usefixtures("one_thread")


def here(trained: list[str] | None = None) -> Engine:
    """An engine of this process, which notes what it trains."""

    def engine(configs):
        for config in configs:
            if trained is not None:
                trained.append(key(config))
            yield Advanced(config, 0)
            yield Advanced(config, 1)
            yield Finished(config, run(config, checkpoint=None))

    return engine


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    """Equal bits in everything but the time it took; attributes too."""
    xr.testing.assert_identical(one.drop_vars("seconds"), other.drop_vars("seconds"))


def test_sweeping_is_training_each_by_hand(tmp_path):
    runs = ns.sweep(SPEC, tmp_path, workers=2)
    assert dict(runs.sizes) == {"norm": 2, "lr": 2, "seed": 2, "epoch": 2}
    for norm in ("batch", "none"):
        for lr in (0.1, 1e4):
            for seed in (0, 1):
                config = replace(QUICK, norm=norm, lr=lr, seed=seed)
                alone = ns.train(config, threads=1, weights=tmp_path / "alone")
                same(dataset_of(read_record(tmp_path / "runs" / f"{key(config)}.json")), alone)
                weights = tmp_path / "runs" / f"{key(config)}.safetensors"
                assert weights.read_bytes() == (tmp_path / "alone").read_bytes()
                place = runs.sel(norm=norm, lr=lr, seed=seed)
                assert str(place["outcome"].item()) == alone.attrs["outcome"]
                np.testing.assert_array_equal(place["test_accuracy"], alone["test_accuracy"])
                np.testing.assert_array_equal(place["epoch_lr"], alone["lr"])
    assert (runs["outcome"].sel(norm="none", lr=1e4) == "diverged").all()
    assert not list((tmp_path / "scratch").iterdir()), "no checkpoint outlives its run"
    same(ns.load_runs(tmp_path), runs)


def test_again_only_what_is_missing_is_trained(tmp_path):
    trained: list[str] = []
    ns.sweep([QUICK, replace(QUICK, seed=1)], tmp_path, engine=here(trained))
    ns.sweep([QUICK, replace(QUICK, seed=2), QUICK], tmp_path, engine=here(trained))
    assert trained == [key(replace(QUICK, seed=seed)) for seed in (0, 1, 2)]
    assert ns.load_runs(tmp_path)["seed"].values.tolist() == [0, 1, 2]


def test_a_grid_with_holes_says_what_is_missing(tmp_path):
    configs = [QUICK, replace(QUICK, norm="none", epochs=1, lr=0.2), replace(QUICK, norm="none", epochs=1)]
    runs = ns.sweep(configs, tmp_path, engine=here())
    assert dict(runs.sizes) == {"norm": 2, "lr": 2, "epochs": 2, "epoch": 2}
    there = runs["outcome"] != "missing"
    assert int(there.sum()) == 3
    assert (runs["key"] != "").equals(there)
    assert bool((runs["steps"].sum("epoch") > 0).equals(there))
    short = runs.sel(norm="none", lr=0.2, epochs=1)
    assert short["steps"].values.tolist() == [2, 0]
    assert np.isnan(short["test_loss"].values).tolist() == [False, True]
    assert np.isnan(runs["test_loss"].where(~there)).all()
    assert all({"long_name", "units"} <= set(v.attrs) for v in runs.variables.values())
    assert attribute(runs, "config")["net"] == "mlp2"
    assert attribute(runs, "config").keys().isdisjoint(runs.dims)
    ns.save(runs, tmp_path / "all.nc")
    xr.testing.assert_identical(ns.load(tmp_path / "all.nc"), runs)


def test_a_single_run_has_no_axis_and_none_as_a_size_is_a_number(tmp_path):
    runs = ns.sweep([replace(QUICK, train_size=None, held_out=37)], tmp_path, engine=here())
    assert dict(runs.sizes) == {"epoch": 2}
    assert attribute(runs, "config")["train_size"] == 1400
    both = ns.sweep([replace(QUICK, train_size=n, held_out=37) for n in (100, None)], tmp_path, engine=here())
    assert both["train_size"].values.tolist() == [100, 1400]


def test_a_config_alone_is_a_sweep_of_one_run(tmp_path):
    xr.testing.assert_identical(ns.sweep(QUICK, tmp_path, engine=here()), ns.load_runs(tmp_path))


def test_runs_by_another_protocol_are_left_out_and_counted(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        for module in ("config", "result"):
            earlier.setattr(f"normscope.training.{module}.PROTOCOL", PROTOCOL - 1)
        ns.sweep([replace(QUICK, lr=lr) for lr in (0.1, 0.3)], tmp_path, engine=here())
    assert listing(tmp_path).summary == "0 finished, 2 by another version's protocol"
    with pytest.raises(ResultError, match="no finished runs"):
        ns.load_runs(tmp_path)
    trained: list[str] = []
    runs = ns.sweep([QUICK, replace(QUICK, seed=1)], tmp_path, engine=here(trained))
    assert len(trained) == 2
    same(ns.load_runs(tmp_path), runs)
    assert runs.attrs["protocol"] == PROTOCOL
    assert listing(tmp_path).summary.endswith("\n2 finished, 2 by another version's protocol")


def test_a_finished_sweep_asks_for_no_device_and_writes_nothing(tmp_path, monkeypatch):
    ns.sweep([QUICK], tmp_path, engine=here())
    monkeypatch.setattr("normscope.sweeps.sweep.usable_device", None)
    monkeypatch.setattr("normscope.sweeps.store.Store.prepare", None)
    xr.testing.assert_identical(ns.sweep([QUICK], tmp_path), ns.load_runs(tmp_path))


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", without)
    with pytest.raises(OutputError, match=r"cannot lock .*claims: No locks available; give an `out` on another"):
        ns.sweep([QUICK], tmp_path, engine=here())


def test_a_failed_run_is_named_and_the_others_are_kept(tmp_path):
    def engine(configs):
        for config in configs:
            if config.seed == 1:
                yield Failed(config, RunFailed("it would not"))
            else:
                yield from here()(iter([config]))

    message = "1 of 3 runs failed, the others are kept; seed 1: it would not"
    with pytest.raises(RunFailed, match=message):
        ns.sweep([replace(QUICK, seed=seed) for seed in range(3)], tmp_path, engine=engine)
    assert ns.load_runs(tmp_path)["seed"].values.tolist() == [0, 2]


@pytest.mark.parametrize(("error", "stops"), [(DataError("no data"), True), (DeviceError("out of memory"), False)])
def test_what_would_fail_every_run_stops_the_sweep(tmp_path, error, stops):
    tried = []

    def engine(configs):
        for config in configs:
            tried.append(config.seed)
            yield Failed(config, error)

    with pytest.raises(DataError if stops else RunFailed):
        ns.sweep([replace(QUICK, seed=seed) for seed in range(3)], tmp_path, engine=engine)
    assert tried == ([0] if stops else [0, 1, 2])


def test_a_damaged_file_is_named_before_anything_runs_and_the_rest_is_untouched(tmp_path):
    ns.sweep([QUICK, replace(QUICK, seed=1)], tmp_path, engine=here())
    damaged = tmp_path / "runs" / f"{key(QUICK)}.json"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    before = contents(tmp_path)
    trained: list[str] = []
    for read in (
        lambda: ns.sweep([replace(QUICK, seed=seed) for seed in range(3)], tmp_path, engine=here(trained)),
        lambda: ns.load_runs(tmp_path),
    ):
        with pytest.raises(ResultError, match=f"{key(QUICK)}.json is damaged") as error:
            read()
        assert "\n" not in str(error.value)
    assert not trained
    assert contents(tmp_path) == before
    ns.sweep([replace(QUICK, seed=2)], tmp_path, engine=here(trained))
    assert trained == [key(replace(QUICK, seed=2))], "a damaged file of another sweep is no matter"


def test_a_result_under_another_runs_name_is_refused(tmp_path):
    ns.sweep([QUICK], tmp_path, engine=here())
    one, other = (tmp_path / "runs" / f"{key(replace(QUICK, seed=seed))}.json" for seed in (0, 1))
    one.rename(other)
    with pytest.raises(ResultError, match="does not hold the run of its name"):
        ns.load_runs(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_progress_counts_epochs_over_the_whole_and_diverged_runs_apart(tmp_path, monkeypatch):
    told: list[tuple[str, float]] = []

    class Noted(Bar):
        def advance(self, doing: str = "", by: float = 1) -> None:
            told.append((doing, by))

        def skip(self, by: float) -> None:
            if by:
                told.append(("skipped", by))

    @contextmanager
    def noted(name, total):
        told.append((name, total))
        yield Noted()

    monkeypatch.setattr("normscope.sweeps.sweep.progress", noted)
    ns.sweep([QUICK], tmp_path, engine=here())
    told.clear()

    def resumed(configs):
        """The second run goes on at its last epoch but one, of four."""
        for config in configs:
            yield Advanced(config, 2 if config.epochs == 4 else 0)
            yield Advanced(config, config.epochs - 1)
            if config.norm != "none":
                yield Advanced(config, config.epochs)
            yield Finished(config, run(config, checkpoint=None))

    ns.sweep([QUICK, replace(QUICK, lr=1e4, norm="none"), replace(QUICK, epochs=4)], tmp_path, engine=resumed)
    assert told == [
        ("sweep", 6),
        ("1 of 3 runs", 0),
        ("1 of 3 runs", 1),
        ("skipped", 1),  # what a run that diverged leaves undone
        ("2 of 3 runs, 1 diverged", 0),
        ("skipped", 2),  # what a checkpoint holds
        ("2 of 3 runs, 1 diverged", 0),
        ("2 of 3 runs, 1 diverged", 1),
        ("2 of 3 runs, 1 diverged", 1),
        ("3 of 3 runs, 1 diverged", 0),
    ]


def test_progress_moves_by_whole_runs_where_an_engine_tells_no_epochs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("normscope.runtime.progress.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("normscope.runtime.progress.LINE_SECONDS", 0.0)

    def silent(configs):
        for config in configs:
            yield Finished(config, run(config, checkpoint=None))

    ns.sweep([QUICK, replace(QUICK, seed=1)], tmp_path, engine=silent)
    err = capsys.readouterr().err
    assert "50%" in err
    assert "100%, 0:00:00 left, 2 of 2 runs" in err
