"""Sweeps: the same bits as training each run by hand, nothing lost and nothing done twice, whatever is killed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import normscope as ns
from normscope.sweep.engine import Advanced, Engine, Finished
from normscope.sweep.run import run
from normscope.train.config import RunConfig, key

QUICK = RunConfig(net="mlp2", data="digits", train_size=100, batch_size=50, epochs=2, precision="fp32", device="cpu")
SPEC = {"base": QUICK.to_mapping(), "axes": {"norm": ["batch", "none"], "lr": [0.1, 1e4], "seed": [0, 1]}}
for axis in SPEC["axes"]:
    del SPEC["base"][axis]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def here(trained: list[str] | None = None) -> Engine:
    """An engine of this process, which notes what it trains."""

    def engine(configs):
        for config in configs:
            if trained is not None:
                trained.append(key(config))
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
                same(ns.load(tmp_path / "runs" / f"{key(config)}.nc"), alone)
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
