"""A run's file: every bit of a run, a checksum that is compared, and what older stores hold."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import normscope as ns
from normscope.errors import ResultError
from normscope.sweeps.listing import listing
from normscope.sweeps.record import RunRecord, dataset_of, encoded_record, read_record
from normscope.sweeps.store import Store
from normscope.training.config import RunConfig, key

QUICK = RunConfig(net="mlp2", data="digits", train_size=100, batch_size=50, epochs=3, precision="fp32", device="cpu")
CONFIGS = [QUICK, replace(QUICK, seed=1), replace(QUICK, norm="none", lr=1e4), replace(QUICK, epochs=2)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def results() -> list[xr.Dataset]:
    return [ns.train(config, threads=1) for config in CONFIGS]


@pytest.fixture
def folder(results, tmp_path) -> Path:
    (tmp_path / "out" / "runs").mkdir(parents=True)
    for dataset in results:
        (tmp_path / "out" / "runs" / f"{dataset.attrs['key']}.json").write_bytes(encoded_record(dataset))
    return tmp_path / "out"


def assert_as_trained(record: RunRecord, trained: xr.Dataset) -> None:
    xr.testing.assert_identical(dataset_of(record), trained)
    for name, variable in trained.data_vars.items():
        assert record.values[str(name)].dtype == variable.dtype


def test_a_record_holds_every_bit_of_a_run(results, tmp_path):
    for trained in results:
        dataset = trained.copy(deep=True)
        dataset["test_loss"][:2] = [np.inf, -np.inf]
        path = tmp_path / f"{dataset.attrs['key']}.json"
        path.write_bytes(encoded_record(dataset))
        assert_as_trained(read_record(path), dataset)
        json.loads(path.read_text(), parse_constant=pytest.fail)  # what every reader of JSON takes


def test_a_run_of_an_older_store_is_read_as_well(results, folder):
    for trained in results[:2]:
        (folder / "runs" / f"{trained.attrs['key']}.json").unlink()
        path = folder / "runs" / f"{trained.attrs['key']}.nc"
        ns.save(trained, path)
        assert_as_trained(read_record(path), trained)
    assert all(Store(folder).has(config) for config in CONFIGS)
    assert len(listing(folder).rows) == len(CONFIGS)


@pytest.mark.parametrize("place", ['"values": [', '\\"lr\\": '])
def test_a_record_with_one_changed_digit_is_damaged(folder, place):
    path = Store(folder).result_paths()[0]
    content = path.read_text()
    at = content.index(place) + len(place)
    path.write_text(content[:at] + str((int(content[at]) + 1) % 10) + content[at + 1 :])
    with pytest.raises(ResultError, match="its checksum differs"):
        read_record(path)


def test_damaged_files_are_listed_and_the_others_are_read(folder):
    damaged, *others = Store(folder).result_paths()
    damaged.write_bytes(damaged.read_bytes()[:1000])
    found = listing(folder)
    assert sorted(row[0] for row in found.rows) == sorted(path.stem for path in others)
    (error,) = found.damaged
    assert str(error).startswith(f"{damaged} is damaged (")
    with pytest.raises(ResultError, match="is damaged"):
        ns.load_runs(folder)


def test_fields_that_came_later_leave_the_names_of_older_runs(results):
    assert key(RunConfig()) == "34c0b29dd302b895"
    assert key(replace(QUICK, image_size=4)) != key(QUICK) != key(replace(QUICK, evaluate_train=1))
