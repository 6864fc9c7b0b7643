"""Reading many runs fast: the same as reading each with xarray, and never a stale or a wrong one."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import normscope as ns
from normscope.errors import ResultError
from normscope.sweep import index
from normscope.sweep.index import read_records
from normscope.sweep.listing import listing
from normscope.sweep.record import RunRecord, encoded_record, read_record
from normscope.sweep.store import Store
from normscope.train.config import RunConfig, key

QUICK = RunConfig(net="mlp2", data="digits", train_size=100, batch_size=50, epochs=3, precision="fp32", device="cpu")
CONFIGS = [QUICK, replace(QUICK, seed=1), replace(QUICK, norm="none", lr=1e4), replace(QUICK, epochs=2)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    for config in CONFIGS:
        ns.save(ns.train(config, threads=1), folder / "runs" / f"{key(config)}.nc")
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch) -> Path:
    """Finished runs that an index is worthwhile for, and that were not written just now."""
    monkeypatch.setattr(index, "WORTHWHILE", 1)
    monkeypatch.setattr(index, "SETTLED_SECONDS", -1.0)
    shutil.copytree(trained, tmp_path / "out")
    return tmp_path / "out"


def read(folder: Path) -> list[RunRecord]:
    records = list(read_records(folder, Store(folder).result_paths()))
    assert all(isinstance(record, RunRecord) for record in records)
    return records  # pyright: ignore


def opened(monkeypatch) -> list[str]:
    """Names of the files that are read from now on."""
    names: list[str] = []

    def noting(path: Path) -> RunRecord:
        names.append(path.name)
        return read_record(path)

    monkeypatch.setattr(index, "read_record", noting)
    return names


def assert_as_xarray_reads_it(record: RunRecord, path: Path) -> None:
    dataset = ns.load(path)
    assert record.attrs == dict(dataset.attrs)
    assert set(record.values) == set(dataset.data_vars)
    for name, variable in dataset.data_vars.items():
        np.testing.assert_array_equal(record.values[str(name)], variable.values)
        assert record.values[str(name)].dtype == variable.dtype
        assert record.labels[str(name)] == (variable.attrs["long_name"], variable.attrs["units"])


def parts(path: Path) -> dict[str, dict]:
    """What a file holds, variable by variable and attribute by attribute, but for who wrote it."""

    def attributes(of) -> dict:
        with_references = {"DIMENSION_LIST", "REFERENCE_LIST"}  # places in the file
        held = {name: of.attrs[name] for name in of.attrs if name not in {"_NCProperties", *with_references}}
        assert with_references & set(of.attrs) or isinstance(of, h5py.File)
        return {name: (repr(value), of.attrs.get_id(name).dtype, np.shape(value)) for name, value in held.items()}

    with h5py.File(path) as file:
        assert b"version=2" in file.attrs["_NCProperties"]
        found = {"": attributes(file)}
        for name, variable in file.items():
            layout = variable.dtype, variable.shape, variable.chunks, variable.compression, repr(variable.fillvalue)
            scales = [scale.name for scale in variable.dims[0].values()] if name != "epoch" else variable.is_scale
            found[name] = {**attributes(variable), "layout": layout, "scales": scales, "values": repr(variable[()])}
    return found


def test_a_record_is_written_as_xarray_writes_it(trained, tmp_path):
    for path in Store(trained).result_paths():
        dataset = ns.load(path)
        (tmp_path / path.name).write_bytes(encoded_record(dataset))
        xr.testing.assert_identical(ns.load(tmp_path / path.name), dataset)
        assert parts(tmp_path / path.name) == parts(path)


def test_a_record_is_what_xarray_reads_from_the_file_and_from_the_index(folder, monkeypatch):
    paths = Store(folder).result_paths()
    for path in paths:
        assert_as_xarray_reads_it(read_record(path), path)
    read(folder)
    names = opened(monkeypatch)
    for record, path in zip(read(folder), paths, strict=True):
        assert_as_xarray_reads_it(record, path)
    assert names == []


def test_listing_and_load_runs_are_the_same_with_and_without_an_index(folder, monkeypatch):
    monkeypatch.setattr(index, "WORTHWHILE", 10**9)
    text, runs = listing(folder), ns.load_runs(folder)
    assert not (folder / "index").exists(), "not worthwhile"
    monkeypatch.setattr(index, "WORTHWHILE", 1)
    listing(folder)
    assert (folder / "index").is_file()
    names = opened(monkeypatch)
    assert listing(folder) == text
    xr.testing.assert_identical(ns.load_runs(folder), runs)
    assert names == []


def rewritten(path: Path) -> None:
    """Another outcome, in place: the same inode and size, and the time of its content set back."""
    stat = path.stat()
    with h5py.File(path, "r+") as file:
        file["test_accuracy"][:] = 0.125
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) == (
        stat.st_ino,
        stat.st_size,
        stat.st_mtime_ns,
    )


def replaced(path: Path) -> None:
    other = path.with_name("beside")
    shutil.copy2(path, other)
    with h5py.File(other, "r+") as file:
        file["test_accuracy"][:] = 0.125
    other.replace(path)


@pytest.mark.parametrize("change", [rewritten, replaced])
def test_a_file_that_changed_is_read_again(folder, monkeypatch, change):
    read(folder)
    paths = Store(folder).result_paths()
    names = opened(monkeypatch)
    change(paths[1])
    assert (read(folder)[1].values["test_accuracy"] == 0.125).all()
    assert names == [paths[1].name]
    assert (read(folder)[1].values["test_accuracy"] == 0.125).all()
    assert names == [paths[1].name], "entered anew"


def test_what_is_gone_new_or_damaged_is_so_with_an_index_too(folder, monkeypatch):
    read(folder)
    gone, damaged, *_ = Store(folder).result_paths()
    new = folder / "runs" / f"{key(replace(QUICK, seed=7))}.nc"
    shutil.copy(gone, new)
    with h5py.File(new, "r+") as file:
        file.attrs["key"], file.attrs["config"] = new.stem, json.dumps(replace(QUICK, seed=7).to_mapping())
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:3000])
    found = listing(folder)
    assert sorted(row[0] for row in found.rows) == sorted(
        path.stem for path in (folder / "runs").iterdir() if path != damaged
    )
    assert new.stem in {row[0] for row in found.rows}
    (error,) = found.damaged
    assert str(error).startswith(f"{damaged} is damaged (")
    with pytest.raises(ResultError, match="is damaged"):
        ns.load_runs(folder)
    assert gone.name not in json.dumps(list(index._load(folder / "index"))), "an index does not grow for ever"


def test_a_file_that_was_just_written_is_not_entered(folder, monkeypatch):
    monkeypatch.setattr(index, "SETTLED_SECONDS", 1000.0)
    read(folder)
    assert not (folder / "index").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no index"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"layout", b"loyaut")),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_an_index_that_cannot_be_used_is_as_none(folder, monkeypatch, damage):
    runs = ns.load_runs(folder)
    damage(folder / "index")
    names = opened(monkeypatch)
    xr.testing.assert_identical(ns.load_runs(folder), runs)
    assert len(names) == len(CONFIGS)
    if (folder / "index").is_file():
        names.clear()
        xr.testing.assert_identical(ns.load_runs(folder), runs)
        assert names == [], "it was written anew"


def test_a_folder_that_cannot_be_written_is_read_all_the_same(folder, monkeypatch):
    def refused(path, content):
        raise ns.errors.OutputError("read-only")

    monkeypatch.setattr(index, "write_bytes", refused)
    assert len(read(folder)) == len(CONFIGS)
    assert not (folder / "index").exists()
