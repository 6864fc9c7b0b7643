"""Files that were changed: every one that is read is refused by its name, done again, or gives what was in it."""

import json
import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import xarray as xr

import normscope as ns
from normscope.data import load_data
from normscope.errors import NormscopeError
from normscope.paper.exhibit import Setting
from normscope.paper.manifest import notes_of, write_manifest
from normscope.paper.measurement import reproduce
from normscope.paper.reproduction import report_reproduction
from normscope.sweeps.listing import listing
from normscope.sweeps.record import dataset_of, read_record
from normscope.sweeps.store import Store
from normscope.training.config import RunConfig
from normscope.training.network import encoded_weights, trained_network
from normscope.training.train import trained

QUICK = RunConfig(net="mlp2", data="digits", train_size=100, batch_size=50, epochs=2, precision="fp32", device="cpu")

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The file with a bit, a digit, a block or a stretch of it changed, cut, repeated, moved or lost."""
    changed = bytearray(content)
    at = chance.randrange(len(changed))
    length = chance.choice([1, 2, 8, 64, 512])
    kind = chance.choice(["bit", "byte", "digit", "zeros", "cut", "lost", "twice", "moved", "text"])
    if kind == "bit":
        for _ in range(chance.choice([1, 1, 3])):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        changed[at] = chance.randrange(256)
    elif kind == "digit":
        digits = [i for i, byte in enumerate(changed) if 48 <= byte <= 57] or [at]
        changed[chance.choice(digits)] = 48 + chance.randrange(10)
    elif kind == "zeros":
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    elif kind == "cut":
        del changed[at:]
    elif kind == "lost":
        del changed[at : at + length]
    elif kind == "twice":
        changed[at:at] = changed[at : at + length]
    elif kind == "moved":
        there = chance.randrange(len(changed))
        changed[there : there + length] = changed[at : at + length]
    else:
        old, new = chance.choice([(b"batch", b"group"), (b"false", b"true"), (b"F32", b"I32"), (b"0.", b"1.")])
        changed = bytearray(bytes(changed).replace(old, new, 1))
    return bytes(changed)


def of(chance: random.Random, content: bytes) -> bytes:
    """A mutation that did change something."""
    while (changed := mutated(content, chance)) == content:
        pass
    return changed


@pytest.fixture(scope="module")
def data():
    return load_data("digits", train_size=100)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run: its result, and the files of its checkpoint after one epoch and of its weights."""
    folder = tmp_path_factory.mktemp("run")

    class Stop(Exception):
        pass

    def stop(epochs, _):
        if epochs == 1:
            raise Stop

    ns.train(replace(QUICK, epochs=1))
    with pytest.raises(Exception, match="Stop"):
        trained(QUICK, data, checkpoint=folder / "checkpoint", checkpoint_seconds=0.0, on_epoch=stop)
    over = trained(QUICK, data)
    return over.result, (folder / "checkpoint").read_bytes(), encoded_weights(over.net, QUICK)


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    xr.testing.assert_identical(one.drop_vars("seconds"), other.drop_vars("seconds"))


def test_checkpoints(attack, tries, chance, run, data, tmp_path):
    whole, checkpoint, _ = run
    path = tmp_path / "checkpoint"
    for number in tries(30, 600):
        path.write_bytes(of(chance(number), checkpoint))
        with attack.one(number), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            again = trained(QUICK, data, checkpoint=path, checkpoint_seconds=1e9)
            same(again.result, whole)
            assert [str(path) in str(one.message) for one in said] == [True]


def test_weights(attack, tries, chance, run, data, tmp_path):
    path = tmp_path / "weights"
    for number in tries(60, 600):
        path.write_bytes(of(chance(number), run[2]))
        with attack.one(number):
            assert is_refused(lambda: trained_network(QUICK, data, path), path)


def is_refused(call, path: Path) -> bool:
    """Whether it raises one of our errors, on one line, that names the file."""
    try:
        call()
    except NormscopeError as error:
        return str(path) in str(error) and "\n" not in str(error)
    return False


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("swept")
    ns.sweep([QUICK, replace(QUICK, seed=1)], out, workers=1)
    return out


def test_runs_of_a_sweep(attack, tries, chance, swept):
    configs = [QUICK, replace(QUICK, seed=1)]
    store = Store(swept)
    for number in tries(60, 800):
        path = store.result_path(QUICK) if number % 2 else store.weights_path(QUICK)
        content = path.read_bytes()
        record = dataset_of(read_record(store.result_path(QUICK)))
        path.write_bytes(of(chance(number), content))
        with attack.one(number):
            if path.suffix == ".json":
                try:
                    xr.testing.assert_identical(dataset_of(read_record(path)), record)
                except NormscopeError as error:
                    assert str(path) in str(error)
                    assert is_refused(lambda: ns.sweep(configs, swept), path)
                    assert is_refused(lambda: listing(swept).raise_damaged(), path)
                    assert is_refused(lambda: ns.load_runs(swept), path)
            else:
                assert is_refused(lambda: ns.sweep(configs, swept), path)
        path.write_bytes(content)


def test_a_file_that_is_another_runs(attack, swept):
    store, other = Store(swept), replace(QUICK, seed=1)
    for path, place in (
        (store.result_path(other), store.result_path(QUICK)),
        (store.weights_path(other), store.weights_path(QUICK)),
    ):
        content = place.read_bytes()
        place.write_bytes(path.read_bytes())
        with attack.one(place.suffix):
            assert is_refused(lambda: ns.sweep([QUICK, other], swept), place)
        place.write_bytes(content)


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reproduction")
    reproduce(["figure5", "figure4"], Setting(load_data("digits"), net="resnet8", seeds=(0,), batch_size=16), folder)
    write_manifest(folder, ["normscope", "reproduce"], "A note.")
    return folder


def test_results(attack, tries, chance, reproduction):
    path = reproduction / "figure5.nc"
    content, whole = path.read_bytes(), ns.load(path)
    for number in tries(100, 1500):
        path.write_bytes(of(chance(number), content))
        with attack.one(number):
            try:
                xr.testing.assert_identical(ns.load(path), whole)  # only the checksum itself was lost
            except NormscopeError as error:
                assert str(path) in str(error)
            assert is_refused(lambda: report_reproduction(reproduction), path)
    path.write_bytes(content)


def test_results_without_a_manifest(attack, tries, chance, reproduction):
    manifest, path = reproduction / "manifest.json", reproduction / "figure5.nc"
    listed, content = manifest.read_bytes(), path.read_bytes()
    manifest.unlink()
    with attack.one("another exhibit's file"):
        path.write_bytes((reproduction / "figure4.nc").read_bytes())
        assert is_refused(lambda: report_reproduction(reproduction), path)
    for number in tries(5, 50):
        with attack.one(number):
            path.write_bytes(of(chance(number), content[:-1]))
            assert is_refused(lambda: report_reproduction(reproduction), path)
    path.write_bytes(content)
    manifest.write_bytes(listed)


def test_manifests(attack, tries, chance, reproduction):
    path = reproduction / "manifest.json"
    content = path.read_bytes()
    for number in tries(40, 500):
        path.write_bytes(of(chance(number), content))
        with attack.one(number):
            try:
                assert notes_of(reproduction) == ["A note."]
                assert json.loads(path.read_bytes())["files"] == json.loads(content)["files"]
            except NormscopeError as error:
                assert str(path) in str(error)
                assert is_refused(lambda: write_manifest(reproduction, ["normscope"]), path)
                assert is_refused(lambda: report_reproduction(reproduction), path)
    path.write_bytes(content)


def test_results_that_are_missing(attack, reproduction):
    path = reproduction / "figure4.nc"
    content = path.read_bytes()
    path.unlink()
    with attack.one("missing"):
        assert is_refused(lambda: report_reproduction(reproduction), path)
    path.write_bytes(content)
