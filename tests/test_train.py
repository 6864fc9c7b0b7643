"""A run: what it records, that it ends with the same bits however often it is killed, and what it refuses."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

import normscope as ns
from normscope.data import load_data
from normscope.data.batches import epoch
from normscope.errors import InvalidConfig, OutputError, ResultError
from normscope.nets.names import BRANCH_INITS
from normscope.results import attribute
from normscope.training.config import DATA_SIZES, RunConfig, key
from normscope.training.network import fresh_network, trained_network
from normscope.training.precision import used_precision
from normscope.training.train import trained

QUICK = RunConfig(
    net="mlp3", data="digits", train_size=300, held_out=60, batch_size=50, epochs=3, precision="fp32", device="cpu"
)


pytestmark = pytest.mark.usefixtures("one_thread")


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    """Equal bits in everything but the time it took; attributes too."""
    xr.testing.assert_identical(one.drop_vars("seconds"), other.drop_vars("seconds"))


def naive(config: RunConfig) -> tuple[list[dict[str, float]], torch.nn.Module]:
    """The same training as one would write it: plain loop, no checkpoints, no descend."""
    data = load_data(config.data, train_size=config.train_size, held_out=config.held_out)
    net = fresh_network(config, data)
    sgd = torch.optim.SGD(net.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    rows = []
    for number in range(config.epochs):
        sgd.param_groups[0]["lr"] = config.lr * config.gamma ** sum(
            number >= m * config.epochs for m in config.milestones
        )
        losses, right, norms = [], [], []
        for images, labels in epoch(data, config.batch_size, seed=config.seed, epoch=number, augment=config.augment):
            logits = net(images)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            sgd.zero_grad()
            loss.backward()
            norms.append(torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None]).norm())
            sgd.step()
            losses.append(loss.item())
            right += (logits.argmax(1) == labels).tolist()
        net.eval()
        row = {"train_loss": np.mean(losses), "train_accuracy": np.mean(right), "gradient_norm": np.mean(norms)}
        for split in ("test", "held_out"):
            images, labels = data.split(split)
            with torch.no_grad():
                logits = net(images)
            row[f"{split}_loss"] = torch.nn.functional.cross_entropy(logits, labels).item()
            row[f"{split}_accuracy"] = (logits.argmax(1) == labels).double().mean().item()
        net.train()
        rows.append(row)
    return rows, net


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"net": "resnet8", "norm": "final", "epochs": 2, "augment": False},
        {"net": "resnet8", "norm": "batch_detached", "epochs": 2, "augment": False},
        {"net": "resnet8", "norm": "none", "init": "skipinit", "epochs": 2, "augment": False},
    ],
)
def test_a_run_is_the_plain_loop_that_one_would_write(change, tmp_path):
    config = replace(QUICK, **change)
    dataset = ns.train(config, weights=tmp_path / "weights.safetensors")
    rows, net = naive(config)
    for name in rows[0]:
        # float32 sums in another order: 1e-5, grown by a few dozen steps
        np.testing.assert_allclose(dataset[name], [row[name] for row in rows], rtol=1e-3, err_msg=name)
    weights = load_file(tmp_path / "weights.safetensors")
    assert list(weights) == sorted(net.state_dict()) or set(weights) == set(net.state_dict())
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


def test_what_a_result_says_of_itself():
    dataset = ns.train(replace(QUICK, epochs=4, lr=0.2))
    assert dataset["epoch"].values.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(dataset["lr"], [0.2, 0.2, 0.02, 0.002])
    assert dataset["steps"].values.tolist() == [6] * 4
    assert all({"long_name", "units"} <= set(v.attrs) for v in dataset.variables.values())
    assert (dataset["seconds"] > 0).all()
    assert dataset.attrs["outcome"] == "learns"
    assert dataset.attrs["threads"] == 1
    assert dataset.attrs["precision"] == "fp32"
    assert RunConfig.from_mapping(attribute(dataset, "config")) == replace(QUICK, epochs=4, lr=0.2)
    assert attribute(dataset, "data")["held_out"] == 60


def test_without_held_out_images_there_are_no_held_out_results():
    assert "held_out_loss" not in ns.train(replace(QUICK, held_out=0, epochs=1))


def test_evaluated_now_and_then_the_run_is_the_same():
    whole, some = ns.train(replace(QUICK, epochs=5)), ns.train(replace(QUICK, epochs=5, evaluate_every=2))
    assert some["evaluated"].values.tolist() == [0, 1, 0, 1, 1]
    for name in ("test_loss", "test_accuracy", "held_out_loss", "held_out_accuracy"):
        xr.testing.assert_identical(some[name], whole[name].where(some["evaluated"] == 1))
    for name in ("train_loss", "train_accuracy", "gradient_norm", "steps", "lr"):
        xr.testing.assert_identical(some[name], whole[name])


def test_a_diverged_run_ends_early_and_that_is_its_result():
    config = replace(QUICK, norm="none", lr=1e3, epochs=5)
    dataset = ns.train(config)
    assert dataset.attrs["outcome"] == "diverged"
    steps = dataset["steps"].values
    assert 0 < steps[0] < 6 and (steps[1:] == 0).all()
    assert dataset["evaluated"].values.tolist() == [1, 0, 0, 0, 0]
    measured = dataset.drop_vars(["lr", "steps", "evaluated"])
    assert measured.isel(epoch=slice(1, None)).to_dataframe().isna().all().all()
    assert not dataset["lr"].isnull().any()
    assert not np.isfinite(dataset["train_loss"][0]) or dataset["train_loss"][0] > 100


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from normscope.data import load_data
from normscope.results import save
from normscope.training.config import RunConfig
from normscope.training.network import encoded_weights
from normscope.training.train import trained

limit, moments = float(sys.argv[1]), random.Random(int(sys.argv[2]))

def end(config, data, folder):
    kills = 0
    while not (folder / "run.nc").exists():
        child = os.fork()
        if child == 0:
            run = trained(config, data, checkpoint=folder / "checkpoint", checkpoint_seconds=0.0)
            (folder / "weights").write_bytes(encoded_weights(run.net, config))
            save(run.result, folder / "run.nc")
            os._exit(0)
        time.sleep(moments.uniform(0.005, limit))
        if kills < 20:
            os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    return kills

for argument in sys.argv[3:]:
    task = json.loads(argument)
    config = RunConfig.from_mapping(task["config"])
    data = load_data(config.data, train_size=config.train_size, held_out=config.held_out)
    print(end(config, data, Path(task["folder"])))
"""


def kill_runs(folder: Path, seed: int = 0) -> list[int]:
    """Kill two runs at random moments, at most 20 times each, until they end; assert that they end with the bits of
    runs that nobody disturbed. How often each was killed."""
    configs = [replace(QUICK, epochs=20), replace(QUICK, net="resnet8", epochs=4, precision="bf16")]
    tasks = []
    for number, config in enumerate(configs):
        (folder / str(number)).mkdir(parents=True)
        tasks.append(json.dumps({"config": config.to_mapping(), "folder": str(folder / str(number))}))
    done = subprocess.run([sys.executable, "-c", KILLED, "0.1", str(seed), *tasks], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, config in enumerate(configs):
        there = folder / str(number)
        same(ns.load(there / "run.nc"), ns.train(config, weights=there / "whole"))
        assert (there / "weights").read_bytes() == (there / "whole").read_bytes()
    return [int(kills) for kills in done.stdout.split()]


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    assert min(kill_runs(tmp_path)) >= 2, "killed more than once"


def test_seconds_add_up_over_interruptions(tmp_path):
    class Stop(Exception):
        pass

    def stop(epochs, recorded):
        if epochs == 1:
            raise Stop

    data = load_data("digits", train_size=300, held_out=60)
    kept = partial(trained, QUICK, data, checkpoint=tmp_path / "run", checkpoint_seconds=0.0)
    with pytest.raises(Exception, match="Stop"):
        kept(on_epoch=stop)
    began = []
    result = kept(on_epoch=lambda n, _: began.append(n)).result
    assert began == [1, 2, 3]
    same(result, ns.train(QUICK))
    again = ns.train(QUICK, checkpoint=tmp_path / "run")
    xr.testing.assert_identical(again, result)


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [False, True, True, True]), (math.inf, [False] * 4)])
def test_an_epoch_ends_with_a_checkpoint_where_the_last_one_is_old_enough(tmp_path, monkeypatch, seconds, expected):
    monkeypatch.setattr("normscope.training.epochs.EPOCH_SECONDS", seconds)
    data, there = load_data("digits", train_size=300, held_out=60), []
    trained(QUICK, data, checkpoint=tmp_path / "run", on_epoch=lambda *_: there.append((tmp_path / "run").exists()))
    assert there == expected


def test_a_checkpoint_of_another_run_is_not_gone_on_from(tmp_path):
    ns.train(replace(QUICK, seed=1), checkpoint=tmp_path / "run")
    same(ns.train(QUICK, checkpoint=tmp_path / "run"), ns.train(QUICK))


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"\xff" * 100])
def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path, damage):
    (tmp_path / "run").write_bytes(damage)
    with pytest.warns(UserWarning, match=r"run is damaged \(.*: the run begins anew"):
        again = ns.train(replace(QUICK, epochs=1), checkpoint=tmp_path / "run")
    same(again, ns.train(replace(QUICK, epochs=1)))


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        ns.train(QUICK, checkpoint=tmp_path / "taken" / "run")


def test_weights_that_cannot_be_written_are_told_before_training(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr("normscope.training.train.trained", None)
    with pytest.raises(OutputError, match="cannot write"):
        ns.train(QUICK, weights=tmp_path / "taken" / "weights")


def test_the_trained_network_comes_back(tmp_path):
    dataset = ns.train(QUICK, weights=tmp_path / "weights")
    data = load_data("digits", train_size=300, held_out=60)
    net = trained_network(QUICK, data, tmp_path / "weights")
    with torch.no_grad():
        accuracy = (net(data.test_images).argmax(1) == data.test_labels).double().mean()
    assert float(accuracy) == float(dataset["test_accuracy"][-1])
    with pytest.raises(ResultError, match="does not hold the weights of mlp4"):
        trained_network(replace(QUICK, net="mlp4"), data, tmp_path / "weights")
    with pytest.raises(ResultError, match="no weights"):
        trained_network(QUICK, data, tmp_path / "nowhere")


@pytest.mark.parametrize("init", BRANCH_INITS)
def test_a_network_with_learned_numbers_in_its_branches_comes_back(init, tmp_path):
    config = replace(QUICK, net="resnet8", norm="none", init=init, epochs=1)
    data = load_data("digits", train_size=300, held_out=60)
    fresh = fresh_network(config, data).state_dict()
    scalars = {name: tensor for name, tensor in fresh.items() if "scalar" in name}
    assert len(scalars) == {"skipinit": 3, "fixup": 3 * 5}[init], "three blocks"
    ns.train(config, weights=tmp_path / "weights")
    trained = trained_network(config, data, tmp_path / "weights").state_dict()
    assert all(not torch.equal(trained[name], scalars[name]) for name in scalars), "they learn"


def test_skipinit_starts_from_the_weights_of_the_network_without_norms():
    data = load_data("digits", train_size=300, held_out=60)
    plain = fresh_network(replace(QUICK, net="resnet8", norm="none"), data).state_dict()
    skip = fresh_network(replace(QUICK, net="resnet8", norm="none", init="skipinit"), data).state_dict()
    assert all(torch.equal(skip[name], tensor) for name, tensor in plain.items())
    assert [float(skip[name]) for name in set(skip) - set(plain)] == [0.0] * 3


def test_bf16_is_used_where_it_is_asked_for_and_recorded():
    fp32, bf16 = (ns.train(replace(QUICK, epochs=1, precision=p)) for p in ("fp32", "bf16"))
    assert bf16.attrs["precision"] == "bf16"
    assert float(fp32["train_loss"][0]) != float(bf16["train_loss"][0])
    np.testing.assert_allclose(fp32["train_loss"], bf16["train_loss"], rtol=0.05)  # bf16 has 8 bits


@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_asks_the_processor(monkeypatch, fast):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert used_precision("auto", "cpu") == ("bf16" if fast else "fp32")
    assert used_precision("bf16", "cpu") == "bf16"


def test_threads_are_put_back():
    dataset = ns.train(replace(QUICK, epochs=1), threads=2)
    assert (dataset.attrs["threads"], torch.get_num_threads()) == (2, 1)


def test_the_key_knows_every_field_and_nothing_else():
    changed = {
        "net": "mlp4", "norm": "none", "init": "orthogonal", "data": "cifar10", "train_size": 301, "held_out": 61,
        "lr": 0.2, "momentum": 0.8, "weight_decay": 0, "batch_size": 51, "epochs": 4, "evaluate_every": 2,
        "milestones": [0.4], "gamma": 0.5, "augment": False, "seed": 1, "precision": "bf16", "device": "auto",
        "image_size": 4, "evaluate_train": 2, "end_early": True, "sharpness_at": [0.1],
    }  # fmt: skip
    assert set(changed) == set(QUICK.to_mapping())
    one = replace(QUICK, evaluate_train=1)
    keys = {key(one), *(key(replace(one, **{name: value})) for name, value in changed.items())}
    assert len(keys) == len(changed) + 1
    assert key(replace(QUICK, lr=1)) == key(replace(QUICK, lr=1.0)) == key(replace(QUICK, lr=np.float64(1)))  # pyright: ignore
    assert key(RunConfig.from_mapping(json.loads(json.dumps(QUICK.to_mapping())))) == key(QUICK)
    assert key(RunConfig()) == "34c0b29dd302b895", "a key that moves orphans every stored run: raise PROTOCOL instead"


def test_the_sizes_that_configs_are_checked_with_are_those_of_the_data():
    assert DATA_SIZES["digits"] == len(load_data("digits").train_images)
    assert set(DATA_SIZES) == set(ns.data.DATA)  # pyright: ignore


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": "resnet21"}, "resnet depth must be 6n+2, not 21: 20 and 26 are nearest"),
        ({"net": "resent20"}, "unknown net 'resent20': did you mean 'resnet20'?"),
        ({"norm": "bacth"}, "unknown norm 'bacth': did you mean 'batch'?"),
        ({"init": "xavier"}, "unknown init 'xavier': did you mean 'xavier_normal'?"),
        ({"init": "zero_residual"}, "mlp3 has no residual branches"),
        ({"init": "skipinit"}, "init 'skipinit' is for resnets: mlp3 has no residual branches"),
        ({"init": "fixup", "net": "resnet8"}, "init 'fixup' is for networks without norms: norm is 'batch'"),
        ({"norm": "instance"}, "mlp3 has none"),
        ({"data": "digit"}, "unknown data set 'digit': did you mean 'digits'?"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"lr": 0}, "lr is 0: it must be above 0"),
        ({"lr": "fast"}, "lr is 'fast': give a number"),
        ({"lr": float("nan")}, "lr is nan: give a finite number"),
        ({"lr": 10**400}, "lr is inf: give a finite number"),
        ({"lr": np.array([0.1, 0.2])}, "lr is array([0.1, 0.2]): give one number"),
        ({"seed": 2**63}, f"seed is {2**63}: it must be at least 0 and at most {2**63 - 1}"),
        ({"batch_size": 10**400}, "it must be at least 1 and at most 300"),
        ({"epochs": np.array([1, 2])}, "epochs is array([1, 2]): give one whole number"),
        ({"momentum": 1}, "momentum is 1: it must be at least 0 and below 1"),
        ({"weight_decay": -1}, "weight_decay is -1: it must be at least 0"),
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5: give a whole number"),
        ({"epochs": True}, "epochs is True: give a whole number"),
        ({"milestones": [80, 120]}, "give shares of the epochs, between 0 and 1 and rising"),
        ({"milestones": 0.5}, "milestones is 0.5: give a list"),
        ({"augment": 1}, "augment is 1: give true or false"),
        ({"net": 20}, "net is 20: give a name in quotes"),
        ({"train_size": 1400}, "train_size is 1400: it must be at least 10 and at most 1377 (digits has 1437"),
        ({"held_out": 5}, "held_out is 5: it must be at least 10"),
        ({"batch_size": 301}, "batch_size is 301: it must be at least 1 and at most 300"),
        ({"batch_size": 1}, "batch norm needs two or more"),
        ({"learning_rate": 1}, "unknown key 'learning_rate'; known: net, norm"),
        ({"weight_deacy": 1}, "unknown key 'weight_deacy': did you mean 'weight_decay'?"),
    ],
)
def test_what_a_config_refuses(change, message):
    with pytest.raises(InvalidConfig) as error:
        RunConfig.from_mapping({**QUICK.to_mapping(), **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_defaults_are_the_papers():
    paper = RunConfig()
    assert (paper.net, paper.data, paper.epochs, paper.batch_size) == ("resnet110", "cifar10", 165, 128)
    lr = [paper.lr_of(number) for number in range(165)]
    np.testing.assert_allclose([lr[0], lr[82], lr[83], lr[123], lr[124], lr[164]], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
