"""Results survive the disk, and a failed write leaves what was there."""

import json
import os
import resource

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from normscope.errors import OutputError, ResultError
from normscope.results import (
    attribute,
    ensure_writable,
    labelled,
    load,
    load_tree,
    provenance,
    save,
    with_attributes,
    write_text,
)

VALUES = st.one_of(
    st_numpy.arrays(np.float64, 4, elements=st.floats()),
    st_numpy.arrays(np.float32, 4, elements=st.floats(width=32)),
    st_numpy.arrays(np.int64, 4),
    st_numpy.arrays(np.bool_, 4),
    st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=5), min_size=4, max_size=4).map(np.array),
)
ATTRIBUTES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
)


def dataset(values: object, **attrs: object) -> xr.Dataset:
    return labelled(
        {"loss": ("step_size", values, "loss", "nat"), "start": ((), 2.5, "loss at the start", "nat")},
        {"step_size": (np.arange(4.0), "step size α", "1")},
        **attrs,
    )


@given(VALUES, ATTRIBUTES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_dataset_survives_the_disk(tmp_path, values, value):
    before = dataset(values, config=value, data="digits")
    after = load(save(before, tmp_path / "result.nc"))
    xr.testing.assert_identical(after, before)
    assert after["loss"].dtype.kind == before["loss"].dtype.kind
    assert attribute(after, "config") == value
    assert attribute(after, "data") == "digits"


def test_inf_and_nan_are_kept_apart(tmp_path):
    after = load(save(dataset([np.nan, np.inf, -np.inf, 0.0]), tmp_path / "result.nc"))
    assert np.array_equal(after["loss"], [np.nan, np.inf, -np.inf, 0.0], equal_nan=True)


def test_everything_is_labelled():
    made = dataset(np.zeros(4))
    for name in [*made.variables]:
        assert made[name].attrs["long_name"]
        assert made[name].attrs["units"]
    with pytest.raises(AssertionError, match="epoch"):
        labelled({"loss": ("epoch", [1.0], "loss", "nat")}, {})


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(dataset(np.zeros(4)), tmp_path / "result.nc")
    old = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OutputError, match=r"^cannot write .*result\.nc: No space left on device; give another `out`$"):
        save(dataset(np.ones(4)), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["result.nc"]


def test_a_full_disk(tmp_path):
    """A process that may write no file above 1 KiB stands in for one: the write fails halfway through."""
    path = save(dataset(np.zeros(4)), tmp_path / "result.nc")
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"^cannot write .*result\.nc: File too large; give another `out`$"):
            save(dataset(np.ones(4)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["result.nc"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            save(dataset(np.zeros(4)), tmp_path / "result.nc")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "result.nc").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*result\.nc: Is a directory"):
        save(dataset(np.zeros(4)), tmp_path / "result.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["result.nc"]


def test_loaded_text_of_several_lengths_is_saved_whole(tmp_path):
    paths = [tmp_path / "short.nc", tmp_path / "long.nc"]
    for path, text in zip(paths, ("bracketed", "above the range"), strict=True):
        save(labelled({"found": (("seed",), [text], "how", "1")}, {"seed": ([0], "seed", "1")}), path)
    both = xr.concat([load(path) for path in paths], "seed")
    again = load(save(both, tmp_path / "both.nc"))
    assert again["found"].values.tolist() == ["bracketed", "above the range"]


def test_units_of_time_are_no_dates(tmp_path):
    before = labelled({"time": ("step", [1.5, 2.5], "time", "seconds")}, {"step": ([1, 2], "step", "days")})
    xr.testing.assert_identical(load(save(before, tmp_path / "result.nc")), before)


def test_a_tree_survives_the_disk(tmp_path):
    before = xr.DataTree.from_dict({"/": dataset(np.zeros(4)), "/run": dataset([np.nan, 1, 2, np.inf], lr=0.1)})
    xr.testing.assert_identical(load_tree(save(before, tmp_path / "result.nc")), before)


def test_longer_text_in_a_loaded_tree_is_saved_whole(tmp_path):
    named = labelled({"found": (("seed",), ["bracketed"], "how", "1")}, {"seed": ([0], "seed", "1")})
    tree = load_tree(save(xr.DataTree.from_dict({"/run": named}), tmp_path / "tree.nc"))
    tree["run/found"] = tree["run/found"].copy(data=["above the range"])
    assert load_tree(save(tree, tmp_path / "again.nc"))["run/found"].item() == "above the range"


def test_numpy_values_in_the_configuration():
    attrs = dataset(np.zeros(4), config={"lr": np.float32(0.5), "steps": np.arange(3)}, flag=np.bool_(True)).attrs
    assert json.loads(attrs["config"]) == {"lr": 0.5, "steps": [0, 1, 2]}
    assert attrs["flag"] == "true"


def test_what_a_folder_holds_outlives_the_look_whether_it_can_be_written(tmp_path):
    (tmp_path / "writable").write_text("mine")
    ensure_writable(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        ensure_writable(tmp_path / "file" / "folder")
    assert not list(ensure_writable(tmp_path / "a" / "b").iterdir())


def test_text_is_utf8(tmp_path):
    assert write_text(tmp_path / "page.html", "α ≤ 10³").read_bytes().decode() == "α ≤ 10³"


def test_a_missing_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(ResultError, match=r"no result file .*result\.nc"):
        load(tmp_path / "result.nc")
    path = save(dataset(np.zeros(4)), tmp_path / "result.nc")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ResultError, match=r"result\.nc is damaged"):
        load(path)


def test_provenance_says_where_a_result_comes_from():
    attrs = with_attributes(xr.Dataset(), **provenance(seed=3, config={"lr": 0.1})).attrs
    assert {"normscope", "torch", "python", "machine", "device", "dtype", "threads", "seed", "config"} == set(attrs)
    assert json.loads(attrs["config"]) == {"lr": 0.1}
